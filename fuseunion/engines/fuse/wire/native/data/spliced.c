/* Answers whose data goes from a file to the kernel by way of a pipe (splice(2)):
 *
 *     file --> pipe, behind the header of the answer --> /dev/fuse
 *
 * The pipe gets references to the pages of the file, which the kernel copies once, into those of the reader. It is empty
 * between two answers: where something does not go as expected it is thrown away, and nothing was answered.
 *
 * splice(2) waits for a disk, so this is for files in memory alone.
 */

#define _GNU_SOURCE
#include "spliced.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdint.h>
#include <unistd.h>

enum {
    PIPE = 256 << 10, /* the kernel reads ahead half of it, unless it is told otherwise */
    MOST = PIPE - (8 << 10), /* the header takes a page of the pipe, and data that does not begin with a page one more */
};

static int ends[2] = {-1, -1};

static void close_pipe(void)
{
    for (int i = 0; i < 2; i++) {
        if (ends[i] >= 0)
            close(ends[i]);
        ends[i] = -1;
    }
}

static bool open_pipe(void)
{
    if (ends[0] >= 0)
        return true;
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    /* Refused where the user has very many pipes (pipe(7), pipe-user-pages-soft). */
    if (fcntl(ends[1], F_SETPIPE_SZ, PIPE) >= PIPE)
        return true;
    close_pipe();
    return false;
}

bool answer_spliced(int device, uint64_t unique, int fd, uint64_t offset, size_t size)
{
    if (size < SPLICED || size > MOST || !open_pipe())
        return false;
    const struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .unique = unique};
    bool whole = write(ends[1], &header, sizeof header) == sizeof header;
    off_t at = (off_t)offset;
    for (size_t left = size; whole && left > 0;) {
        const ssize_t moved = splice(fd, &at, ends[1], NULL, left, SPLICE_F_NONBLOCK);
        whole = moved > 0;
        left -= whole ? (size_t)moved : 0;
    }
    whole = whole && splice(ends[0], NULL, device, NULL, sizeof header + size, 0) == (ssize_t)(sizeof header + size);
    if (!whole)
        close_pipe(); /* with what is in it */
    return whole;
}
