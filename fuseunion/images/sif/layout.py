"""The Singularity Image Format as it stands on disk: offsets, numbers, and the two records (github.com/apptainer/sif,
pkg/sif/sif.go and descriptor.go).

Everything is little endian and packed. A file is: the header (128 bytes), a table of descriptors (585 bytes each, a
fixed number of them, used or not), and the data that the descriptors name, each aligned to a block.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC_OFFSET = 32
MAGIC = b"SIF_MAGIC\0"
VERSION = b"01\0"

HEADER = struct.Struct("<32s10s3s3s16s8q")
"""Launch script, magic, version, architecture, UUID; then created, modified, descriptors free, descriptors in all,
offset and size of the table, offset and size of the data."""

DESCRIPTOR = struct.Struct("<iBIIIqqqqqqq128s384s")
"""Type, used, id, group, linked id; offset, size, size with its alignment, created, modified, uid, gid; name, extra."""

PARTITION = struct.Struct("<ii3s")
"""How the extra field of a partition begins: filesystem, use, architecture."""

USED_OFFSET = 4
"""Of the byte in a descriptor that says whether it is one."""

COUNTS_OFFSET = 72
"""Of what changes in the header when data is added: from `modified` to its end, within one sector of any disk."""

GROUP = 0xF0000000
"""Set in a group number, and in a linked id that is the number of a group."""

ALIGNMENT = 4096
"""Of the data of a partition, in bytes."""

MOST_DESCRIPTORS = 4096
"""What a table may have; Apptainer makes 48."""

ARCHITECTURES = {
    b"00": "unknown",
    b"01": "386",
    b"02": "amd64",
    b"03": "arm",
    b"04": "arm64",
    b"05": "ppc64",
    b"06": "ppc64le",
    b"07": "mips",
    b"08": "mipsle",
    b"09": "mips64",
    b"10": "mips64le",
    b"11": "s390x",
    b"12": "riscv64",
    b"13": "loong64",
}


class DataType(IntEnum):
    """What a descriptor describes."""

    DEFINITION = 0x4001
    ENVIRONMENT = 0x4002
    LABELS = 0x4003
    PARTITION = 0x4004
    SIGNATURE = 0x4005
    JSON = 0x4006
    GENERIC = 0x4007
    CRYPTO = 0x4008
    SBOM = 0x4009
    OCI_INDEX = 0x400A
    OCI_BLOB = 0x400B


class FsType(IntEnum):
    """The filesystem of a partition."""

    SQUASHFS = 1
    EXT = 2
    ARCHIVE = 3
    RAW = 4
    ENCRYPTED_SQUASHFS = 5
    GOCRYPTFS_SQUASHFS = 6


ENCRYPTED = frozenset({FsType.ENCRYPTED_SQUASHFS, FsType.GOCRYPTFS_SQUASHFS})


class Use(IntEnum):
    """What a partition is for."""

    SYSTEM = 1
    PRIMARY_SYSTEM = 2
    DATA = 3
    OVERLAY = 4


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One used descriptor.

    Attributes:
        slot: its place in the table, from 0.
        kind: a DataType, or a number that this version does not know.
        number: its id, unique in the file.
        group: of which group it is, without GROUP; None for none.
        linked: the id, or the group, that it belongs to, as a signature does; None for none.
        linked_to_group: whether that is a group.
        offset: of its data in the file, in bytes.
        size: of its data, in bytes.
        created: Unix time.
        modified: Unix time.
        uid: who made it, as the file says.
        gid: likewise.
        name: as the file says.
        filesystem: of a partition: an FsType, or an unknown number; None for anything else.
        use: of a partition: a Use, or an unknown number; None for anything else.
        architecture: of a partition: its two digits; None for anything else.
    """

    slot: int
    kind: int
    number: int
    group: int | None
    linked: int | None
    linked_to_group: bool
    offset: int
    size: int
    created: int
    modified: int
    uid: int
    gid: int
    name: str
    filesystem: int | None = None
    use: int | None = None
    architecture: bytes | None = None

    @property
    def end(self) -> int:
        """The offset after its data."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Sif:
    """What a file says of itself, checked: everything that is named lies in the file, and nothing overlaps.

    Attributes:
        architecture: two digits; ARCHITECTURES has the names.
        identity: the UUID.
        created: Unix time.
        modified: Unix time.
        slots: how many descriptors the table has, used or not.
        table: the offset of the table in bytes.
        data: the offset at which data may begin.
        descriptors: the used ones, in the order of the table.
    """

    architecture: bytes
    identity: bytes
    created: int
    modified: int
    slots: int
    table: int
    data: int
    descriptors: tuple[Descriptor, ...]

    @property
    def partitions(self) -> tuple[Descriptor, ...]:
        """Every partition, in the order of the table."""
        return tuple(each for each in self.descriptors if each.kind == DataType.PARTITION)

    @property
    def primary(self) -> Descriptor | None:
        """The root filesystem; None where there is none, as in an OCI-SIF. A file with two is refused."""
        return next((each for each in self.partitions if each.use == Use.PRIMARY_SYSTEM), None)

    @property
    def overlays(self) -> tuple[Descriptor, ...]:
        """The overlay partitions that lie on the root filesystem, the lowest first: those of its group.

        Apptainer ignores an overlay of another group (internal/pkg/image/sif.go).
        """
        primary = self.primary
        group = primary.group if primary else None
        return tuple(each for each in self.partitions if each.use == Use.OVERLAY and each.group == group)

    @property
    def is_signed(self) -> bool:
        """Whether a signature is in the file, whatever it signs."""
        return any(each.kind == DataType.SIGNATURE for each in self.descriptors)

    @property
    def is_encrypted(self) -> bool:
        """Whether a partition cannot be read without a key."""
        return any(each.filesystem in ENCRYPTED for each in self.partitions)
