"""Taking a FUSE mount away in order, and waiting until its daemon has gone.

The daemon is asked to write out before the mount is taken away, since only then can it say that it failed; what comes
after that it writes out by itself before it ends. It also tells its process id, so that it can be waited for by
processes that did not start it (questions.py).
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NamedTuple

from fuseunion.engines.fuse import mount_point
from fuseunion.engines.fuse.asking import questions
from fuseunion.engines.live import BusyError, LiveMount, is_dead
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.proc import processes

_CONNECTIONS = "/sys/fs/fuse/connections"
"""A directory for each, named after the minor number of its device (fs/fuse/control.c fuse_ctl_add_conn)."""

SOON = 2.0
"""Seconds after which we look for a reason why the daemon goes on."""

PATIENCE = 60.0
"""Seconds that the daemon may take to see that its mount has gone, and to remove its work directory."""


def stop(live: LiveMount, *, lazy: bool) -> None:
    """Write out, unmount, and wait for the daemon.

    Args:
        live: a FUSE mount of ours.
        lazy: take the mount out of the tree at once, and wait for nothing.
    Raises:
        BusyError: it is used.
        UserError: BUSY where it is used in another mount namespace; FAILURE where it cannot be unmounted, or was
            unmounted and could not be written.
    """
    assert live.entry is not None, "a FUSE mount has a line in mountinfo"
    dead = is_dead(live.path)
    daemon = None if dead else _open_daemon(live.path, live.entry)
    failed = None
    try:
        if not dead and not lazy:
            failed = _write_out(live.path)
        _unmount(live, lazy=lazy, dead=dead)
        if daemon is not None and not lazy:
            _await_end(daemon, live.given, live.entry)
    finally:
        if daemon is not None:
            os.close(daemon.pidfd)
    if failed is not None:
        raise UserError(
            f"'{live.given}' is unmounted, but could not be written to disk: {failed.strerror}; "
            "what was changed last may be lost",
            ExitCode.FAILURE,
        )


def _unmount(live: LiveMount, *, lazy: bool, dead: bool) -> None:
    try:
        mount_point.unmount(live.path, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            owner = live.entry.option("user_id") if live.entry is not None else None
            if os.geteuid() != 0 and owner not in (None, str(os.getuid())):
                raise UserError(
                    f"'{live.given}' was mounted by another user ({owner}); only that user and root can unmount it",
                    ExitCode.FAILURE,
                ) from None
            raise UserError(f"cannot unmount '{live.given}': {error.strerror}", ExitCode.FAILURE) from None
        if not dead:
            raise BusyError from None
        # Those who hold a dead mount get ENOTCONN from it either way.
        mount_point.unmount(live.path, lazy=True)


def _write_out(path: str) -> OSError | None:
    """Put what was written on disk, as far as this caller may ask for it; the daemon does it again at its end.

    Returns:
        What went wrong in writing.
    """
    try:
        questions.write_out(path, questions.FSYNC)
    except OSError as error:
        # Not ours to look into; too busy, and so it will be when it is unmounted; a daemon of an older version.
        return None if error.errno in (errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOSYS) else error
    return None


class _Daemon(NamedTuple):
    """The process that serves a mount.

    Attributes:
        pid: means this process as long as `pidfd` says that it lives.
        entry: the mount.
    """

    pidfd: int
    pid: int
    entry: Mount

    @property
    def serves(self) -> bool:
        """Whether it still serves the mount, and is not just writing out.

        The kernel says so: which process a mount names is the word of whoever serves it, perhaps of another user.
        """
        served = processes.served_mounts(self.pid)
        if served:
            return self.entry.device in served
        return bool(processes.descriptors_of(self.pid, mount_point.DEVICE)) and self._is_of_the_mounter

    @property
    def _is_of_the_mounter(self) -> bool:
        """Older kernels do not tell which mount a descriptor serves, but who mounted."""
        try:
            return str(os.stat(f"/proc/{self.pid}").st_uid) == self.entry.option("user_id")
        except OSError:
            return False  # ended


def _open_daemon(path: str, entry: Mount) -> _Daemon | None:
    """The daemon, or None where it cannot be known (another pid namespace, somebody else's mount)."""
    text = _daemon_pid(path) or _daemon_pid_as_owner(path, entry) or _daemon_pid_by_socket(path)
    if text is None or not text.isdigit():
        return None
    try:
        daemon = _Daemon(os.pidfd_open(int(text)), int(text), entry)
    except OSError:
        return None
    # The number means another process where the daemon runs in another pid namespace, or lies.
    if daemon.serves:
        return daemon
    os.close(daemon.pidfd)
    return None


def _daemon_pid(path: str) -> str | None:
    try:
        return os.getxattr(path, questions.PID).decode("ascii", "replace")
    except OSError:
        return None


def _daemon_pid_by_socket(path: str) -> str | None:
    """Ask the user's daemons themselves: who has closed MERGED to themselves has no answer from it (chmod(2))."""
    from fuseunion.linux.runtime.answers import answers  # most mounts answer

    serving = (answer.pid for answer in answers() if answer.fields and answer.fields.get("merged") == [path])
    return next(map(str, serving), None)


def _daemon_pid_as_owner(path: str, entry: Mount) -> str | None:
    """Ask as the mounting user: without allow_other the mount answers nobody else, not even root."""
    uid, gid = entry.option("user_id"), entry.option("group_id")
    if os.geteuid() != 0 or uid is None or gid is None:
        return None
    import subprocess

    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import os, sys; print(os.getxattr(*sys.argv[1:]).decode())",
            path,
            questions.PID,
        ],
        user=int(uid),
        group=int(gid),
        extra_groups=[],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def _is_mounted_somewhere(entry: Mount, daemon: _Daemon) -> bool:
    """Whether the filesystem lives on: the kernel shows its connection to everybody until its last mount has gone.

    Where the directory of all connections is not mounted, the daemon's descriptor has to do.
    """
    if os.path.isdir(f"{_CONNECTIONS}/{os.minor(entry.device)}"):
        return True
    return not os.path.ismount(_CONNECTIONS) and daemon.serves


def _await_end(daemon: _Daemon, given: str, entry: Mount) -> None:
    if processes.wait_for_end(daemon.pidfd, SOON):
        return
    from fuseunion.linux.proc.holders import elsewhere

    others = ", ".join(map(str, elsewhere(entry.device)))
    if others:
        raise UserError(
            f"'{given}' is unmounted here, but its daemon still serves it to {others}; end that too", ExitCode.BUSY
        )
    if _is_mounted_somewhere(entry, daemon):
        raise UserError(
            f"'{given}' is unmounted here, but its daemon (process {daemon.pid}) still serves it in another mount "
            "namespace, to processes that you may not see; it ends with them",
            ExitCode.BUSY,
        )
    # Writing out may take as long as the disk likes, as with umount(2).
    while not processes.wait_for_end(daemon.pidfd, PATIENCE):
        if daemon.serves:
            raise UserError(
                f"'{given}' is unmounted, but its daemon is still busy after {PATIENCE:g} seconds", ExitCode.FAILURE
            )
