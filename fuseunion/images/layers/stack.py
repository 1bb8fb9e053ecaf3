"""From an image file to the directories that become layers.

    squashfs, tar       its root
    ext                 its root; or `upper` in it, where the root holds the directories `upper` and `work` and nothing
                        else but lost+found: such an image is an overlay, of ours or of Apptainer
    SIF                 the primary partition, and on top of it each overlay partition of its group, in their order

What is written is an ext image, alone or the last overlay partition of a SIF, as `upper` and `work` in its root. They
are made where they are missing, as Apptainer makes them (internal/pkg/runtime/engine/apptainer/container_linux.go).

An image may be anybody's. The kernel parses root's own alone (trust.py); the others are shown by a program of this
user, which can do what this user can do and nothing more. What an image says of owners and set-ID bits is another
matter (`Image.is_anybodys`).
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.images import ext, locks, recognise
from fuseunion.images.layers import showing
from fuseunion.images.layers.mounted import Mounted
from fuseunion.images.layers.programs import Wanted
from fuseunion.images.layers.showing import Way
from fuseunion.images.recognise import Kind
from fuseunion.linux import owned
from fuseunion.linux.namespaces import in_first_user_namespace

_UPPER, _WORK = "upper", "work"
_OVERLAY_ROOT = frozenset({_UPPER, _WORK, "lost+found"})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o755


class Part(NamedTuple):
    """One filesystem in an image file.

    Attributes:
        kind: of the filesystem.
        offset: where it begins, in bytes.
        size: how long it is; None for the whole file.
        label: what is added to the path of the file, for messages.
    """

    kind: Kind
    offset: int = 0
    size: int | None = None
    label: str = ""


class Layer(NamedTuple):
    """A directory of an image that is ready to become a layer.

    Attributes:
        fd: an O_RDONLY descriptor.
        label: for messages.
    """

    fd: int
    label: str


class Upper(NamedTuple):
    """What is written in an image.

    Attributes:
        upper: the upper.
        work: the work directory.
        is_new: nothing has been written there yet.
        says: a line for the user; None where all is as usual.
    """

    upper: Layer
    work: Layer
    is_new: bool
    says: str | None


class Image:
    """An image file in use.

    Args:
        path: as the user wrote it.
        fd: of the file, opened and recognised; owned from now on.
        kind: what it is.
        on_mounted: told of each mount that is made, which the caller finishes.
        way: who is to show it.
        objection: why the kernel does not get it; None when it may.
    """

    def __init__(
        self,
        path: str,
        fd: int,
        kind: Kind,
        on_mounted: Callable[[Mounted], None],
        way: Way,
        objection: str | None,
    ) -> None:
        self.path = path
        self.fd = fd
        self.kind = kind
        self._on_mounted = on_mounted
        self._way = way
        self._objection = objection

    @property
    def is_anybodys(self) -> bool:
        """Whether the machine's root uses what somebody else can have written: owners and set-ID bits in it are then
        claims of that user."""
        return os.geteuid() == 0 and in_first_user_namespace() and owned.objection(os.fstat(self.fd)) is not None

    def lowers(self, *, but_the_upper: bool = False) -> list[Layer]:
        """Mount what is only read.

        Args:
            but_the_upper: the last overlay partition of a SIF is written through `upper`.

        Returns:
            The layers, topmost first; the caller closes them.

        Raises:
            UserError: LAYERS, BUSY, UNAVAILABLE.
        """
        parts = self._parts()
        if but_the_upper:
            writable = self._writable_part(parts)
            parts = [part for part in parts if part is not writable]
        layers: list[Layer] = []
        try:
            for part in parts:
                layers.append(self._lower(part))
        except BaseException:
            for layer in layers:
                os.close(layer.fd)
            raise
        return layers

    def upper(self) -> Upper:
        """Mount what is written.

        Raises:
            UserError: LAYERS, BUSY, UNAVAILABLE.
        """
        part = self._writable_part(self._parts())
        path = self.path + part.label
        self._refuse_anybodys()
        self._check(part, writable=True)
        mounted, owner = self._mount_upper(part)
        with ExitStack() as undo:
            try:
                upper_fd = _open_or_make(mounted.root_fd, _UPPER)
                undo.callback(os.close, upper_fd)
                work_fd = _open_or_make(mounted.root_fd, _WORK)
                undo.callback(os.close, work_fd)
                is_new = not os.listdir(upper_fd)
            except OSError as error:
                raise self._refused(part, error) from None
            finally:
                os.close(mounted.root_fd)
            undo.pop_all()
        says = self._says(owner) if not is_new else None
        return Upper(Layer(upper_fd, path), Layer(work_fd, f"{path} (work)"), is_new, says)

    def look_at(self, *, writable: bool, but_the_upper: bool = False) -> None:
        """Refuse what `upper` or `lowers` would refuse before anything is mounted.

        Raises:
            UserError: LAYERS, BUSY, UNAVAILABLE.
        """
        parts = self._parts()
        if writable or but_the_upper:
            chosen = self._writable_part(parts)
            parts = [part for part in parts if (part is chosen) == writable]
        if writable:
            self._refuse_anybodys()
        for part in parts:
            self._check(part, writable=writable)
            showing.look_at(self.path, Wanted(part.kind, part.offset, writable), self._objection)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _parts(self) -> list[Part]:
        """What of the file is used, topmost first.

        Raises:
            UserError: LAYERS.
        """
        if self.kind is not Kind.SIF:
            return [Part(self.kind)]
        from fuseunion.images.sif import reader

        sif = reader.read(self.fd, self.path)
        if sif.is_encrypted:
            raise UserError(
                f"SIF image '{self.path}' is encrypted, and can be used only where its key is: decrypt it first",
                ExitCode.LAYERS,
            )
        if sif.primary is None:
            raise UserError(
                f"SIF image '{self.path}' has no root filesystem (primary partition), so there is nothing to show",
                ExitCode.LAYERS,
            )
        parts = []
        for descriptor in (*reversed(sif.overlays), sif.primary):
            label = "" if descriptor is sif.primary else f" (overlay {descriptor.number})"
            kind = recognise.kind_of(self.fd, descriptor.offset)
            if kind not in (Kind.SQUASHFS, Kind.EXT):
                raise UserError(
                    f"SIF image '{self.path}' has a partition ({descriptor.number}) that is neither squashfs nor ext, "
                    "which nothing here can show",
                    ExitCode.LAYERS,
                )
            parts.append(Part(kind, descriptor.offset, descriptor.size, label))
        return parts

    def _writable_part(self, parts: list[Part]) -> Part:
        candidates = [part for part in parts if self.kind is not Kind.SIF or part.label]
        found = next((part for part in candidates if part.kind is Kind.EXT), None)
        if found is not None:
            return found
        if self.kind is Kind.SIF:
            raise UserError(
                f"SIF image '{self.path}' has no writable overlay partition; add one with: "
                f"fuseunion image create --size 1G '{self.path}'",
                ExitCode.LAYERS,
            )
        raise UserError(
            f"{self.kind.value} '{self.path}' cannot be written, so it can be a LOWER only; make an UPPER with: "
            "fuseunion image create --size 1G FILE",
            ExitCode.LAYERS,
        )

    def _refuse_anybodys(self) -> None:
        """The work directory, and what is noted in it, would be that user's word.

        Raises:
            UserError: LAYERS.
        """
        if self.is_anybodys:
            reason = owned.objection(os.fstat(self.fd))
            raise UserError(
                f"image '{self.path}' {reason}, so root does not write in it; run this as that user, or make the image "
                "root's alone",
                ExitCode.LAYERS,
            )

    def _check(self, part: Part, *, writable: bool) -> None:
        """Lock a part, and refuse what must not be mounted.

        Raises:
            UserError: LAYERS, BUSY.
        """
        locks.take(self.fd, self.path, part.offset, part.size or 0, exclusive=writable)
        locks.refuse_loop(self.fd, self.path, part.offset, part.size or 0, exclusive=writable)
        recognise.check_whole(self.path, part.kind, self.fd, part.offset, part.size)
        if part.kind is not Kind.EXT:
            return
        state = ext.state_of(self.fd, part.offset)
        if state.damaged or state.recover or (writable and not state.unmounted):
            what = "has errors" if state.damaged else "was not unmounted, or is still in use elsewhere"
            raise UserError(
                f"ext image '{self.path}' {what}; repair it with: {ext.repair(self.path, part.offset)}",
                ExitCode.LAYERS,
            )

    # -- mounts ------------------------------------------------------------------------------------------------------

    def _mounted(self, part: Part, *, writable: bool, as_root: bool) -> Mounted:
        wanted = Wanted(part.kind, part.offset, writable, as_root, part.size)
        mounted = showing.mount(self.path + part.label, wanted, self.fd, self._way, self._objection)
        self._on_mounted(mounted)
        return mounted

    def _lower(self, part: Part) -> Layer:
        self._check(part, writable=False)
        root_fd = self._mounted(part, writable=False, as_root=True).root_fd
        label = self.path + part.label
        if part.kind is not Kind.EXT:
            return Layer(root_fd, label)
        try:
            if not _is_overlay(root_fd):
                return Layer(root_fd, label)
            upper_fd = os.open(_UPPER, _DIRECTORY, dir_fd=root_fd)
        except OSError as error:
            os.close(root_fd)
            raise self._refused(part, error) from None
        os.close(root_fd)
        return Layer(upper_fd, label)

    def _mount_upper(self, part: Part) -> tuple[Mounted, int]:
        """Mount for writing; returns who owns `upper` too.

        fuse2fs lets an ordinary user change only what belongs to that user, unless it is told that it is root's.
        """
        mounted = self._mounted(part, writable=True, as_root=True)
        try:
            owner = os.stat(_UPPER, dir_fd=mounted.root_fd, follow_symlinks=False).st_uid
        except FileNotFoundError:
            owner = os.geteuid()
        except OSError as error:
            os.close(mounted.root_fd)
            raise self._refused(part, error) from None
        return mounted, owner

    def _says(self, owner: int) -> str | None:
        if os.geteuid() in (0, owner):
            return None  # root of a namespace may write whatever has a number there
        if owner == 0:
            return f"what is in '{self.path}' belongs to root, so it is used as root's (fakeroot)"
        return (
            f"what is in '{self.path}' belongs to another user ({owner}); to make it yours: fuseunion image chown "
            f"'{self.path}'"
        )

    def _refused(self, part: Part, error: OSError) -> UserError:
        repair = ""
        if part.kind is Kind.EXT and error.errno in (errno.EUCLEAN, errno.EIO, errno.EBADMSG):
            repair = f"; repair it with: {ext.repair(self.path, part.offset)}"
        return UserError(
            f"{part.kind.value} '{self.path}{part.label}' cannot be used: {error.strerror}{repair}", ExitCode.LAYERS
        )


def open_image(
    path: str, what: str, on_mounted: Callable[[Mounted], None], *, writable: bool = False, way: Way = Way.AUTO
) -> Image:
    """Open a file that stands where a directory could.

    Args:
        path: as the user wrote it.
        what: it stands for, for messages: "upper directory".
        on_mounted: told of each mount that is made, which the caller finishes.
        writable: it is to be written.
        way: who is to show it.

    Raises:
        UserError: LAYERS: it is no image, or cannot be opened; UNAVAILABLE: the kernel is to show it, and must not.
    """
    try:
        fd = recognise.open_file(path)
    except OSError as error:
        raise UserError(f"{what} '{path}' {_reason(error)}", ExitCode.LAYERS) from None
    try:
        kind = _kind(path, what, fd)
        objection = showing.objection(path, fd, kind, way, writable=writable)
        if writable:
            try:
                fd, read_only = recognise.open_again(fd, writable=True), fd
            except OSError as error:
                raise UserError(f"{what} '{path}' {_reason(error)}", ExitCode.LAYERS) from None
            os.close(read_only)
    except BaseException:
        os.close(fd)
        raise
    return Image(path, fd, kind, on_mounted, way, objection)


def _kind(path: str, what: str, fd: int) -> Kind:
    try:
        kind = recognise.kind_of(fd)
    except OSError as error:
        raise UserError(f"{what} '{path}' cannot be read: {error.strerror}", ExitCode.LAYERS) from None
    if kind is None:
        raise UserError(
            f"{what} '{path}' is not a directory, nor an image (squashfs, ext, SIF, tar); check the path",
            ExitCode.LAYERS,
        )
    return kind


def _reason(error: OSError) -> str:
    reasons = {
        errno.ENOTDIR: "is neither a directory nor a regular file",
        errno.EACCES: "may not be opened by you; check its permissions",
        errno.EROFS: "is on a read-only filesystem; choose another or mount with --read-only",
        errno.EAGAIN: "is being given back by a program that has a lease on it; try again",
        errno.ETXTBSY: "is being executed, and cannot be written meanwhile",
    }
    return reasons.get(error.errno or 0, f"cannot be opened: {error.strerror}")


def _is_overlay(root_fd: int) -> bool:
    names = set(os.listdir(root_fd))
    return {_UPPER, _WORK} <= names <= _OVERLAY_ROOT and all(
        stat.S_ISDIR(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode) for name in (_UPPER, _WORK)
    )


def _open_or_make(root_fd: int, name: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=root_fd)
    except FileNotFoundError:
        os.mkdir(name, _MODE, dir_fd=root_fd)
        return os.open(name, _DIRECTORY, dir_fd=root_fd)
