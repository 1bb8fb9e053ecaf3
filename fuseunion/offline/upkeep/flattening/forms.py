"""In which form whiteouts and opaque marks are written, and bringing those of an upper into one form, in place.

    kernel            0/0 devices, trusted.overlay.opaque; user.overlay.opaque for `userxattr`
    fuse-overlayfs    0/0 devices, both an attribute and `.wh..wh..opq`
    OCI layer         `.wh.NAME` and `.wh..wh..opq`, no marks in attributes

What is new is made before what is old goes, and every reader counts both: so a crash between two calls changes nothing
of what is shown, and the same command goes on.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from fuseunion.core.disk import wh_files
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format import xattr_names
from fuseunion.core.marks.contents import Content, contents
from fuseunion.core.marks.marks import is_device
from fuseunion.core.marks.whiteout_writer import WhiteoutWriter
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.objects.permission import as_owner, as_owner_of
from fuseunion.linux.objects.real_object import RealObject

TRUSTED, USER = xattr_names.PREFIXES

_NAME_MAX = 255
_GONE = (xattr_names.REDIRECT, xattr_names.METACOPY, xattr_names.WHITEOUT)
"""Marks that are in none of the forms once everything that they stand for is in the upper."""


class Form(NamedTuple):
    """One form.

    Attributes:
        label: how messages name it.
        prefixes: of the attribute `opaque`.
        devices: whiteouts are devices, not `.wh.` files.
        opaque_file: opaque directories have `.wh..wh..opq` as well.
        bare: no attribute of a union stays.
        real_owners: owners are those of the files.
    """

    label: str
    prefixes: tuple[bytes, ...]
    devices: bool = True
    opaque_file: bool = False
    bare: bool = False
    real_owners: bool = True


class Rewriter:
    """Brings the marks of an upper into one form.

    Args:
        root: of the upper.
        writer: of whiteouts.
        form: the one that is wanted.
    """

    def __init__(self, root: RealDir, writer: WhiteoutWriter, form: Form) -> None:
        self._root = root
        self._writer = writer
        self._form = form

    def check(self) -> None:
        """Refuse what the form cannot say, before anything changes.

        Raises:
            UserError: LAYERS.
        """
        if self._form.devices:
            return
        for directory, way in self._directories():
            for content in contents(directory):
                if content.is_whiteout and len(wh_files.PREFIX + content.name) > _NAME_MAX:
                    path = os.path.join(self._root.layer.label, os.fsdecode(_join(way, content.name)))
                    raise UserError(
                        f"the whiteout '{path}' has a name that is too long for a '.wh.' file; nothing was changed",
                        ExitCode.LAYERS,
                    )

    def rewrite(self) -> int:
        """Do it; returns how many names and directories have changed.

        Raises:
            OSError: of the layer; the same call goes on then.
        """
        changed = 0
        for directory, _ in self._directories():
            changed += self._of_directory(directory)
            for content in list(contents(directory)):
                changed += self._of_name(directory, content)
        return changed

    def _directories(self) -> Iterator[tuple[RealDir, bytes]]:
        waiting = [(self._root, b"")]
        while waiting:
            directory, way = waiting.pop()
            yield directory, way
            for name in directory.names():
                st = directory.stat(name)
                if st is not None and stat.S_ISDIR(st.st_mode) and not directory.is_mount_point(name, st):
                    waiting.append((directory.child(name, st), _join(way, name)))
            directory.close()

    # -- directories -------------------------------------------------------------------------------------------------

    def _of_directory(self, directory: RealDir) -> bool:
        form, held = self._form, directory.itself()
        found = _attributes(held)
        opaque = directory.has_opaque_file() or _first_opaque(held, found) == b"y"
        before = (frozenset(found), directory.has_opaque_file())
        if opaque and form.opaque_file and not directory.has_opaque_file():
            with directory.times_kept():
                as_owner(partial(_make_file, directory, wh_files.OPAQUE), directory)
        if opaque and not form.bare:
            for prefix in form.prefixes:
                _set(held, prefix + xattr_names.OPAQUE)
        for name in found:
            suffix = _suffix(name)
            if suffix is None:
                continue
            unwanted = suffix in _GONE or (suffix == xattr_names.OPAQUE and not self._keeps(name, opaque=opaque))
            if unwanted or form.bare:
                as_owner_of(held, partial(held.removexattr, name))
        if directory.has_opaque_file() and not form.opaque_file:
            with directory.times_kept():
                directory.unlink(wh_files.OPAQUE)
                directory.note_wh_file(wh_files.OPAQUE, present=False)
        return before != (frozenset(_attributes(held)), directory.has_opaque_file())

    def _keeps(self, name: bytes, *, opaque: bool) -> bool:
        return opaque and name.removesuffix(xattr_names.OPAQUE) in self._form.prefixes

    # -- names -------------------------------------------------------------------------------------------------------

    def _of_name(self, directory: RealDir, content: Content) -> bool:
        name = content.name
        if content.is_whiteout:
            return self._of_whiteout(directory, name)
        changed = False
        if directory.hides(name):  # a `.wh.` file beside the object
            if content.is_directory and not content.opaque:
                with directory.held(name) as held:
                    self._writer.make_opaque(held, directory.child(name))
            with directory.times_kept():
                self._writer.drop_file_mark(directory, name)
            changed = True
        if content.st is not None and not content.is_directory:
            with directory.held(name) as held:
                for attribute in as_owner_of(held, partial(_attributes, held)):
                    suffix = _suffix(attribute)
                    if suffix is not None and (suffix in _GONE or self._form.bare):
                        as_owner_of(held, partial(held.removexattr, attribute))
                        changed = True
        return changed

    def _of_whiteout(self, directory: RealDir, name: bytes) -> bool:
        st = directory.stat(name)
        device = st is not None and is_device(st)
        in_file = directory.hides(name)
        with directory.times_kept():
            if self._form.devices:
                if st is None:
                    self._writer.cover(directory, name)
                elif not device:
                    self._writer.replace_file(directory, name)
                if in_file:
                    self._writer.drop_file_mark(directory, name)
                return in_file or not device
            if not in_file:
                mark = wh_files.PREFIX + name
                as_owner(partial(_make_file, directory, mark), directory)
                directory.note_wh_file(mark, present=True)
            if st is not None:
                directory.unlink(name)
            return st is not None


def _make_file(directory: RealDir, name: bytes) -> None:
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=directory.fd()))
    except FileExistsError:
        pass  # it says the same
    directory.note_wh_file(name, present=True)


def _set(held: RealObject, name: bytes) -> None:
    try:
        if as_owner_of(held, partial(held.getxattr, name)) == b"y":
            return
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
    as_owner_of(held, partial(held.setxattr, name, b"y"))


def _attributes(held: RealObject) -> list[bytes]:
    try:
        return sorted(held.listxattr())
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def _first_opaque(held: RealObject, names: list[bytes]) -> bytes:
    for prefix in xattr_names.MARK_PREFIXES:
        if prefix + xattr_names.OPAQUE in names:
            return as_owner_of(held, partial(held.getxattr, prefix + xattr_names.OPAQUE))
    return b""


def _suffix(name: bytes) -> bytes | None:
    """What a mark is called after its prefix; None for what is none, and for a user's escaped attribute."""
    if not xattr_names.is_private(name):
        return None
    return next(name[len(prefix) :] for prefix in xattr_names.MARK_PREFIXES if name.startswith(prefix))


def _join(way: bytes, name: bytes) -> bytes:
    return way + b"/" + name if way else name
