"""What the superblock of an ext2, ext3 or ext4 filesystem says (fs/ext4/ext4.h, struct ext4_super_block).

Read by ourselves, because it is one struct at a fixed place, and needs no program, no permission to write and no
unmounted image. What is in it may be anything: the numbers are shown, and used only within their ranges.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from fuseunion.errors import ExitCode, UserError

_AT = 1024
_SIZE = 1024
_MAGIC = 0xEF53

HAS_JOURNAL = 0x4
_RECOVER = 0x4
_64BIT = 0x80

_APPTAINERS = (0x2 | 0x4 | 0x10, 0x1 | 0x2 | 0x4)
"""The incompatible features and those for writing that Apptainer accepts (pkg/image/ext3.go): filetype, recover,
meta_bg; sparse_super, large_file, btree_dir."""

_ONLY_EXT4 = (0x40 | 0x80 | 0x200 | 0x400 | 0x2000 | 0x8000 | 0x10000, 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400)
"""extents, 64bit, flex_bg, ea_inode, csum_seed, inline_data, encrypt; huge_file, gdt_csum, dir_nlink, extra_isize,
bigalloc, metadata_csum."""


@dataclass(frozen=True, slots=True)
class ExtFacts:
    """One filesystem.

    Attributes:
        block: size of a block in bytes.
        blocks, free_blocks: in blocks.
        inodes, free_inodes: how many.
        reserved: blocks that only root may use.
        created: when it was made, Unix time; 0 where that is not noted.
        mounted: when it was last mounted; 0 for never.
        written: when it was last written.
        checked: when e2fsck looked at all of it last.
        errors: how many the kernel has met.
        is_clean: whether it was unmounted in order.
        needs_recovery: whether its journal holds changes.
        where: the path at which it was last mounted, as it was noted.
        compatible, incompatible, for_writing: the feature bits.
    """

    block: int
    blocks: int
    free_blocks: int
    inodes: int
    free_inodes: int
    reserved: int
    created: int
    mounted: int
    written: int
    checked: int
    errors: int
    is_clean: bool
    needs_recovery: bool
    where: str
    compatible: int
    incompatible: int
    for_writing: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.blocks * self.block

    @property
    def kind(self) -> str:
        """ext2, ext3 or ext4: the first that knows all its features."""
        if self.incompatible & _ONLY_EXT4[0] or self.for_writing & _ONLY_EXT4[1]:
            return "ext4"
        return "ext3" if self.compatible & HAS_JOURNAL else "ext2"

    @property
    def is_for_apptainer(self) -> bool:
        """Whether Apptainer would mount it as an overlay."""
        unknown = self.incompatible & ~_APPTAINERS[0] or self.for_writing & ~_APPTAINERS[1]
        return bool(self.compatible & HAS_JOURNAL) and not unknown


def read(fd: int, path: str, offset: int = 0) -> ExtFacts:
    """The facts of a filesystem.

    Args:
        path: of the file, for messages.
        offset: of the filesystem in it, in bytes.

    Raises:
        UserError: LAYERS: there is none, or its superblock is nonsense.
        OSError: EIO.
    """
    raw = os.pread(fd, _SIZE, offset + _AT)
    if len(raw) < _SIZE or struct.unpack_from("<H", raw, 56)[0] != _MAGIC:
        raise UserError(f"there is no ext filesystem in '{path}'", ExitCode.LAYERS)
    inodes, blocks, reserved, free_blocks, free_inodes, _, log_block = struct.unpack_from("<7I", raw, 0)
    mounted, written = struct.unpack_from("<2I", raw, 44)
    state = struct.unpack_from("<H", raw, 58)[0]
    checked = struct.unpack_from("<I", raw, 64)[0]
    compatible, incompatible, for_writing = struct.unpack_from("<3I", raw, 92)
    if log_block > 6 or not inodes or not blocks:
        raise UserError(
            f"the superblock of '{path}' is damaged; fuseunion image check --repair may know another", ExitCode.LAYERS
        )
    if incompatible & _64BIT:
        high = struct.unpack_from("<3I", raw, 336)
        blocks, reserved, free_blocks = (
            low | each << 32 for low, each in zip((blocks, reserved, free_blocks), high, strict=True)
        )
    return ExtFacts(
        block=1024 << log_block,
        blocks=blocks,
        free_blocks=min(free_blocks, blocks),
        inodes=inodes,
        free_inodes=min(free_inodes, inodes),
        reserved=min(reserved, blocks),
        created=struct.unpack_from("<I", raw, 264)[0],
        mounted=mounted,
        written=written,
        checked=checked,
        errors=struct.unpack_from("<I", raw, 404)[0],
        is_clean=bool(state & 1) and not state & 2,
        needs_recovery=bool(incompatible & _RECOVER),
        where=os.fsdecode(raw[136:200].partition(b"\0")[0]),
        compatible=compatible,
        incompatible=incompatible,
        for_writing=for_writing,
    )
