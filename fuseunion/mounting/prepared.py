"""What an engine is given to make a mount: opened directories, held locks, and what has to be undone or ended.

`Prepared.close` ends a mount: it removes what belongs to the mount only, above all the default work directory, unless
that holds the hard-link index or anything else that must outlive it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from fuseunion.linux.proc import processes
from fuseunion.mounting import log
from fuseunion.mounting.checks import same_lowers
from fuseunion.mounting.options import Form

if TYPE_CHECKING:
    from fuseunion.images.layers.mounted import Mounted
    from fuseunion.mounting.checks.placement import Place

_log = logging.getLogger("fuseunion.lowers")


class Opened(NamedTuple):
    """A directory that is ready to become a layer.

    Attributes:
        fd: an O_RDONLY descriptor, closed by Prepared unless claimed.
        label: its path, for messages.
        covered: the names that lead from it to the mount point, when that lies strictly inside.
        by_squashfuse: squashfuse shows it.
    """

    fd: int
    label: str
    covered: tuple[bytes, ...] = ()
    by_squashfuse: bool = False


class Prepared:
    """Everything that an engine needs to make the mount.

    Attributes:
        target: absolute path of the merged directory, or /dev/fd/N.
        lowers: topmost first.
        upper, work: None for a read-only mount.
        shown_as: what a new upper's root is to look like where that is stored, not real; None where it is as it looks.
        exchanged: the upper was last mounted over other lowers (same_lowers.py).
        notes: lines for the log, of what was not as usual.
        hidden: st_dev and st_ino of what the lowers show without what is in it: an upper and a work directory in them,
            or the image that these are in (LayerAccess.hidden).
        full: why nothing can be written to the upper, which is then the topmost of the layers that are only read.
        images: what is mounted of images; the program of each ends when nothing of it is open any more.
        is_anybodys: the machine's root shows an image that somebody else can have made: its set-ID bits mean nothing.
        apart: another process has all that is here too, and so waits in this one's place for the programs of images.
    """

    def __init__(self, target: str, form: Form) -> None:
        self.target = target
        self.exchanged = False
        self.notes: list[str] = []
        self.full: str | None = None
        self.hidden: set[tuple[int, int]] = set()
        self.shown_as: os.stat_result | None = None
        self._form = form
        self.images: list[Mounted] = []
        self.is_anybodys = False
        self.apart = False
        self.lowers: list[Opened] = []
        self.upper: Opened | None = None
        self.work: Opened | None = None
        self._lowers: bytes | None = None
        self._paths: list[str] = []
        self._unclaimed = ExitStack()
        self._undo = ExitStack()
        self._until_live = ExitStack()
        self._end = ExitStack()
        self._last = ExitStack()

    @property
    def has_image_upper(self) -> bool:
        """Whether what is written is in an image."""
        return any(mounted.writable for mounted in self.images)

    def add_image(self, mounted: Mounted) -> None:
        """Take charge of an image that was mounted, but for the descriptor of its root."""
        self.images.append(mounted)
        self.on_last(self._finish, mounted)

    def _finish(self, mounted: Mounted) -> None:
        if self.apart:
            mounted.let_go()
        else:
            mounted.finish()

    def on_last(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call this when nothing of the layers is open any more."""
        self._last.callback(callback, *arguments)

    def let_go_of_images(self) -> None:
        """In the process that has started the daemon: an image ends, and its lock, with the last that has it open.

        Precondition: the mount is live, so that nothing here is undone or closed any more.
        """
        if not self.images:
            return
        devices = {mounted.device for mounted in self.images}
        files = {mounted.file_key for mounted in self.images}
        for mounted in self.images:
            mounted.let_go()
        for fd in processes.own_descriptors():
            try:
                st = os.fstat(fd)
                if st.st_dev in devices or (st.st_dev, st.st_ino) in files:
                    os.close(fd)
            except OSError:
                continue  # of the listing itself

    def on_end(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call this when the mount has ended, last registered first."""
        self._end.callback(callback, *arguments)

    def on_failure(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call this when the mount does not come about."""
        self._undo.callback(callback, *arguments)

    def hold(self, fd: int) -> int:
        """Keep a descriptor for the undoing; it goes when the mount is live, since a duplicate keeps a lock."""
        self._until_live.callback(os.close, fd)
        return fd

    def claim(self) -> None:
        """From now on the caller closes the descriptors of the layers."""
        self._unclaimed.pop_all()

    def keep(self) -> None:
        """The mount is live: what was created stays, and a person hears of lowers that were exchanged."""
        self.apart = False
        self._undo.pop_all()
        self._until_live.close()
        if self._lowers is None or self.upper is None or self.full is not None:
            return
        same_lowers.remember(self.upper.fd, self._lowers)
        self._note_use()
        if self.exchanged and self._form is Form.PLAIN:
            log.tell(f"warning: {self.says_exchanged}")

    def compare_lowers(self) -> None:
        """Compare with the lowers that the upper remembers, and remember these once the mount is live."""
        assert self.upper is not None
        self._lowers = self._identity(opened.fd for opened in self.lowers)
        # As they are called here: the daemon works elsewhere.
        self._paths = [os.path.abspath(opened.label) for opened in self.lowers]
        self.exchanged = same_lowers.differ(self.upper.fd, self._lowers)

    def _identity(self, lower_fds: Iterable[int]) -> bytes:
        return same_lowers.identity(lower_fds, {mounted.device for mounted in self.images})

    def _note_use(self) -> None:
        if self.has_image_upper and self.work is not None:
            from fuseunion import __version__
            from fuseunion.images import used  # most mounts have none

            used.note(self.work.fd, __version__, self._paths)

    def add_lower(self, opened: Opened, lower_fds: Iterable[int]) -> None:
        """One more lower lies on top of the others; an upper that remembers its lowers remembers it too.

        Args:
            lower_fds: of all lowers, topmost first.
        """
        self.lowers.insert(0, opened)
        if self._lowers is None or self.upper is None or self.full is not None:
            return
        try:
            same_lowers.remember(self.upper.fd, self._identity(lower_fds))
        except OSError as error:
            _log.warning("the upper does not remember a lower that was added: %s", error)
        self._paths.insert(0, os.path.abspath(opened.label))
        self._note_use()

    @property
    def says_exchanged(self) -> str:
        """What a user is told of exchanged lowers."""
        assert self.upper is not None
        return (
            f"'{self.upper.label}' was last mounted over other lower directories, or in another order; if that is not "
            "intended, unmount before you change anything"
        )

    def give_up_writing(self, error: OSError) -> None:
        """There is no space for the work directory: what is in the upper can still be shown.

        As overlayfs does it (fs/overlayfs/super.c ovl_workdir_create: "mounting read-only").
        """
        assert self.upper is not None
        self.work = None
        where, remedy = "is on a full filesystem", "make space, unmount, and mount it again"
        if self.has_image_upper:
            where, remedy = "is full", "unmount it and give it more: fuseunion image resize FILE +1G"
        self.full = f"upper '{self.upper.label}' {where} ({error.strerror}), so it is mounted read-only; {remedy}"

    def close(self) -> None:
        """The mount has ended, or never came to be. The locks go last, when nothing is touched any more."""
        self._unclaimed.close()
        self._undo.close()
        self._until_live.close()
        with self._last:
            self._end.close()

    def hide(self, fd: int) -> None:
        """Have the lowers show a directory as an empty one, if they have it."""
        st = os.fstat(fd)
        self.hidden.add((st.st_dev, st.st_ino))

    def hide_file(self, place: Place) -> None:
        """Have the lowers keep what is in an image to themselves, if they have it; the place may be no image."""
        if place.is_file and place.key is not None:
            self.hidden.add(place.key)

    def opened(self, fd: int, label: str, covered: tuple[bytes, ...] = ()) -> Opened:
        """Take charge of a descriptor."""
        self._unclaimed.callback(os.close, fd)
        return Opened(fd, label, covered)
