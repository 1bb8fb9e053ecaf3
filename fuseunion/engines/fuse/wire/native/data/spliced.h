/* The part of the module that is in spliced.c. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Not for others: the module is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(hidden)
/* What is shorter is copied sooner. */
enum { SPLICED = 32 << 10 };

/* Answer a READ with so many bytes of a file that waits for no disk. Returns false where nothing was answered. */
bool answer_spliced(int device, uint64_t unique, int fd, uint64_t offset, size_t size);
#pragma GCC visibility pop
