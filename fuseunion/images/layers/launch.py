"""Starting a program that mounts something, and taking that mount out of the tree as soon as its root is open.

It is mounted on a new private directory, opened, and unmounted lazily (umount2(2), MNT_DETACH), and the directory is
removed. The program has a session of its own, so that nothing that a terminal sends reaches it, and holds nothing of
ours but the image.

A child does all this, and hands over the root. Whoever wanted it may be killed meanwhile: the child goes on, finds
nobody to hand it to, and with its end the mount ends too. Else it would stay in the tree, with a program that keeps the
image locked.

Where the mount namespace may end before the machine does, as that of `fuseunion exec`, the program must not keep it
alive: a union that is mounted there ends with the last process of the namespace. So there the child is in a
namespace of its own. That is a copy of what is mounted now, and the union is not yet: the program ends after the union
has. Nothing is taken out of the copy as for our own daemon (linux/namespaces/apart.py): fuse2fs still loads a library
when it ends (libgcc, for pthread_cancel(3)), and without it leaves the image as after a crash.
"""

import contextlib
import errno
import os
import signal
import socket
import tempfile
import time
from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.images.layers.programs import IMAGE_FD
from fuseunion.linux import namespaces, syscalls
from fuseunion.linux.namespaces import apart
from fuseunion.linux.os_error import os_error
from fuseunion.linux.proc import processes

_START = 60.0
"""Seconds that a program may take to mount; a big archive is read as a whole first."""

_SOON = 5.0
"""Seconds that a killed program may take to end."""


class Launched(NamedTuple):
    """A program that shows something.

    Attributes:
        pid: of it.
        pidfd: of it.
        root_fd: an O_RDONLY descriptor of what it shows.
    """

    pid: int
    pidfd: int
    root_fd: int


def launch(arguments: list[str], image_fd: int, said_fd: int) -> Launched:
    """Start a program.

    Args:
        arguments: its path and what follows; the directory is added.
        image_fd: becomes IMAGE_FD there.
        said_fd: where its output goes.

    Raises:
        OSError: ECHILD, it ended without mounting; ETIMEDOUT; whatever opening the root answers.
        UserError: UNAVAILABLE, FAILURE: it has mounted, and the mount cannot be taken out of the tree.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            ours.close()
            try:
                _child(arguments, image_fd, said_fd, theirs)
            finally:
                # Never back into the code of the parent.
                os._exit(0)
        theirs.close()
        said, fds, _, _ = socket.recv_fds(ours, 4096, 2)
        os.waitpid(child, 0)
    kind, _, rest = said.partition(b" ")
    match kind:
        case b"launched":
            for fd in fds:
                os.set_inheritable(fd, False)
            return Launched(int(rest), *fds)
        case b"refused":
            code, _, message = rest.partition(b" ")
            raise UserError(message.decode(errors="surrogateescape"), ExitCode(int(code)))
        case b"failed":
            number, _, message = rest.partition(b" ")
            raise OSError(int(number), message.decode(errors="surrogateescape"))
    raise OSError(errno.ECHILD, "the process that starts it was ended")


def _child(arguments: list[str], image_fd: int, said_fd: int, link: socket.socket) -> None:
    # What ends who waits, as ^C does, is not for the child.
    os.setsid()
    if apart.is_private():
        # An ordinary user may make none; what the user mounts ends by itself.
        with contextlib.suppress(OSError):
            namespaces.enter_mount_namespace()
    try:
        if os.geteuid() != 0:
            _prepare_user()
        place = tempfile.mkdtemp(prefix="fuseunion-image-")
        try:
            launched = _mounted(arguments, image_fd, said_fd, place)
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(place)
        socket.send_fds(link, [b"launched %d" % launched.pid], [launched.pidfd, launched.root_fd])
    except UserError as error:
        link.sendall(b"refused %d %s" % (error.exit_code, error.message.encode(errors="surrogateescape")))
    except OSError as error:
        link.sendall(b"failed %d %s" % (error.errno or errno.EIO, (error.strerror or "").encode()))


def _prepare_user() -> None:
    """What it takes that somebody who is not root mounts and unmounts."""
    if namespaces.in_first_user_namespace():
        _fusermount()  # before a program writes to the image that it is mounted
        return
    # Who may mount in a namespace without being its root lets the program do so: `fuseunion exec --here`.
    with contextlib.suppress(OSError):
        syscalls.keep_over_exec(syscalls.CAP_SYS_ADMIN)


def _mounted(arguments: list[str], image_fd: int, said_fd: int, place: str) -> Launched:
    before = os.stat(place).st_dev
    pid = _spawn([*arguments, place], image_fd, said_fd)
    pidfd = os.pidfd_open(pid)
    try:
        _await_mount(pidfd, place, before)
        try:
            root_fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            _detach(place)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        processes.wait_for_end(pidfd, _SOON)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        os.close(pidfd)
        # It may have mounted, and died of the first request. Where it has not, there is nothing to take away.
        with contextlib.suppress(OSError, UserError):
            _detach(place)
        raise
    return Launched(pid, pidfd, root_fd)


def _spawn(arguments: list[str], image_fd: int, said_fd: int) -> int:
    kept = {0, 1, 2, IMAGE_FD}
    # Whoever started us may wait until nobody holds what we were given.
    given = [fd for fd in processes.own_descriptors() - kept if _is_inheritable(fd)]
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        # What it says beyond what a pipe holds is lost: nobody waits for a reader.
        (os.POSIX_SPAWN_DUP2, said_fd, 1),
        (os.POSIX_SPAWN_DUP2, said_fd, 2),
        (os.POSIX_SPAWN_DUP2, image_fd, IMAGE_FD),
        *((os.POSIX_SPAWN_CLOSE, fd) for fd in given),
    ]
    environment = {**os.environ, "LC_ALL": "C"}
    return os.posix_spawn(arguments[0], arguments, environment, file_actions=actions, setsid=True, setsigmask=())


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # that of the listing


def _await_mount(pidfd: int, place: str, before: int) -> None:
    """Wait until something is mounted at a place that had another st_dev before."""
    deadline, pause = time.monotonic() + _START, 0.001
    while os.stat(place).st_dev == before:
        if processes.wait_for_end(pidfd, pause):
            raise os_error(errno.ECHILD)
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, f"it was not mounted in {_START:g} seconds")
        pause = min(pause * 1.5, 0.02)


def _detach(place: str) -> None:
    """Take a mount of ours out of the tree, while it is used."""
    try:
        syscalls.umount2(os.fsencode(place), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
    import subprocess  # only users who are not root need it

    done = subprocess.run(
        [_fusermount(), "-u", "-z", "--", place], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise UserError(f"cannot unmount '{place}': {one_line(done.stderr.decode(errors='replace'))}", ExitCode.FAILURE)


def _fusermount() -> str:
    import shutil

    program = shutil.which("fusermount3") or shutil.which("fusermount")
    if program is None:
        raise UserError(
            "an ordinary user needs fusermount3, which is not installed; install the package fuse3",
            ExitCode.UNAVAILABLE,
        )
    return program
