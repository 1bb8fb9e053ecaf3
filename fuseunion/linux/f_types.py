"""Filesystems by the number that statfs(2) has for them (f_type, syscalls.filesystem_type).

From include/uapi/linux/magic.h, and where the source is not in the kernel from its own.
"""

UNKNOWN = 0
"""Of one that does not say: FUSE without statfs."""

EXT = 0xEF53
"""ext2, ext3 and ext4."""

XFS = 0x58465342
BTRFS = 0x9123683E
F2FS = 0xF2F52010
BCACHEFS = 0xCA451A4E
ZFS = 0x2FC12FC1

SQUASHFS = 0x73717368
EROFS = 0xE0F5E1E2

TMPFS = 0x01021994
RAMFS = 0x858458F6

OVERLAYFS = 0x794C7630
ECRYPTFS = 0x0000F15F
FUSE = 0x65735546

NFS = 0x6969
SMB = 0x517B
SMB2 = 0xFE534D42
CIFS = 0xFF534D42
AFS = 0x5346414F
KAFS = 0x6B414653
V9FS = 0x01021997
CEPH = 0x00C36400
CODA = 0x73757245
LUSTRE = 0x0BD00BD0
GPFS = 0x47504653
BEEGFS = 0x19830326
PANFS = 0xAAD7AAEA
ORANGEFS = 0x20030528
