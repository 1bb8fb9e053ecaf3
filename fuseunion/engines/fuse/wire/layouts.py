"""Numbers and layouts of the FUSE protocol (include/uapi/linux/fuse.h), as far as answers are made in Python."""

from __future__ import annotations

import struct

# enum fuse_opcode
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
OPENDIR = 27
FSYNCDIR = 30
ACCESS = 34
CREATE = 35
IOCTL = 39
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
LSEEK = 46
COPY_FILE_RANGE = 47
TMPFILE = 51

# FUSE_INIT
ATOMIC_O_TRUNC = 1 << 3
PARALLEL_DIROPS = 1 << 18
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28

# FUSE_SETATTR
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_KILL_SUIDGID = 1 << 11

MODE, UID = 15, 17
"""Which members of ENTRY mode and owner are."""

WRITE_KILL_SUIDGID = 1 << 2

# FUSE_SETXATTR: those of setxattr(2)
XATTR_CREATE = 1
XATTR_REPLACE = 2

ENTRY = struct.Struct("=QQQQIIQQQQQQIIIIIIIIII")
"""struct fuse_entry_out with its struct fuse_attr."""

DIRENT = struct.Struct("=QQII")
"""struct fuse_dirent, before the name; what follows begins at a multiple of eight bytes."""

OPENED = struct.Struct("=16x")
"""struct fuse_open_out of a file that is named by its number."""

WRITTEN = struct.Struct("=II")
"""struct fuse_write_out."""

OFFSET = struct.Struct("=Q")
"""struct fuse_lseek_out."""

STATFS_OUT = struct.Struct("=QQQQQIIII24x")
"""struct fuse_statfs_out."""

IOCTL_OUT = struct.Struct("=i12x")
"""struct fuse_ioctl_out."""

FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
"""include/uapi/linux/fs.h, as on all machines with 64 bits but a few."""
