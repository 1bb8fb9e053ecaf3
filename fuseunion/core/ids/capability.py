"""File capabilities: the xattr `security.capability`.

Three versions are on disk (include/uapi/linux/capability.h, security/commoncap.c), all little endian:

    | magic | permitted low | inheritable low |                                              version 1
    | magic | permitted low | inheritable low | permitted high | inheritable high |          version 2
    | magic | permitted low | inheritable low | permitted high | inheritable high | rootid | version 3

The magic holds the version in its top byte and the "effective" flag in bit 0. rootid is the user who is root
in the namespaces where the capabilities count; version 2 means user 0 of the reader. The kernel translates
between 2 and 3 for a process that reads or writes through a user namespace, so what the daemon reads is already in
its own ids; what remains for us is the id map, which shifts the root id as an id-mapped mount does
(cap_inode_getsecurity, cap_convert_nscap).
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from fuseunion.core.ids.identity import Identity
from fuseunion.linux.os_error import os_error

_V2 = 0x02000000
_V3 = 0x03000000
_VERSION = 0xFF000000
_EFFECTIVE = 0x00000001

_SETS = struct.Struct("<IIIII")
_ROOTID = struct.Struct("<I")


class Capability(NamedTuple):
    """A parsed `security.capability`.

    Attributes:
        permitted, inheritable: bit sets over capabilities(7).
        effective: raised at once when the program starts.
        rootid: the root of the namespaces where they count; 0 is version 2.
    """

    permitted: int
    inheritable: int
    effective: bool
    rootid: int = 0


def parse(value: bytes) -> Capability:
    """Read a version 2 or 3 value; the kernel takes no other (security/commoncap.c cap_inode_getsecurity).

    Raises:
        OSError: EINVAL for any other size or version.
    """
    if len(value) in (_SETS.size, _SETS.size + _ROOTID.size):
        magic, permitted_low, inheritable_low, permitted_high, inheritable_high = _SETS.unpack_from(value)
        version = _V2 if len(value) == _SETS.size else _V3
        if magic & _VERSION == version:
            (rootid,) = _ROOTID.unpack_from(value, _SETS.size) if version == _V3 else (0,)
            return Capability(
                permitted_low | permitted_high << 32,
                inheritable_low | inheritable_high << 32,
                bool(magic & _EFFECTIVE),
                rootid,
            )
    raise os_error(errno.EINVAL)


def unparse(capability: Capability) -> bytes:
    """The shortest value that says it: version 2 where the root id is 0, else version 3."""
    version = _V3 if capability.rootid else _V2
    low = 0xFFFFFFFF
    value = _SETS.pack(
        version | (_EFFECTIVE if capability.effective else 0),
        capability.permitted & low,
        capability.inheritable & low,
        capability.permitted >> 32,
        capability.inheritable >> 32,
    )
    return value + _ROOTID.pack(capability.rootid) if capability.rootid else value


def to_shown(value: bytes, identity: Identity) -> bytes:
    """A value from disk with the root id that users of the mount see.

    Raises:
        OSError: EINVAL as `parse`; EOVERFLOW where the map does not cover the root id, as the kernel says of a
            root outside the reader's namespace.
    """
    if identity.uids.trivial:
        return value
    capability = parse(value)
    shown = identity.uids.shown_or_none(capability.rootid)
    if shown is None:
        raise os_error(errno.EOVERFLOW)
    return unparse(capability._replace(rootid=shown))


def to_disk(value: bytes, identity: Identity) -> bytes:
    """A value from a user of the mount with the root id to store.

    Raises:
        OSError: EINVAL as `parse`, or where the map does not cover the root id.
    """
    if identity.uids.trivial:
        return value
    capability = parse(value)
    return unparse(capability._replace(rootid=identity.uids.to_disk(capability.rootid)))
