"""Names that filesystems of paths give to removed files while they are open.

    .fuse_hidden + 16 digits    libfuse (lib/fuse.c hidden_name), so fuse2fs
    .nfs + 24 digits            NFS (fs/nfs/unlink.c nfs_sillyrename)

They come and go by themselves. The kernel would remember a listing with them, so they are in none.
"""

from __future__ import annotations

_PREFIXES = (b".fuse_hidden", b".nfs")
_LENGTH = 28


def is_of_removed(name: bytes) -> bool:
    """Whether a name is such a one."""
    return len(name) == _LENGTH and name.startswith(_PREFIXES)
