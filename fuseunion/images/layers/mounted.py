"""An image that a program shows, in a mount that is in no tree: only who holds its root can reach it.

The program (programs.py) mounts the image on a private directory. Its root is opened, and then the mount is taken out
of the tree again (umount2(2), MNT_DETACH) and the directory removed. Such a mount lives as long as something in it is
open. So nothing is visible to anybody, and nothing can be left behind: however the daemon ends, the kernel closes its
descriptors, the filesystem goes with the last of them, and the program is told (FUSE_DESTROY), writes out what it still
has, and ends by itself. It has a session of its own, so that nothing that a terminal sends reaches it, and the lock on
the image (locks.py).

In the ordinary end somebody waits for that (`finish`), so that the image is complete when the command returns.
"""

import contextlib
import errno
import logging
import os
import signal
import tempfile
import time

from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.images import ext
from fuseunion.images.layers import started
from fuseunion.images.layers.programs import IMAGE_FD, Wanted, command
from fuseunion.images.recognise import Kind
from fuseunion.linux import syscalls
from fuseunion.linux.proc import processes

_log = logging.getLogger("fuseunion.images")

_START = 60.0
"""Seconds that a program may take to mount; a big archive is read as a whole first."""

_SOON = 5.0
"""Seconds that a program usually takes at most to write out and end; after that the log says that it is waited for."""

_AT_MOST = 120.0
"""Seconds after which it is left to itself. It goes on, and the image stays locked."""

_MOST_SAID = 4096
_CLOSED = (0, 1, 2)


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
            UserError: UNAVAILABLE without the program; LAYERS where the program refuses the image.
        """
        self.path = path
        self._wanted = wanted
        self._image_fd = os.dup(image_fd)
        self._said = -1
        self.pidfd = -1
        self.root_fd = -1
        place = tempfile.mkdtemp(prefix="fuseunion-image-")
        try:
            arguments = command(wanted, path, place)
            self.program = os.path.basename(arguments[0])
            before = os.stat(place).st_dev
            self._start(arguments)
            self._await_mount(place, before)
        except BaseException:
            self._kill()
            self._close()
            raise
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(place)

    def _start(self, arguments: list[str]) -> None:
        self._said, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        actions: list[tuple[object, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            # What it says beyond what the pipe holds is lost: nobody waits for a reader.
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_DUP2, writer, 2),
            (os.POSIX_SPAWN_DUP2, self._image_fd, IMAGE_FD),
        ]
        kept = {*_CLOSED, IMAGE_FD}
        # Whoever started us waits until nobody holds these any more.
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in processes.own_descriptors() - kept if os.get_inheritable(fd)]
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            self._pid = os.posix_spawn(
                arguments[0], arguments, environment, file_actions=actions, setsid=True, setsigmask=()
            )
        finally:
            os.close(writer)
        started.add(self._pid)
        self.pidfd = os.pidfd_open(self._pid)

    def _await_mount(self, place: str, before: int) -> None:
        """Wait until it has mounted, and take the mount out of the tree.

        Args:
            place: the directory.
            before: the st_dev that it has when nothing is mounted.

        Raises:
            UserError: LAYERS.
        """
        deadline, pause = time.monotonic() + _START, 0.001
        while os.stat(place).st_dev == before:
            if processes.wait_for_end(self.pidfd, pause):
                raise self._refused(f"{self.program} says: {self.said() or 'nothing'}")
            if time.monotonic() > deadline:
                raise self._refused(f"{self.program} has not mounted it in {_START:g} seconds")
            pause = min(pause * 1.5, 0.02)
        try:
            self.root_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._refused(f"{error.strerror}; {self.program} says: {self.said() or 'nothing'}") from None
        finally:
            _detach(place)
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
        lines = [line.strip() for line in text.splitlines() if line.strip()]
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
        if self._wanted.kind is Kind.EXT and not ext.state_of(self._image_fd, self._wanted.offset).unmounted:
            raise UserError(
                f"image '{self.path}' was not put in order: {self.program} was ended before it had finished; repair it "
                f"with: {ext.repair(self.path, self._wanted.offset)}",
                ExitCode.FAILURE,
            )

    def _kill(self) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            processes.wait_for_end(self.pidfd, _SOON)
            self._reap()

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


def _detach(place: str) -> None:
    """Take a mount of ours out of the tree, while it is used."""
    try:
        syscalls.umount2(os.fsencode(place), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
    import shutil
    import subprocess  # only users who are not root need it

    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise UserError(
            "an ordinary user needs fusermount3, which is not installed; install the package fuse3",
            ExitCode.UNAVAILABLE,
        )
    done = subprocess.run(
        [program, "-u", "-z", "--", place], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise UserError(f"cannot unmount '{place}': {one_line(done.stderr.decode(errors='replace'))}", ExitCode.FAILURE)
