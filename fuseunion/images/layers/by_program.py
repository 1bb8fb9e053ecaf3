"""An image that a program shows, by FUSE (launch.py).

When its mount has gone the program is told (FUSE_DESTROY), writes out what it still has, and ends by itself. It has a
duplicate of the descriptor of the image, and so the lock on it until then.
"""

import logging
import os

from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.images.layers import launch, started
from fuseunion.images.layers.mounted import AT_MOST, SOON, Mounted
from fuseunion.images.layers.programs import Wanted, command
from fuseunion.linux.proc import processes

_log = logging.getLogger("fuseunion.images")

_MOST_SAID = 4096


class ByProgram(Mounted):
    """An image in a FUSE mount.

    Attributes:
        program: the name of who serves it.

    Raises:
        UserError: UNAVAILABLE without the program, or without fusermount3; LAYERS where the program refuses the image.
    """

    pidfd: int

    def __init__(self, path: str, wanted: Wanted, image_fd: int) -> None:
        arguments = command(wanted, path)
        self.program = os.path.basename(arguments[0])
        self._image_fd = self.pidfd = -1
        self._said, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            super().__init__(path, wanted, image_fd)
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
        return UserError(f"{self.wanted.kind.value} '{self.path}' cannot be used: {why}", ExitCode.LAYERS)

    @property
    def by(self) -> str:
        """See Mounted."""
        return self.program

    def said(self) -> str:
        """What the program has written since it was last asked, as one line: the last that has a word in it."""
        try:
            text = os.read(self._said, _MOST_SAID).decode(errors="replace")
        except OSError:
            return ""  # nothing yet (EAGAIN)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return one_line(lines[-1]) if lines else ""

    def died(self) -> str:
        """See Mounted."""
        said = self.said()
        return f"{self.program}, which shows the {self.wanted.kind.value} '{self.path}', has ended" + (
            f": {said}" if said else ""
        )

    def let_go(self) -> None:
        """See Mounted."""
        self._close()

    def finish(self) -> None:
        """See Mounted."""
        try:
            if self._await_end() and self.wanted.writable:
                said = self.said()
                self._put_on_disk(f"{self.program} was ended before it had finished{f' ({said})' if said else ''}")
        finally:
            self._close()

    def _await_end(self) -> bool:
        if not processes.wait_for_end(self.pidfd, SOON):
            _log.info("waiting for %s, which writes out '%s'", self.program, self.path)
            if not processes.wait_for_end(self.pidfd, AT_MOST):
                _log.error("%s still writes out '%s' after %g seconds", self.program, self.path, AT_MOST)
                return False
        self._reap()
        return True

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
