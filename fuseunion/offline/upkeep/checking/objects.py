"""Each object of an upper by itself, and beside the lowers where they are known: marks, whiteouts, stored owners."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from fuseunion.core.disk import wh_files
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.marks.marks import is_device, is_marked_whiteout
from fuseunion.core.ownership import facts, stored_names
from fuseunion.core.tree.directory import Directory
from fuseunion.core.union import Union
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.offline.upkeep.checking.described import at_name, attribute
from fuseunion.offline.upkeep.checking.findings import Finding, Repair, Severity

_KERNEL_INDEX = frozenset({b"nlink", b"upper"})
"""What the option `index` of the kernel leaves on objects (fs/overlayfs/overlayfs.h)."""

_ORIGIN_HEADER = struct.Struct("<BQQq")


class Seen(NamedTuple):
    """One object, or the root.

    Attributes:
        real, name: where it lies; the name is empty for the root.
        path: in the upper.
        st: its lstat.
        attributes: the names of its attributes.
    """

    real: RealDir
    name: bytes
    path: bytes
    st: os.stat_result
    attributes: tuple[bytes, ...]

    def hold(self) -> int:
        """An O_PATH descriptor of it, which the caller closes."""
        return os.dup(self.real.fd()) if not self.name else self.real.hold(self.name)


class Objects:
    """Goes over the objects of an upper.

    Args:
        root: of the upper.
        union: the upper over its lowers; None where they are not known.
        stores: owners and modes are stored, not real.

    Attributes:
        numbers: the inode numbers of all objects, once all were gone over.
    """

    def __init__(self, root: RealDir, union: Union | None, *, stores: bool) -> None:
        self._root = root
        self._union = union
        self._stores = stores
        self.numbers: set[int] = set()
        self._foreign: list[bytes] = []

    def findings(self) -> Iterator[Finding]:
        """What is wrong, parents first.

        Raises:
            OSError: of the layers.
        """
        st = self._root.own_stat()
        self.numbers.add(st.st_ino)
        yield from self._of_object(Seen(self._root, b"", b"", st, _attributes(self._root.itself())))
        merged = self._union.root if self._union is not None else None
        waiting: list[tuple[RealDir, Directory | None, bytes, bool]] = [(self._root, merged, b"", False)]
        while waiting:
            real, directory, way, alone = waiting.pop()
            alone = alone or _is_opaque(real)
            for name in sorted(real.names(), reverse=True):
                found = real.stat(name)
                if found is None:
                    continue
                path = way + b"/" + name if way else name
                self.numbers.add(found.st_ino)
                if wh_files.is_reserved(name):
                    yield from self._of_wh_file(real, name, path, directory, alone=alone)
                elif is_device(found):
                    yield from self._of_whiteout(real, name, path, name, directory, alone=alone)
                else:
                    yield from self._of_name(real, name, path, found, directory, waiting, alone=alone)
            real.close()
        if self._foreign:
            others = f" and {len(self._foreign) - 1} more" if len(self._foreign) > 1 else ""
            text = f"belongs to another user{others}, so that you may not change all of it"
            yield Finding("foreign-owner", Severity.NOTE, self._foreign[0], text)

    # -- names that hide ---------------------------------------------------------------------------------------------

    def _of_wh_file(
        self, real: RealDir, name: bytes, path: bytes, directory: Directory | None, *, alone: bool
    ) -> Iterator[Finding]:
        if name == wh_files.OPAQUE:
            return
        hidden = wh_files.name_hidden_by(name)
        if not hidden:
            yield Finding("strange-wh-file", Severity.NOTE, path, "has a name of AUFS's own, which means nothing")
        elif real.stat(hidden) is None:
            yield from self._of_whiteout(real, name, path, hidden, directory, alone=alone)

    def _of_whiteout(
        self, real: RealDir, name: bytes, path: bytes, hidden: bytes, directory: Directory | None, *, alone: bool
    ) -> Iterator[Finding]:
        if alone or self._hides_nothing(directory, hidden):
            text = "is a whiteout of nothing" + (", in an opaque directory" if alone else "")
            repair = Repair("removes it", partial(_remove, real, name), partial(at_name, real, name))
            yield Finding("whiteout-of-nothing", Severity.LEFTOVER, path, text, repair)

    def _hides_nothing(self, directory: Directory | None, name: bytes) -> bool:
        if self._union is None or directory is None:
            return False
        try:
            return self._union.lower_stat(directory, name) is None
        except OSError:
            return False  # something is there

    # -- objects -----------------------------------------------------------------------------------------------------

    def _of_name(
        self,
        real: RealDir,
        name: bytes,
        path: bytes,
        st: os.stat_result,
        parent: Directory | None,
        waiting: list[tuple[RealDir, Directory | None, bytes, bool]],
        *,
        alone: bool,
    ) -> Iterator[Finding]:
        if not self._stores and os.geteuid() and st.st_uid != os.geteuid():
            self._foreign.append(path)
        with real.held(name) as held:
            attributes = as_owner_of(held, lambda: _attributes(held))
        seen = Seen(real, name, path, st, attributes)
        suffixes = {suffix for attribute in attributes if (suffix := _suffix(attribute)) is not None}
        if is_marked_whiteout(st, suffixes):
            yield from self._of_whiteout(real, name, path, name, parent, alone=alone)
            return
        yield from self._of_object(seen)
        inode, code = None, 0
        if parent is not None and self._union is not None:
            try:
                inode = self._union.lookup(parent, name)
            except MalformedError as error:
                code = error.errno or 0
            except OSError as error:
                code = -(error.errno or 0)
        if stat.S_ISDIR(st.st_mode):
            directory = inode if isinstance(inode, Directory) else None
            yield from self._of_redirect(seen, suffixes, directory)
            child = real.child(name, st)
            if real.is_mount_point(name, st):
                yield Finding("mounted", Severity.NOTE, path, "is a mount point; what is mounted is not looked at")
            else:
                waiting.append((child, directory, path, alone and xattr_names.REDIRECT not in suffixes))
        elif xattr_names.METACOPY in suffixes:
            yield from self._of_metacopy(path, code)

    def _of_object(self, seen: Seen) -> Iterator[Finding]:
        """What its own marks say."""
        is_directory, is_regular = stat.S_ISDIR(seen.st.st_mode), stat.S_ISREG(seen.st.st_mode)
        values = {name: _value(seen, name) for name in seen.attributes if _suffix(name) is not None}
        suffixes = {_suffix(name) for name in values}
        for name, value in values.items():
            suffix = _suffix(name)
            drop = Repair("removes the mark", partial(_drop, seen, name), partial(attribute, name, value))
            if suffix == xattr_names.OPAQUE:
                meaningless = not is_directory or value not in (b"y", b"x")
                alone = sum(_suffix(other) == suffix for other in values) == 1
                if meaningless:
                    text = f"has a malformed mark {name.decode()}, which hides nothing"
                    yield Finding("malformed-mark", Severity.ERROR, seen.path, text, drop if alone else None)
            elif (suffix == xattr_names.WHITEOUT and (not is_regular or seen.st.st_size)) or (
                suffix == xattr_names.METACOPY and not is_regular
            ):
                yield Finding("meaningless-mark", Severity.LEFTOVER, seen.path, _means_nothing(name), drop)
            elif suffix == xattr_names.REDIRECT:
                useless = _value_is_opaque(values) if is_directory else xattr_names.METACOPY not in suffixes
                if useless:
                    yield Finding("meaningless-mark", Severity.LEFTOVER, seen.path, _means_nothing(name), drop)
            elif suffix == xattr_names.UNION_ORIGIN and not _is_origin(value, seen.st):
                text = "has a mark of where it was copied from that is not its own"
                yield Finding("stale-origin", Severity.LEFTOVER, seen.path, text, drop)
            elif suffix in _KERNEL_INDEX:
                text = f"has a mark of the kernel's index, {name.decode()}"
                yield Finding("kernel-index", Severity.NOTE, seen.path, text)
        yield from self._of_owner(seen)

    def _of_owner(self, seen: Seen) -> Iterator[Finding]:
        for name in stored_names.STORED & {*seen.attributes}:
            try:
                facts.parse(_value(seen, name))
            except OSError:
                text = f"has a malformed owner in {name.decode()}; set it anew, or remove it to show the real owner"
                yield Finding("malformed-owner", Severity.ERROR, seen.path, text)
                continue
            if not self._stores and seen.path:
                text = f"has an owner in {name.decode()}, but the upper stores none: its root has no such attribute"
                yield Finding("unused-owner", Severity.NOTE, seen.path, text)

    def _of_redirect(self, seen: Seen, suffixes: set[bytes], directory: Directory | None) -> Iterator[Finding]:
        name = next((name for name in seen.attributes if _suffix(name) == xattr_names.REDIRECT), None)
        if name is None or xattr_names.REDIRECT not in suffixes:
            return
        if _is_opaque(seen.real.child(seen.name, seen.st)):
            return
        value = _value(seen, name)
        cut = Repair(
            "makes it opaque, then removes the mark", partial(_cut_off, seen, name), partial(attribute, name, value)
        )
        if not _is_redirect(value):
            text = "says in a malformed way where it was renamed from, and cannot be used"
            yield Finding("malformed-redirect", Severity.ERROR, seen.path, text, cut)
        elif directory is not None and not directory.lowers:
            text = "was renamed from a directory that no lower has"
            yield Finding("impossible-redirect", Severity.ERROR, seen.path, text, cut)

    def _of_metacopy(self, path: bytes, code: int) -> Iterator[Finding]:
        if self._union is None:
            text = "has its data in a lower (metacopy): it cannot be told whether it is there without --lower"
            yield Finding("metacopy", Severity.NOTE, path, text)
        elif code == errno.EPERM:
            text = "has its data in a lower (metacopy), but its mark is not believed"
            yield Finding("metacopy-not-believed", Severity.ERROR, path, text)
        elif code > 0:
            text = "has its data in a lower (metacopy), where it is not; give it back, or remove the file"
            yield Finding("metacopy-without-data", Severity.ERROR, path, text)


# -- reading ---------------------------------------------------------------------------------------------------------


def _attributes(held: RealObject) -> tuple[bytes, ...]:
    try:
        return tuple(sorted(os.fsencode(name) for name in held.listxattr()))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return ()
        raise


def _suffix(name: bytes) -> bytes | None:
    """What a mark is called after its prefix; None for another attribute, and for a user's escaped one."""
    if not xattr_names.is_private(name):
        return None
    for prefix in xattr_names.MARK_PREFIXES:
        if name.startswith(prefix):
            return name[len(prefix) :]
    return None


def _value(seen: Seen, name: bytes) -> bytes:
    return _with(seen, lambda held: held.getxattr(name))


def _with(seen: Seen, call: Callable[[RealObject], bytes]) -> bytes:
    fd = seen.hold()
    try:
        held = RealObject(fd)
        return as_owner_of(held, lambda: call(held))
    finally:
        os.close(fd)


def _value_is_opaque(values: dict[bytes, bytes]) -> bool:
    return next((value for name, value in values.items() if _suffix(name) == xattr_names.OPAQUE), b"") == b"y"


def _is_opaque(real: RealDir) -> bool:
    if real.has_opaque_file():
        return True
    held = real.itself()
    for prefix in xattr_names.MARK_PREFIXES:
        try:
            return as_owner_of(held, partial(held.getxattr, prefix + xattr_names.OPAQUE)) == b"y"
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                raise
    return False


def _is_redirect(value: bytes) -> bool:
    """As fs/overlayfs/namei.c ovl_get_redirect_xattr has it."""
    absolute = value.startswith(b"/")
    names = value[absolute:].split(b"/")
    strange = not all(names) or b"." in names or b".." in names or b"\0" in value
    return not strange and (absolute or len(names) == 1) and len(value) < 4096


def _is_origin(value: bytes, st: os.stat_result) -> bool:
    if len(value) < _ORIGIN_HEADER.size:
        return False
    version, number, _, _ = _ORIGIN_HEADER.unpack_from(value)
    return bool(version == 1 and number == st.st_ino)


def _means_nothing(name: bytes) -> str:
    return f"has a mark {name.decode()} that means nothing on it"


# -- repairing -------------------------------------------------------------------------------------------------------


def _remove(real: RealDir, name: bytes) -> None:
    with real.times_kept():
        real.unlink(name)


def _drop(seen: Seen, name: bytes) -> None:
    def remove(held: RealObject) -> bytes:
        held.removexattr(name)
        return b""

    _with(seen, remove)


def _cut_off(seen: Seen, redirect: bytes) -> None:
    """Let a directory show what is in the upper, and no lower: opaque first, so that nothing else shows in between."""
    prefix = next(prefix for prefix in xattr_names.MARK_PREFIXES if redirect.startswith(prefix))

    def hide(held: RealObject) -> bytes:
        held.setxattr(prefix + xattr_names.OPAQUE, b"y")
        return b""

    _with(seen, hide)
    _drop(seen, redirect)
