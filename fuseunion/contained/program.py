"""Becoming the command: whose rights, which environment, which directory, and then execve(2).

Everything that is read here was looked up in the new root: what stands in its files is the word of whoever made the
tree, and decides about nothing but the command's own environment.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Collection, Mapping
from typing import NoReturn

from fuseunion.contained import filters
from fuseunion.contained.wishes import Wishes
from fuseunion.linux import syscalls
from fuseunion.linux.os_error import os_error

NOT_FOUND = 127
NOT_EXECUTABLE = 126
"""The shell's numbers for a command that is not there, and for one that cannot be run."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_OF_THE_MACHINE = ("TMPDIR", "XDG_RUNTIME_DIR", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH", "OLDPWD")
"""Variables that name what is not there inside."""

_APT_SETTINGS = "fuseunion-apt.conf"

SETTINGS = {_APT_SETTINGS: b'APT::Sandbox::User "root";\n'}
"""Files in /dev, for where there is a single id: apt looks whether it has become another user, as nobody can there."""

_PASSWD_LIMIT = 1 << 20
"""Bytes of /etc/passwd that are read."""

_KEPT = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
"""Capabilities that root's command keeps, as container engines have them: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL,
SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP (linux/capability.h)."""

_CAPABILITIES = 64

SIGNALS = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH,
)  # fmt: skip
"""What the caller may ignore, and the command then ignores too."""

_OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
"""What Python ignores, whatever it was before; and what nobody may ignore who waits for a child."""


def run(
    wishes: Wishes,
    inherited: Mapping[str, str],
    parent: int,
    ignored: Collection[signal.Signals],
    *,
    single_id: bool,
    as_root: bool,
) -> NoReturn:
    """Become the command, in the new root.

    Precondition: in a child, whose descriptors from 3 on nobody needs.

    Args:
        wishes: the command and how it is to be.
        inherited: the environment of the caller.
        parent: the process with which the command is to end.
        ignored: signals that it ignores, of SIGNALS.
        single_id: the user namespace has one id.
        as_root: the command is to be the machine's root, with what is left of its capabilities.
    """
    shell = _shell(inherited)
    command = wishes.command or (shell,)
    uid, gid = wishes.user or (0, 0)
    try:
        environment = _environment(inherited, uid, gid, shell, single_id=single_id)
        environment.update(wishes.environment)
        go_to(wishes.workdir, "/")
        if as_root:
            _limit_capabilities()
        filters.install(single_id=single_id)
    except OSError as error:
        _end(f"cannot prepare the command: {error.strerror}", NOT_EXECUTABLE)
    try:
        _become(uid, gid, single_id=single_id)
    except OSError as error:
        _end(
            f"--user {uid}:{gid}: {error.strerror}; the ids that can be had here are in /proc/self/uid_map and gid_map",
            NOT_EXECUTABLE,
        )
    execute(command, environment, parent, ignored)


def go_to(workdir: str | None, usual: str) -> None:
    """Enter the directory in which the command begins; where that cannot be, this process ends with a line.

    Args:
        workdir: that of --workdir, or None.
        usual: where it begins without.
    """
    try:
        os.chdir(usual if workdir is None else workdir)
    except OSError as error:
        what = f"'{usual}' in the union" if workdir is None else f"--workdir '{workdir}'"
        _end(f"{what}: {error.strerror}", NOT_EXECUTABLE)


def execute(
    command: tuple[str, ...], environment: dict[str, str], parent: int, ignored: Collection[signal.Signals]
) -> NoReturn:
    """Close every descriptor but the three, give signals back their meaning, and run a command, found in its PATH.

    Precondition: in a child.

    Args:
        parent: the process with which it ends.
        ignored: of SIGNALS.
    """
    # Now: a change of credentials takes it back.
    syscalls.end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(NOT_EXECUTABLE)
    for number in (*SIGNALS, *_OF_PYTHON):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys.stdout.flush()
    sys.stderr.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    if not command[0]:
        _end("'': no such command in the tree", NOT_FOUND)  # execvpe(3) of Python raises no OSError for it
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        _end(f"'{command[0]}': no such command in the tree", NOT_FOUND)
    except OSError as error:
        _end(f"'{command[0]}': {error.strerror}", NOT_FOUND if error.errno == errno.ENOTDIR else NOT_EXECUTABLE)


def _shell(inherited: Mapping[str, str]) -> str:
    """The user's shell, if it is there, else sh."""
    wanted = inherited.get("SHELL", "")
    return wanted if wanted.startswith("/") and os.access(wanted, os.X_OK) else "/bin/sh"


def _environment(inherited: Mapping[str, str], uid: int, gid: int, shell: str, *, single_id: bool) -> dict[str, str]:
    environment = {name: value for name, value in inherited.items() if name not in _OF_THE_MACHINE}
    name, home = _account(uid)
    environment.update(PATH=_PATH, HOME=home, USER=name, LOGNAME=name, SHELL=shell)
    if single_id and "APT_CONFIG" not in environment:
        environment["APT_CONFIG"] = f"/dev/{_APT_SETTINGS}"
    return environment


def _account(uid: int) -> tuple[str, str]:
    """Name and home directory, from the tree's /etc/passwd."""
    found = ("root", "/root") if uid == 0 else (str(uid), "/")
    try:
        # Not one that keeps us waiting, and no more of it than fits any real one.
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            text = file.read(_PASSWD_LIMIT) or b""
    except OSError:
        return found
    for line in text.decode(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2] == str(uid):
            name = fields[0] if fields[0] and fields[0].isprintable() else found[0]
            home = fields[5] if fields[5].startswith("/") and fields[5].isprintable() else found[1]
            return name, home
    return found


def _limit_capabilities() -> None:
    for capability in range(_CAPABILITIES):
        if capability in _KEPT:
            continue
        try:
            syscalls.drop_from_bounding_set(capability)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # past the last that this kernel knows
            raise


def _become(uid: int, gid: int, *, single_id: bool) -> None:
    """Be the user; the bounding set takes effect with execve(2) for root, and for others nothing is left."""
    if single_id:
        # The map of the user namespace has made it so, if the namespace is ours; the filter answers for setuid(2).
        if uid != os.getuid():
            raise os_error(errno.EINVAL)
        return
    if (uid, gid) != (0, 0):
        os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _end(message: str, code: int) -> NoReturn:
    line = " ".join(message.splitlines())
    os.write(2, f"fuseunion: {line}\n".encode(errors="surrogateescape"))
    os._exit(code)
