/* The measured loops of the benchmark: one process does the work and reports its own elapsed time.
 *
 *     loops WORD ARGUMENTS...
 *
 * Each measurement is one line on stdout: the seconds, a space, and what was found (how many names, lines or bytes), by
 * which the benchmark sees that all contestants did the same. A failure is a message on stderr and exit status 1.
 *
 * Compiled by bench/place.py. C, because a loop in Python costs as much for each stat(2) as a kernel filesystem does.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>


static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void report(double begin, long long found)
{
    printf("%.9f %lld\n", now() - begin, found);
}

static long number(const char *text)
{
    return strtol(text, NULL, 10);
}

/* A generator of its own, so that all contestants touch the same blocks in the same order (xorshift64). */
static uint64_t state = 88172645463325252ULL;
static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static int open_or_fail(const char *path, int flags)
{
    int fd = open(path, flags, 0644);
    if (fd < 0)
        fail(path);
    return fd;
}

static pid_t start(char **argv, int output)
{
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        dup2(output, 1);
        execvp(argv[0], argv);
        fail(argv[0]);
    }
    return child;
}

static void finish(pid_t child, const char *what)
{
    int status;
    if (waitpid(child, &status, 0) < 0)
        fail("waitpid");
    if (status != 0) {
        fprintf(stderr, "%s: exit status %d\n", what, WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
        exit(1);
    }
}

static int memory_file(void)
{
    int fd = memfd_create("output", MFD_CLOEXEC);
    if (fd < 0)
        fail("memfd_create");
    return fd;
}

static long long lines(int fd)
{
    char buffer[65536];
    long long found = 0;
    off_t place = 0;
    ssize_t got;
    while ((got = pread(fd, buffer, sizeof buffer, place)) > 0) {
        for (ssize_t i = 0; i < got; i++)
            found += buffer[i] == '\n';
        place += got;
    }
    return found;
}

/* run COMMAND...: a program from start to end; the lines that it wrote. */
static void run(int argc, char **argv)
{
    (void)argc;
    int output = memory_file();
    double begin = now();
    finish(start(argv, output), argv[0]);
    double seconds = now() - begin;
    printf("%.9f %lld\n", seconds, lines(output));
}

/* prompt COMMAND...: from exec until the first byte that a program writes. It is waited for, but not counted. */
static void prompt(int argc, char **argv)
{
    (void)argc;
    int ends[2];
    char first;
    if (pipe2(ends, O_CLOEXEC) < 0)
        fail("pipe2");
    double begin = now();
    pid_t child = start(argv, ends[1]);
    close(ends[1]);
    ssize_t got = read(ends[0], &first, 1);
    double seconds = now() - begin;
    finish(child, argv[0]);
    printf("%.9f %zd\n", seconds, got);
}

/* mount MERGED COMMAND...: from exec until statvfs and stat of the new mount are answered (an empty filesystem's answer
 * is ENOSYS). */
static void mount_and_ask(int argc, char **argv)
{
    (void)argc;
    struct statvfs space;
    struct stat st;
    int output = memory_file();
    double begin = now();
    finish(start(argv + 1, output), argv[1]);
    if ((statvfs(argv[0], &space) < 0 || stat(argv[0], &st) < 0) && errno != ENOSYS)
        fail(argv[0]);
    report(begin, 1);
}

/* end PIDS COMMAND...: from exec until the command returned and the processes (separated by commas) have gone. */
static void end(int argc, char **argv)
{
    (void)argc;
    int fds[64], count = 0;
    for (char *pid = strtok(argv[0], ","); pid != NULL && count < 64; pid = strtok(NULL, ",")) {
        int fd = syscall(SYS_pidfd_open, (pid_t)number(pid), 0);
        if (fd >= 0)
            fds[count++] = fd;
    }
    int output = memory_file();
    double begin = now();
    finish(start(argv + 1, output), argv[1]);
    for (int i = 0; i < count; i++) {
        struct pollfd gone = {.fd = fds[i], .events = POLLIN};
        if (poll(&gone, 1, 30000) != 1) {
            fprintf(stderr, "a daemon is there 30 s after the unmount\n");
            exit(1);
        }
    }
    report(begin, 1);
}

/* tree DIRECTORY FILES PER_DIRECTORY BYTES: make a tree; the first line of every tenth file holds "needle". */
static void tree(int argc, char **argv)
{
    (void)argc;
    long files = number(argv[1]), per_directory = number(argv[2]), bytes = number(argv[3]);
    char path[4096], *content = malloc(bytes + 64);
    for (long i = 0; i < bytes; i++)
        content[i] = i % 64 == 63 ? '\n' : "abcdefghijklm opqrstuvwxyz "[(i * 7) % 27];
    double begin = now();
    if (mkdir(argv[0], 0755) < 0 && errno != EEXIST)
        fail(argv[0]);
    for (long i = 0; i < files; i++) {
        if (i % per_directory == 0) {
            snprintf(path, sizeof path, "%s/directory-%ld", argv[0], i / per_directory);
            if (mkdir(path, 0755) < 0)
                fail(path);
        }
        snprintf(path, sizeof path, "%s/directory-%ld/file-%ld", argv[0], i / per_directory, i);
        int fd = open_or_fail(path, O_WRONLY | O_CREAT | O_EXCL);
        if (bytes > 16)
            memcpy(content, i % 10 == 0 ? "needle here\n" : "something x\n", 12);
        if (bytes && write(fd, content, bytes) != bytes)
            fail(path);
        close(fd);
    }
    report(begin, files);
}

static long long counted_names, counted_bytes;

static int count_one(const char *path, const struct stat *st, int kind, struct FTW *where)
{
    (void)path;
    (void)where;
    counted_names++;
    if (kind == FTW_F && S_ISREG(st->st_mode))
        counted_bytes += st->st_size;
    return 0;
}

/* count DIRECTORY: how many names are beneath, and how many bytes (in place of the seconds). */
static void count(int argc, char **argv)
{
    (void)argc;
    if (nftw(argv[0], count_one, 64, FTW_MOUNT) < 0)
        fail(argv[0]);
    printf("%lld %lld\n", counted_bytes, counted_names);
}

/* sum FILE: a sum over its content that depends on the order (in place of the seconds: the bytes). */
static void sum(int argc, char **argv)
{
    (void)argc;
    static unsigned char block[1 << 20];
    uint64_t result = 14695981039346656037ULL;
    long long total = 0;
    ssize_t got;
    int fd = open_or_fail(argv[0], O_RDONLY);
    while ((got = read(fd, block, sizeof block)) > 0) {
        for (ssize_t i = 0; i < got; i++)
            result = (result ^ block[i]) * 1099511628211ULL;
        total += got;
    }
    if (got < 0)
        fail(argv[0]);
    printf("%lld %llu\n", total, (unsigned long long)result);
}

/* missing DIRECTORY NAMES PASSES: stat of names that are not there; one line for each pass over them. */
static void missing(int argc, char **argv)
{
    (void)argc;
    long names = number(argv[1]);
    char path[4096];
    struct stat st;
    for (long pass = 0; pass < number(argv[2]); pass++) {
        long failed = 0;
        double begin = now();
        for (long i = 0; i < names; i++) {
            snprintf(path, sizeof path, "%s/missing-%ld", argv[0], i);
            failed += stat(path, &st) < 0 && errno == ENOENT;
        }
        report(begin, failed);
    }
}

/* opens DIRECTORY FILES PER_DIRECTORY TIMES: open and close files of a tree that `tree` made. */
static void opens(int argc, char **argv)
{
    (void)argc;
    long files = number(argv[1]), per_directory = number(argv[2]), times = number(argv[3]), opened = 0;
    char path[4096];
    double begin = now();
    for (long i = 0; i < times; i++) {
        long file = i % files;
        snprintf(path, sizeof path, "%s/directory-%ld/file-%ld", argv[0], file / per_directory, file);
        close(open_or_fail(path, O_RDONLY));
        opened++;
    }
    report(begin, opened);
}

/* list DIRECTORY STAT PASSES: read a directory, stat every name when STAT is 1; one line for each pass. */
static void list(int argc, char **argv)
{
    (void)argc;
    struct stat st;
    for (long pass = 0; pass < number(argv[2]); pass++) {
        long names = 0;
        double begin = now();
        DIR *directory = opendir(argv[0]);
        if (directory == NULL)
            fail(argv[0]);
        for (struct dirent *entry; (entry = readdir(directory)) != NULL; names++)
            if (argv[1][0] == '1' && fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
                fail(entry->d_name);
        closedir(directory);
        report(begin, names);
    }
}

static char *block_of(long size)
{
    char *block = aligned_alloc(4096, size < 4096 ? 4096 : size);
    memset(block, 'b', size);
    return block;
}

/* write FILE BYTES BLOCK FLAGS: one block after the other, into a new file; with "a" appended to an old one; with "s"
 * in the flags the file is synced before the end. */
static void write_blocks(int argc, char **argv)
{
    (void)argc;
    long bytes = number(argv[1]), size = number(argv[2]), written = 0;
    char *block = block_of(size);
    double begin = now();
    int fd = open_or_fail(argv[0], O_WRONLY | (strchr(argv[3], 'a') ? O_APPEND : O_CREAT | O_TRUNC));
    for (; written < bytes; written += size)
        if (write(fd, block, size) != size)
            fail(argv[0]);
    if (strchr(argv[3], 's') && fsync(fd) < 0)
        fail(argv[0]);
    if (close(fd) < 0)
        fail(argv[0]);
    report(begin, written);
}

/* read FILE BLOCK PASSES: the whole file; one line for each pass. */
static void read_blocks(int argc, char **argv)
{
    (void)argc;
    long size = number(argv[1]);
    char *block = block_of(size);
    for (long pass = 0; pass < number(argv[2]); pass++) {
        long long total = 0;
        ssize_t got;
        double begin = now();
        int fd = open_or_fail(argv[0], O_RDONLY);
        while ((got = read(fd, block, size)) > 0)
            total += got;
        if (got < 0)
            fail(argv[0]);
        close(fd);
        report(begin, total);
    }
}

/* random FILE BYTES TIMES HOW: blocks of 4 KiB at random places; HOW is "read", "write" or "sync" (write, and fdatasync
 * after each). */
static void random_blocks(int argc, char **argv)
{
    (void)argc;
    long blocks = number(argv[1]) / 4096, times = number(argv[2]);
    int reading = argv[3][0] == 'r', synced = argv[3][0] == 's';
    char *block = block_of(4096);
    double begin = now();
    int fd = open_or_fail(argv[0], reading ? O_RDONLY : O_WRONLY);
    for (long i = 0; i < times; i++) {
        off_t place = (off_t)(next_random() % blocks) * 4096;
        if ((reading ? pread(fd, block, 4096, place) : pwrite(fd, block, 4096, place)) != 4096)
            fail(argv[0]);
        if (synced && fdatasync(fd) < 0)
            fail(argv[0]);
    }
    if (close(fd) < 0)
        fail(argv[0]);
    report(begin, times);
}

/* map FILE BYTES: write one byte of each page of a shared mapping, and msync it. */
static void map(int argc, char **argv)
{
    (void)argc;
    long bytes = number(argv[1]), pages = 0;
    double begin = now();
    int fd = open_or_fail(argv[0], O_RDWR);
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
    for (long place = 0; place < bytes; place += 4096, pages++)
        memory[place] = 'm';
    if (msync(memory, bytes, MS_SYNC) < 0 || munmap(memory, bytes) < 0 || close(fd) < 0)
        fail("msync");
    report(begin, pages);
}

static void read_share(const char *root, long files, long per_directory, long worker, long workers)
{
    char path[4096], block[65536];
    for (long i = worker * files / workers; i < (worker + 1) * files / workers; i++) {
        snprintf(path, sizeof path, "%s/directory-%ld/file-%ld", root, i / per_directory, i);
        int fd = open_or_fail(path, O_RDONLY);
        while (read(fd, block, sizeof block) > 0)
            ;
        close(fd);
    }
}

static void create_share(const char *root, long files, long worker, long workers)
{
    char path[4096], block[100] = "created";
    snprintf(path, sizeof path, "%s/worker-%ld", root, worker);
    if (mkdir(path, 0755) < 0)
        fail(path);
    for (long i = worker * files / workers; i < (worker + 1) * files / workers; i++) {
        snprintf(path, sizeof path, "%s/worker-%ld/new-%ld", root, worker, i);
        int fd = open_or_fail(path, O_WRONLY | O_CREAT | O_EXCL);
        if (write(fd, block, sizeof block) != sizeof block)
            fail(path);
        close(fd);
    }
}

/* together HOW PROCESSES ROOT FILES PER_DIRECTORY: several processes share FILES among them; HOW is "read" or "create",
 * which is create, write, close. */
static void together(int argc, char **argv)
{
    (void)argc;
    long workers = number(argv[1]), files = number(argv[3]);
    double begin = now();
    for (long worker = 0; worker < workers; worker++) {
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0) {
            if (argv[0][0] == 'r')
                read_share(argv[2], files, number(argv[4]), worker, workers);
            else
                create_share(argv[2], files, worker, workers);
            _exit(0);
        }
    }
    int status;
    for (long worker = 0; worker < workers; worker++)
        if (wait(&status) < 0 || status != 0) {
            fprintf(stderr, "one of the processes failed\n");
            exit(1);
        }
    report(begin, files);
}

/* watch DIRECTORY: stat of a new name every millisecond until stdin ends; the longest wait, and 1. Every name is
 * another one, also from one watcher to the next, so that no cache can answer. The first warms up and does not count. */
static void watch(int argc, char **argv)
{
    (void)argc;
    char path[4096];
    struct stat st;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    double longest = 0;
    long i = 0;
    do {
        snprintf(path, sizeof path, "%s/unrelated-%d-%ld", argv[0], (int)getpid(), i++);
        double begin = now();
        if (stat(path, &st) == 0 || errno != ENOENT)
            fail(path);
        double took = now() - begin;
        if (i > 1 && took > longest)
            longest = took;
        if (i == 1) {
            puts("watching");
            fflush(stdout);
        }
    } while (poll(&input, 1, 1) == 0 || i == 1);
    printf("%.9f 1\n", longest);
}

/* spin: keep one core busy until it is killed. */
static void spin(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    for (volatile unsigned long turns = 0;; turns++)
        ;
}

static const struct {
    const char *word;
    void (*work)(int, char **);
    int arguments;
} WORDS[] = {
    {"run", run, 1},       {"prompt", prompt, 1},       {"mount", mount_and_ask, 2}, {"end", end, 2},          {"tree", tree, 4},
    {"count", count, 1},   {"missing", missing, 3},     {"opens", opens, 4},      {"list", list, 3},
    {"write", write_blocks, 4}, {"read", read_blocks, 3}, {"random", random_blocks, 4}, {"map", map, 2},
    {"together", together, 5}, {"watch", watch, 1},     {"spin", spin, 0},
    {"sum", sum, 1},
};

int main(int argc, char **argv)
{
    for (unsigned i = 0; argc > 1 && i < sizeof WORDS / sizeof *WORDS; i++)
        if (strcmp(argv[1], WORDS[i].word) == 0 && argc - 2 >= WORDS[i].arguments) {
            WORDS[i].work(argc - 2, argv + 2);
            return 0;
        }
    fprintf(stderr, "usage: loops WORD ARGUMENTS... (see loops.c)\n");
    return 2;
}
