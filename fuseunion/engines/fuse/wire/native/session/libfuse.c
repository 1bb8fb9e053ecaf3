/* libfuse keeps the session.
 *
 * pyfuse3 finds `fuse_session_mount` here before it finds libfuse's, because this module is loaded with RTLD_GLOBAL first;
 * it calls the real one and then gives the session our functions for reading and writing (fuse_session_custom_io(3),
 * libfuse 3.14). So the answer to FUSE_INIT passes here, and gets the flags that libfuse does not ask for.
 */

#define _GNU_SOURCE
#include "../state.h"

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct fuse_session;

/* fuse_lowlevel.h, struct fuse_custom_io. */
struct custom_io {
    ssize_t (*writev)(int fd, struct iovec *iov, int count, void *userdata);
    ssize_t (*read)(int fd, void *buf, size_t size, void *userdata);
    ssize_t (*splice_receive)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
    ssize_t (*splice_send)(int, off_t *, int, off_t *, size_t, unsigned int, void *);
    int (*clone_fd)(int);
};

static int find_libfuse(struct dl_phdr_info *info, size_t size, void *found)
{
    (void)size;
    if (info->dlpi_name == NULL || strstr(info->dlpi_name, "libfuse3") == NULL)
        return 0;
    *(void **)found = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
    return *(void **)found != NULL;
}

static void *symbol_of_libfuse(const char *name)
{
    void *library = NULL;
    dl_iterate_phdr(find_libfuse, &library);
    return library == NULL ? NULL : dlsym(library, name);
}

/* The answer to FUSE_INIT with the flags that we want and the kernel offers, without those that we do not want. */
static void complete_init(char *message, size_t size)
{
    struct fuse_out_header header;
    memcpy(&header, message, sizeof header);
    if (header.unique != device.init_unique || header.error != 0)
        return;
    size_t flags2_at = sizeof header + 32; /* struct fuse_init_out, flags2 */
    size_t flags_at = sizeof header + 12;
    if (size < flags2_at + 4)
        return;
    uint32_t low, high = 0;
    memcpy(&low, message + flags_at, 4);
    if (low & FLAG_INIT_EXT)
        memcpy(&high, message + flags2_at, 4);
    uint64_t flags = ((uint64_t)high << 32 | low | (device.wanted & device.offered)) & ~device.unwanted;
    if (flags >> 32)
        flags |= FLAG_INIT_EXT;
    low = (uint32_t)flags;
    high = (uint32_t)(flags >> 32);
    memcpy(message + flags_at, &low, 4);
    memcpy(message + flags2_at, &high, 4);
    device.init_unique = 0;
}

static ssize_t libfuse_writes(int fd, struct iovec *iov, int count, void *userdata)
{
    (void)userdata;
    char message[256];
    size_t size = 0;
    if (device.init_unique != 0) {
        for (int i = 0; i < count; i++) {
            if (size + iov[i].iov_len > sizeof message)
                return writev(fd, iov, count);
            memcpy(message + size, iov[i].iov_base, iov[i].iov_len);
            size += iov[i].iov_len;
        }
        if (size >= sizeof(struct fuse_out_header)) {
            complete_init(message, size);
            return write(fd, message, size);
        }
    }
    return writev(fd, iov, count);
}

static ssize_t libfuse_reads(int fd, void *buf, size_t size, void *userdata)
{
    (void)userdata;
    if (device.pending == 0)
        return read(fd, buf, size);
    size_t got = device.pending;
    device.pending = 0;
    if (got > size) {
        errno = EIO;
        return -1;
    }
    memcpy(buf, device.buffer, got);
    return (ssize_t)got;
}

/* In the place of libfuse's function of this name. */
__attribute__((visibility("default"))) int fuse_session_mount(struct fuse_session *session, const char *mountpoint)
{
    int (*real)(struct fuse_session *, const char *) = symbol_of_libfuse("fuse_session_mount");
    void *custom = symbol_of_libfuse("fuse_session_custom_io");
    int (*version)(void) = symbol_of_libfuse("fuse_version");
    if (real == NULL)
        return -1;
    int result = real(session, mountpoint);
    if (result != 0 || device.fd < 0)
        return result;
    static const struct custom_io io = {.writev = libfuse_writes, .read = libfuse_reads};
    if (custom == NULL || version == NULL)
        return -1;
    if (version() >= 317)
        return ((int (*)(struct fuse_session *, const struct custom_io *, size_t, int))custom)(session, &io, sizeof io,
                                                                                            device.fd);
    return ((int (*)(struct fuse_session *, const struct custom_io *, int))custom)(session, &io, device.fd);
}
