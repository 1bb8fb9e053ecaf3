/* The next request (looking.c). */

#ifndef FUSEUNION_LOOKING_H
#define FUSEUNION_LOOKING_H

#include <stdint.h>
#include <sys/types.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)

/* Read a request into device.buffer; where there is none, look for one for `patience` nanoseconds, and then sleep for at
 * most `sleep` until one comes. Returns its size, or -1 with errno of /dev/fuse: EAGAIN when none came. */
ssize_t read_request(int64_t patience, int64_t sleep);

#pragma GCC visibility pop

#endif
