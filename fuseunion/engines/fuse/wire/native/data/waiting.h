/* The part of the module that is in waiting.c. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
/* Write one reply to /dev/fuse. The kernel takes it only if it has the size that it expects: what it does not take is
 * answered EIO. Nobody is told where nobody waits for it any more (ENOENT, fs/fuse/dev.c fuse_dev_do_write). */
void write_reply(int device, uint64_t unique, int error, const void *data, size_t size);

/* A request that waits: FUSE_READ, with offset and size; FUSE_FSYNC and FUSE_FSYNCDIR. Or what the loop goes on with when
 * files are on disk (NO_REQUEST): `device` is an eventfd(2) then, and `fds` and `whose` are the loop's. `since`, `until`:
 * CLOCK_MONOTONIC, when it was found and when it was answered. */
enum { NO_REQUEST = 0 };

struct waiting {
    struct waiting *next;
    uint32_t opcode;
    int device, fd; /* the file's is closed */
    int *fds; /* they stay open */
    size_t count;
    void *whose;
    uint64_t unique, offset;
    uint32_t size;
    bool data_only; /* as fdatasync(2) */
    int error;
    int64_t since, until;
};

/* Have a request dealt with and answered by a thread; at once where there can be none. Returns false where nothing was
 * done. */
bool answer_in_thread(const struct waiting *request);

/* Forget one that was answered, and say what it was. Returns false where there is none. */
bool take_answered(struct waiting *request);

/* Whether files are on disk that the loop waits for; all of those, a list that is the caller's now. */
bool is_told(void);
struct waiting *take_told(void);

/* How many are not answered yet. */
size_t unanswered(void);

/* Wait until none is left. */
void wait_for_answers(void);
#pragma GCC visibility pop
