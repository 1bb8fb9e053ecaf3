"""What an image is, how it is and how full, without mounting it and while others use it."""

from __future__ import annotations

import os
import re
import struct
from typing import Any

from fuseunion.errors import UserError
from fuseunion.images import recognise, used
from fuseunion.images.recognise import Kind
from fuseunion.images.sif.layout import ARCHITECTURES, DataType, FsType, Sif, Use
from fuseunion.images.tools import programs
from fuseunion.images.tools.ext import facts
from fuseunion.images.tools.opened import Opened, user_of

_FILESYSTEMS: dict[int, str] = {
    FsType.SQUASHFS: "squashfs",
    FsType.EXT: "ext3",
    FsType.ARCHIVE: "archive",
    FsType.RAW: "raw",
    FsType.ENCRYPTED_SQUASHFS: "encrypted squashfs",
    FsType.GOCRYPTFS_SQUASHFS: "gocryptfs squashfs",
}
_COMPRESSIONS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
"""fs/squashfs/squashfs_fs.h"""

_LOOK = 5.0
"""Seconds that debugfs may take to look at one directory: an image may be anybody's."""

Description = dict[str, Any]
"""For programs: names and plain values; fuseunion/cli shows them to people, in this order."""


def describe(image: Opened) -> Description:
    """All that can be told of an image.

    Args:
        image: opened to look at it.

    Raises:
        UserError: LAYERS: the filesystem makes no sense.
        OSError: EIO.
    """
    st = os.fstat(image.fd)
    found: Description = {
        "path": image.path,
        "kind": image.kind.value,
        "size": st.st_size,
        "allocated": st.st_blocks * 512,
        "owner": [st.st_uid, st.st_gid],
        "in_use": user_of(image),
    }
    if image.sif is not None:
        found |= _sif(image.sif)
    if image.kind is not Kind.TAR:
        found["filesystems"] = [_filesystem(image, *place) for place in _places(image)]
    return found


def _places(image: Opened) -> list[tuple[int | None, int, int]]:
    """The partition, the offset and the size of each filesystem that can be looked at."""
    if image.sif is None:
        return [(None, 0, image.size)]
    meant = [*([image.sif.primary] if image.sif.primary else []), *image.sif.overlays]
    return [(each.number, each.offset, each.size) for each in meant]


def _sif(sif: Sif) -> Description:
    return {
        "architecture": ARCHITECTURES.get(sif.architecture, "unknown"),
        "created": sif.created,
        "modified": sif.modified,
        "signed": sif.is_signed,
        "encrypted": sif.is_encrypted,
        "descriptors": [
            {
                "id": each.number,
                "type": _named(DataType, each.kind),
                "group": each.group,
                "offset": each.offset,
                "size": each.size,
                "name": each.name,
                **(
                    {"filesystem": _FILESYSTEMS.get(each.filesystem, "unknown"), "use": _named(Use, each.use or 0)}
                    if each.filesystem is not None
                    else {}
                ),
            }
            for each in sif.descriptors
        ],
    }


def _named(names: type[DataType] | type[Use], number: int) -> str:
    try:
        return names(number).name.lower().replace("_", " ")
    except ValueError:
        return f"unknown ({number:#x})"


def _filesystem(image: Opened, partition: int | None, offset: int, size: int) -> Description:
    found: Description = {"partition": partition} if partition is not None else {}
    kind = recognise.kind_of(image.fd, offset)
    if kind is Kind.EXT:
        return found | _ext(image, offset)
    if kind is Kind.SQUASHFS:
        return found | _squashfs(image.fd, offset)
    return found | {"type": "unknown", "size": size}


def _squashfs(fd: int, offset: int) -> Description:
    raw = os.pread(fd, 96, offset).ljust(96, b"\0")
    inodes, made, block, _, compression = struct.unpack_from("<4IH", raw, 4)
    (used,) = struct.unpack_from("<Q", raw, 40)
    return {
        "type": "squashfs",
        "size": used,
        "inodes": inodes,
        "created": made,
        "block_size": block,
        "compression": _COMPRESSIONS.get(compression, "unknown"),
    }


def _ext(image: Opened, offset: int) -> Description:
    found = facts.read(image.fd, image.path, offset)
    state = "has errors" if not found.is_clean and found.errors else "clean" if found.is_clean else "not unmounted"
    return {
        "type": found.kind,
        "state": "needs recovery" if found.needs_recovery else state,
        "size": found.size,
        "used": found.size - found.free_blocks * found.block,
        "free": found.free_blocks * found.block,
        "inodes": found.inodes,
        "used_inodes": found.inodes - found.free_inodes,
        "free_inodes": found.free_inodes,
        "block_size": found.block,
        "reserved": found.reserved * found.block,
        "owner_of_upper": _owner(image, offset, "upper"),
        "last_used_with": _used(image, offset),
        "created": found.created or None,
        "last_mounted": found.mounted or None,
        "last_mounted_at": found.where or None,
        "last_written": found.written or None,
        "last_checked": found.checked or None,
        "for_apptainer": found.is_for_apptainer,
    }


def _owner(image: Opened, offset: int, name: str) -> list[int] | None:
    """The owner of a directory in the root, as debugfs says; None where there is none, or no debugfs."""
    try:
        _, printed = programs.run(
            f"look into '{image.path}'",
            ["debugfs", "-R", f"stat /{name}", programs.by_descriptor(image.fd, offset)],
            fds=(image.fd,),
            limit=_LOOK,
        )
    except UserError:
        return None
    found = re.search(r"^User: +(-?[0-9]+) +Group: +(-?[0-9]+)", printed, re.MULTILINE)
    # It shows ids as signed numbers.
    return [int(number) & 0xFFFFFFFF for number in found.groups()] if found else None


def _used(image: Opened, offset: int) -> list[str] | None:
    """What mounted it last, and over what; None where that was not noted, or there is no debugfs."""
    try:
        _, printed = programs.run(
            f"look into '{image.path}'",
            ["debugfs", "-R", f"ea_get -x -V /work {used.NAME}", programs.by_descriptor(image.fd, offset)],
            fds=(image.fd,),
            limit=_LOOK,
        )
        return used.told(bytes.fromhex(printed)) or None
    except (UserError, ValueError):
        return None
