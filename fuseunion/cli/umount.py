"""`fuseunion umount MERGED`: write everything out, unmount, and wait until the daemon has gone.

When it returns 0, everything is on disk (but of a volatile mount), and the upper may be mounted, copied or removed. The
daemon is asked to write out before the mount is taken away, since only then can it say that it failed; what comes after
that it writes out by itself before it ends. It also tells its process id, so that it can be waited for whoever started
it (questions.py).
"""

import errno
import os
import subprocess
import sys
from typing import NamedTuple

from fuseunion.engines.fuse import mount_point, questions
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo, processes
from fuseunion.linux.holders import elsewhere, holders

SOON = 2.0
"""Seconds after which we look for a reason why the daemon goes on."""

PATIENCE = 60.0
"""Seconds that the daemon may take to see that its mount has gone, and to remove its work directory."""

HELP = """\
Usage: fuseunion umount [--lazy] [--discard] MERGED

Writes everything to disk, unmounts MERGED and waits until its daemon has gone; a volatile mount is not written to disk.
If the mount is busy, says which processes use it and exits with status 4. A mount whose daemon has died ("Transport
endpoint is not connected") is removed.

Options:
  -l, --lazy   take the mount out of the tree at once; those who use it may go on, and nothing is waited for
  --discard    of a ranch (a tree of links): throw away what was changed there instead of writing it to UPPER
  -h, --help   print this help

Example:
  fuseunion umount ~/merged
"""


def main(arguments: list[str]) -> int:
    """Unmount one mount.

    Raises:
        UserError: BUSY with the holders, LAYERS where nothing of ours is mounted, FAILURE where it cannot be unmounted.
    """
    operands, lazy, discard = [], False, False
    for argument in arguments:
        if argument in ("-h", "--help"):
            print(HELP, end="")
            return ExitCode.OK
        if argument in ("-l", "--lazy"):
            lazy = True
        elif argument == "--discard":
            discard = True
        elif argument.startswith("-") and argument != "-":
            raise UserError(f"unknown option '{argument}'; see fuseunion umount --help")
        else:
            operands.append(argument)
    if len(operands) != 1:
        raise UserError("give one mounted directory: fuseunion umount MERGED")
    _umount(operands[0], lazy=lazy, discard=discard)
    return ExitCode.OK


def _umount(given: str, *, lazy: bool, discard: bool) -> None:
    path = os.path.realpath(given)
    entry = mountinfo.mount_at(path)
    if entry is None or entry.fstype != mount_point.TYPE:
        from fuseunion.cli import takedown

        if takedown.umount(given, path, entry, lazy=lazy, discard=discard):
            return
    if discard:
        raise UserError(
            f"--discard: '{given}' is no ranch; what was written there is in its UPPER already", ExitCode.LAYERS
        )
    if entry is None:
        raise UserError(
            f"'{given}' is not a mount point; see the mounted ones with: mount -t {mount_point.TYPE}", ExitCode.LAYERS
        )
    if entry.fstype != mount_point.TYPE:
        raise UserError(f"'{given}' is mounted by '{entry.fstype}', not by fuseunion; use umount", ExitCode.LAYERS)
    dead = _is_dead(path)
    daemon = None if dead else _open_daemon(path, entry)
    failed = None
    try:
        if not dead and not lazy:
            failed = _write_out(path)
        try:
            mount_point.unmount(path, lazy=lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise UserError(f"cannot unmount '{given}': {error.strerror}", ExitCode.FAILURE) from None
            if not dead:
                raise UserError(_busy(given, path, entry), ExitCode.BUSY) from None
            # Whoever holds a dead mount gets ENOTCONN from it either way.
            mount_point.unmount(path, lazy=True)
        if daemon is not None and not lazy:
            _await_end(daemon, given, entry)
    finally:
        if daemon is not None:
            os.close(daemon.pidfd)
    if failed is not None:
        raise UserError(
            f"'{given}' is unmounted, but could not be written to disk: {failed.strerror}; "
            "what was changed last may be lost",
            ExitCode.FAILURE,
        )


def _is_dead(path: str) -> bool:
    """Whether nobody serves the mount. Attributes may still be cached; the space on it never is."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


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
        pid: in decimal; means this process as long as `pidfd` says that it lives.
    """

    pidfd: int
    pid: str

    @property
    def serves(self) -> bool:
        """Whether it still has a mount to serve, and is not just writing out."""
        return processes.holds(int(self.pid), mount_point.DEVICE)


def _open_daemon(path: str, entry: mountinfo.Mount) -> _Daemon | None:
    """The daemon, or None where it cannot be known (another pid namespace, somebody else's mount)."""
    text = _daemon_pid(path) or _daemon_pid_as_owner(path, entry)
    if text is None or not text.isdigit():
        return None
    try:
        daemon = _Daemon(os.pidfd_open(int(text)), text)
    except OSError:
        return None
    # The number means another process where the daemon runs in another pid namespace: it must hold /dev/fuse.
    if daemon.serves:
        return daemon
    os.close(daemon.pidfd)
    return None


def _daemon_pid(path: str) -> str | None:
    try:
        return os.getxattr(path, questions.PID).decode("ascii", "replace")
    except OSError:
        return None


def _daemon_pid_as_owner(path: str, entry: mountinfo.Mount) -> str | None:
    """Ask as the mounting user: without allow_other the mount answers nobody else, not even root."""
    uid, gid = entry.option("user_id"), entry.option("group_id")
    if os.geteuid() != 0 or uid is None or gid is None:
        return None
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


def _await_end(daemon: _Daemon, given: str, entry: mountinfo.Mount) -> None:
    if processes.wait_for_end(daemon.pidfd, SOON):
        return
    others = ", ".join(map(str, elsewhere(entry.device)))
    if others:
        raise UserError(
            f"'{given}' is unmounted here, but its daemon still serves it to {others}; end that too", ExitCode.BUSY
        )
    # Writing out may take as long as the disk likes, as with umount(2).
    while not processes.wait_for_end(daemon.pidfd, PATIENCE):
        if daemon.serves:
            raise UserError(
                f"'{given}' is unmounted, but its daemon is still busy after {PATIENCE:g} seconds", ExitCode.FAILURE
            )


def _busy(given: str, path: str, entry: mountinfo.Mount) -> str:
    below = [other.target for other in mountinfo.mounts() if other.target.startswith(f"{path}/")]
    users = [str(holder) for holder in holders(entry.device)]
    reasons = [f"mounted below: {', '.join(below)}"] if below else []
    if users:
        reasons.append(f"used by {', '.join(users)}")
    why = "; ".join(reasons) or "by a process that you may not see"
    return f"'{given}' is busy: {why}; end that and try again, or use --lazy"
