/* Reads that wait for a disk, or for another filesystem: threads make them, and answer them without Python.
 *
 *     loop --> queue --> thread: pread(2), reply --> answered, until the loop counts them
 *
 * The threads know nothing of Python, and touch nothing but the queue. Those that nobody needs for a while end. The loop
 * makes a read itself where there can be no thread (RLIMIT_NPROC, memory): everybody waits for it, and nobody gets an error.
 */

#define _GNU_SOURCE
#include "waiting.h"

#include <errno.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    THREADS = 32,        /* workers.py, _READS */
    ROOM = 1 << 20,      /* the most that the kernel asks for: FUSE_MAX_MAX_PAGES, unless somebody has changed it */
    STACK = ROOM + (128 << 10),
    IDLE_SECONDS = 10,
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t more, all_answered;
    struct waiting_read *first, *last; /* to be made */
    struct waiting_read *answered;
    size_t queued, unanswered;
    int threads, idle;
} queue = {.lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER, .all_answered = PTHREAD_COND_INITIALIZER};

void write_reply(int device, uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec iov[2] = {{&header, sizeof header}, {(void *)data, size}};
    if (writev(device, iov, size != 0 ? 2 : 1) < 0 && errno == EINVAL && error != EIO)
        write_reply(device, unique, EIO, NULL, 0);
}

/* Read all that is asked for, up to the end of the file; an error only where nothing was read. */
static size_t read_all(struct waiting_read *read, char *data)
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
static void make(struct waiting_read *read, char *room)
{
    char *data = room != NULL && read->size <= ROOM ? room : malloc(read->size);
    read->error = data == NULL ? ENOMEM : 0;
    const size_t size = data == NULL ? 0 : read_all(read, data);
    close(read->fd);
    write_reply(read->device, read->unique, read->error, data, size);
    if (data != room)
        free(data);
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    read->until = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Leave an answered one to the loop, with the lock held. */
static void leave(struct waiting_read *read)
{
    read->next = queue.answered;
    queue.answered = read;
    if (--queue.unanswered == 0)
        pthread_cond_broadcast(&queue.all_answered);
}

/* The next one to be made, with the lock held; NULL when none comes for a while. */
static struct waiting_read *next_read(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += IDLE_SECONDS;
    queue.idle++;
    int error = 0;
    while (queue.first == NULL && error == 0)
        error = pthread_cond_timedwait(&queue.more, &queue.lock, &until);
    queue.idle--;
    struct waiting_read *read = queue.first;
    if (read == NULL)
        return NULL;
    queue.first = read->next;
    queue.queued--;
    return read;
}

static void *work(void *unused)
{
    (void)unused;
    char room[ROOM]; /* of which only what is used takes memory */
    pthread_mutex_lock(&queue.lock);
    for (struct waiting_read *read; (read = next_read()) != NULL;) {
        pthread_mutex_unlock(&queue.lock);
        make(read, room);
        pthread_mutex_lock(&queue.lock);
        leave(read);
    }
    queue.threads--;
    pthread_mutex_unlock(&queue.lock);
    return NULL;
}

/* One more thread, with the lock held. No signal is for it. */
static bool add_thread(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    sigset_t all, before;
    if (pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const bool made = pthread_create(&thread, &attributes, work, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    queue.threads += made;
    return made;
}

bool read_in_thread(const struct waiting_read *asked)
{
    struct waiting_read *read = malloc(sizeof *read);
    if (read == NULL)
        return false;
    *read = *asked;
    read->next = NULL;
    pthread_mutex_lock(&queue.lock);
    /* Who is idle has perhaps been woken for another. */
    const bool needed = queue.idle <= (int)queue.queued && queue.threads < THREADS;
    const bool served = !needed || add_thread() || queue.threads > 0;
    queue.unanswered++;
    if (served) {
        if (queue.first == NULL)
            queue.first = read;
        else
            queue.last->next = read;
        queue.last = read;
        queue.queued++;
        pthread_cond_signal(&queue.more);
    }
    pthread_mutex_unlock(&queue.lock);
    if (served)
        return true;
    make(read, NULL);
    pthread_mutex_lock(&queue.lock);
    leave(read);
    pthread_mutex_unlock(&queue.lock);
    return true;
}

bool take_answered(struct waiting_read *read)
{
    pthread_mutex_lock(&queue.lock);
    struct waiting_read *answered = queue.answered;
    if (answered != NULL)
        queue.answered = answered->next;
    pthread_mutex_unlock(&queue.lock);
    if (answered == NULL)
        return false;
    *read = *answered;
    free(answered);
    return true;
}

size_t unanswered(void)
{
    pthread_mutex_lock(&queue.lock);
    const size_t count = queue.unanswered;
    pthread_mutex_unlock(&queue.lock);
    return count;
}

void wait_for_answers(void)
{
    pthread_mutex_lock(&queue.lock);
    while (queue.unanswered > 0)
        pthread_cond_wait(&queue.all_answered, &queue.lock);
    pthread_mutex_unlock(&queue.lock);
}
