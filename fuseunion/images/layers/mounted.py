"""An image that a program shows, in a mount that is in no tree: only who holds its root can reach it.

Such a mount (launch.py) lives as long as something in it is open. So nothing is visible to anybody, and nothing can be
left behind: however the daemon ends, the kernel closes its descriptors, the filesystem goes with the last of them, and
the program is told (FUSE_DESTROY), writes out what it still has, and ends by itself. It has a duplicate of the
descriptor of the image, and so the lock on it (locks.py) until then.

In the ordinary end somebody waits for that (`finish`), so that the image is complete when the command returns.
"""

import logging
import os

from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.images import ext
from fuseunion.images.layers import launch, started
from fuseunion.images.layers.programs import Wanted, command
from fuseunion.images.recognise import Kind
from fuseunion.linux.proc import processes

_log = logging.getLogger("fuseunion.images")

_SOON = 5.0
"""Seconds that a program usually takes at most to write out and end; after that the log says that it is waited for."""

_AT_MOST = 120.0
"""Seconds after which it is left to itself. It goes on, and the image stays locked."""

_MOST_SAID = 4096

_USUAL = ("Writing to the journal is not supported.", "Mounting read-only.")
"""What fuse2fs says of every ext3 and ext4 that it mounts, after what it says of errors."""


class Mounted:
    """One image, or one partition of one, that is shown to this process.

    Attributes:
        path: of the image file.
        root_fd: an O_RDONLY descriptor of its root; the caller closes it.
        pidfd: of the program; readable when it has ended.
        program: its name.
        device: st_dev of what it shows.
    """

    def __init__(self, path: str, wanted: Wanted, image_fd: int) -> None:
        """Mount it.

        Args:
            path: of the file, for messages.
            wanted: what it is.
            image_fd: of the file, locked; stays the caller's.

        Raises:
            UserError: UNAVAILABLE without the program, or without fusermount3; LAYERS where the program refuses the
                image.
        """
        arguments = command(wanted, path)
        self.path = path
        self._wanted = wanted
        self.pidfd = -1
        self.root_fd = -1
        self.program = os.path.basename(arguments[0])
        self._said, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._image_fd = -1
        try:
            self._image_fd = os.dup(image_fd)
            self._pid, self.pidfd, self.root_fd = launch.launch(arguments, self._image_fd, writer)
        except OSError as error:
            said = self.said()
            self._close()
            raise self._refused(f"{self.program} says: {said}" if said else error.strerror or str(error)) from None
        except BaseException:
            self._close()
            raise
        finally:
            os.close(writer)
        started.add(self._pid)
        self.device = os.fstat(self.root_fd).st_dev

    def _refused(self, why: str) -> UserError:
        return UserError(f"{self._wanted.kind.value} '{self.path}' cannot be used: {why}", ExitCode.LAYERS)

    @property
    def writable(self) -> bool:
        """Whether it may be changed."""
        return self._wanted.writable

    def said(self) -> str:
        """What the program has written since it was last asked, as one line: the last that has a word in it."""
        try:
            text = os.read(self._said, _MOST_SAID).decode(errors="replace")
        except OSError:
            return ""  # nothing yet (EAGAIN)
        lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().endswith(_USUAL)]
        return one_line(lines[-1]) if lines else ""

    def died(self) -> str:
        """What is logged when the program ends though the image is in use."""
        said = self.said()
        return f"{self.program}, which shows the {self._wanted.kind.value} '{self.path}', has ended" + (
            f": {said}" if said else ""
        )

    @property
    def file_key(self) -> tuple[int, int]:
        """st_dev and st_ino of the file."""
        st = os.fstat(self._image_fd)
        return st.st_dev, st.st_ino

    def let_go(self) -> None:
        """Another process waits for it."""
        self._close()

    def finish(self) -> None:
        """Wait until the program has ended, and put the image on disk.

        Precondition: nothing of the image is open in this process.

        Raises:
            UserError: FAILURE: what was written last may be lost.
        """
        try:
            if self._await_end() and self._wanted.writable:
                self._put_on_disk()
        finally:
            self._close()

    def _await_end(self) -> bool:
        if not processes.wait_for_end(self.pidfd, _SOON):
            _log.info("waiting for %s, which writes out '%s'", self.program, self.path)
            if not processes.wait_for_end(self.pidfd, _AT_MOST):
                _log.error("%s still writes out '%s' after %g seconds", self.program, self.path, _AT_MOST)
                return False
        self._reap()
        return True

    def _put_on_disk(self) -> None:
        try:
            os.fsync(self._image_fd)
        except OSError as error:
            raise UserError(
                f"image '{self.path}' cannot be written to disk: {error.strerror}; what was changed last may be lost",
                ExitCode.FAILURE,
            ) from None
        said = self.said()
        if self._wanted.kind is Kind.EXT and not ext.state_of(self._image_fd, self._wanted.offset).unmounted:
            raise UserError(
                f"image '{self.path}' was not put in order: {self.program} was ended before it had finished"
                f"{f' ({said})' if said else ''}; repair it with: {ext.repair(self.path, self._wanted.offset)}",
                ExitCode.FAILURE,
            )

    def _reap(self) -> None:
        started.discard(self._pid)
        try:
            os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pass  # a child of the process that has started it, or of who adopted it

    def _close(self) -> None:
        for fd in (self._image_fd, self._said, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self._image_fd = self._said = self.pidfd = -1
