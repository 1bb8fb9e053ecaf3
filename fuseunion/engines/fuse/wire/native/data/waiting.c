/* What waits for a disk, or for another filesystem, reads and fsync(2): threads do it, and answer it without Python.
 *
 *     loop --> queue --> thread: pread(2) or fsync(2), reply --> answered, until the loop counts them
 *                        thread: fsync(2) of copies          --> told, until the loop goes on with them
 *
 * Each kind has threads of its own: no read waits behind what is written out, and neither behind copy-ups. The threads know
 * nothing of Python, and touch nothing but their queue. Those that nobody needs for a while end. The loop does the work
 * itself where there can be no thread (RLIMIT_NPROC, memory): everybody waits for it, and nobody gets an error.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    READING = 32, /* threads, as in workers.py */
    SYNCING = 16,
    COPYING = 4,
    ROOM = 1 << 20, /* the most that the kernel asks for: FUSE_MAX_MAX_PAGES, unless somebody has changed it */
    STACK = ROOM + (128 << 10),
    IDLE_SECONDS = 10,
};

/* Those who do one kind of work, and what they are to do. */
struct pool {
    const int most;
    pthread_cond_t more;
    struct waiting *first, *last;
    size_t queued;
    int threads, idle;
};

static struct pool reads = {.most = READING, .more = PTHREAD_COND_INITIALIZER};
static struct pool syncs = {.most = SYNCING, .more = PTHREAD_COND_INITIALIZER};
static struct pool copies = {.most = COPYING, .more = PTHREAD_COND_INITIALIZER};

static struct {
    pthread_mutex_t lock; /* of the pools too */
    pthread_cond_t all_answered;
    struct waiting *answered;
    struct waiting *told; /* without the lock */
    size_t unanswered;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER, .all_answered = PTHREAD_COND_INITIALIZER};

void write_reply(int device, uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&header, sizeof header}, {(void *)data, size}};
    if (writev(device, iov, size != 0 ? 2 : 1) < 0 && errno == EINVAL && error != EIO)
        write_reply(device, unique, EIO, NULL, 0);
}

/* Read all that is asked for, up to the end of the file; an error only where nothing was read. */
static size_t read_all(struct waiting *read, char *data)
{
    size_t done = 0;
    while (done < read->size) {
        const ssize_t got = pread(read->fd, data + done, read->size - done, (off_t)(read->offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && done == 0)
            read->error = errno;
        if (got <= 0)
            break;
        done += (size_t)got;
    }
    return done;
}

/* Make a read and answer it. `room`: for ROOM bytes, or NULL. */
static void make_read(struct waiting *read, char *room)
{
    char *data = room != NULL && read->size <= ROOM ? room : malloc(read->size);
    read->error = data == NULL ? ENOMEM : 0;
    const size_t size = data == NULL ? 0 : read_all(read, data);
    close(read->fd);
    write_reply(read->device, read->unique, read->error, data, size);
    if (data != room)
        free(data);
}

/* Put several files on disk. All are being written before one is waited for: that takes a third of the time. */
static void make_copies_safe(struct waiting *copies)
{
    if (copies->count > 1)
        for (size_t i = 0; i < copies->count; i++)
            sync_file_range(copies->fds[i], 0, 0, SYNC_FILE_RANGE_WRITE); /* fsync(2) says what goes wrong */
    for (size_t i = 0; i < copies->count; i++)
        if (fsync(copies->fds[i]) != 0 && copies->error == 0)
            copies->error = errno;
}

static void make_sync(struct waiting *sync)
{
    const int result = sync->data_only ? fdatasync(sync->fd) : fsync(sync->fd);
    sync->error = result == 0 ? 0 : errno == ENOSYS ? EOPNOTSUPP : errno; /* ENOSYS: the kernel would ask no more */
    close(sync->fd);
    write_reply(sync->device, sync->unique, sync->error, NULL, 0);
}

static void make(struct waiting *request, char *room)
{
    if (request->opcode == NO_REQUEST)
        make_copies_safe(request);
    else if (request->opcode == FUSE_READ)
        make_read(request, room);
    else
        make_sync(request);
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    request->until = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Say that files are on disk: whoever is woken finds them, unless they were found before. */
static void tell(struct waiting *copies)
{
    const int eventfd = copies->device; /* the loop's, with all else, as soon as they can be found */
    copies->next = __atomic_load_n(&all.told, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&all.told, &copies->next, copies, true, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
    eventfd_write(eventfd, 1);
}

/* Leave one that is done to the loop, and take the lock. */
static void leave(struct waiting *request)
{
    const bool is_request = request->opcode != NO_REQUEST;
    if (!is_request)
        tell(request);
    pthread_mutex_lock(&all.lock);
    if (is_request) {
        request->next = all.answered;
        all.answered = request;
    }
    if (--all.unanswered == 0)
        pthread_cond_broadcast(&all.all_answered);
}

/* The next one to be dealt with, with the lock held; NULL when none comes for a while. */
static struct waiting *next_request(struct pool *pool)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += IDLE_SECONDS;
    pool->idle++;
    int error = 0;
    while (pool->first == NULL && error == 0)
        error = pthread_cond_timedwait(&pool->more, &all.lock, &until);
    pool->idle--;
    struct waiting *request = pool->first;
    if (request == NULL)
        return NULL;
    pool->first = request->next;
    pool->queued--;
    return request;
}

static void *work(void *of)
{
    struct pool *pool = of;
    char room[ROOM]; /* of which only what is used takes memory */
    pthread_mutex_lock(&all.lock);
    for (struct waiting *request; (request = next_request(pool)) != NULL;) {
        pthread_mutex_unlock(&all.lock);
        make(request, room);
        leave(request);
    }
    pool->threads--;
    pthread_mutex_unlock(&all.lock);
    return NULL;
}

/* One more thread, with the lock held. No signal is for it. */
static bool add_thread(struct pool *pool)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t signals, before;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&signals);
    pthread_sigmask(SIG_SETMASK, &signals, &before);
    const bool made = pthread_create(&thread, &attributes, work, pool) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    pool->threads += made;
    return made;
}

/* Leave a request to the threads of a pool, with the lock held. Returns false where there are none. */
static bool enqueue(struct pool *pool, struct waiting *request)
{
    /* Who is idle has perhaps been woken for another. */
    const bool needed = pool->idle <= (int)pool->queued && pool->threads < pool->most;
    if (needed && !add_thread(pool) && pool->threads == 0)
        return false;
    if (pool->first == NULL)
        pool->first = request;
    else
        pool->last->next = request;
    pool->last = request;
    pool->queued++;
    return true;
}

bool answer_in_thread(const struct waiting *asked)
{
    struct waiting *request = malloc(sizeof *request);
    if (request == NULL)
        return false;
    *request = *asked;
    request->next = NULL;
    struct pool *pool = asked->opcode == FUSE_READ ? &reads : asked->opcode == NO_REQUEST ? &copies : &syncs;
    pthread_mutex_lock(&all.lock);
    all.unanswered++;
    const bool served = enqueue(pool, request);
    pthread_mutex_unlock(&all.lock);
    if (served) {
        pthread_cond_signal(&pool->more); /* who wakes up finds the lock free */
        return true;
    }
    make(request, NULL);
    leave(request);
    pthread_mutex_unlock(&all.lock);
    return true;
}

bool take_answered(struct waiting *request)
{
    pthread_mutex_lock(&all.lock);
    struct waiting *answered = all.answered;
    if (answered != NULL)
        all.answered = answered->next;
    pthread_mutex_unlock(&all.lock);
    if (answered == NULL)
        return false;
    *request = *answered;
    free(answered);
    return true;
}

bool is_told(void)
{
    return __atomic_load_n(&all.told, __ATOMIC_ACQUIRE) != NULL;
}

struct waiting *take_told(void)
{
    return __atomic_exchange_n(&all.told, NULL, __ATOMIC_ACQUIRE);
}

size_t unanswered(void)
{
    pthread_mutex_lock(&all.lock);
    const size_t count = all.unanswered;
    pthread_mutex_unlock(&all.lock);
    return count;
}

void wait_for_answers(void)
{
    pthread_mutex_lock(&all.lock);
    while (all.unanswered > 0)
        pthread_cond_wait(&all.all_answered, &all.lock);
    pthread_mutex_unlock(&all.lock);
}
