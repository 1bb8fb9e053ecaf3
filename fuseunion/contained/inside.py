"""The process in the new namespaces that mounts the union, has the command run, and ends everything.

It adopts what the command leaves behind, and ends by killing it. With it the last process of the namespaces goes, and
so do all mounts; the daemon sees that, puts the upper in order and ends too. When the process that started us goes
(`link` ends), the same happens at once.

    caller's namespaces     supervise.py, which waits for the daemon too
    outer namespaces        this process; the daemon, until it has mounted (linux/namespaces/apart.py)
    its own mount namespace, inner user namespace (and with --pid a pid namespace)      the command
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NamedTuple, NoReturn

from fuseunion.contained import families, ids, places, program, view
from fuseunion.contained.wishes import Net, Wishes
from fuseunion.engines import choose, registry
from fuseunion.engines.engine import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.images import layers as images
from fuseunion.linux import namespaces, syscalls
from fuseunion.linux.mountinfo import mount_at
from fuseunion.mounting.options import EngineChoice, Options

_STAGES = ("/mnt", "/media", "/srv", "/opt", "/boot", "/home", "/root", "/tmp", "/run", "/var/tmp", "/usr/local")
"""Directories that most machines have, over one of which, if possible an empty one, the union is mounted before it
becomes the root. Nobody but us sees that."""

_IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

MAP, DAEMON, PROGRAM, COMMAND, GO = b"m", b"d", b"i", b"c", b"g"
"""What is said over the link, with a number or without, a line each."""


class Task(NamedTuple):
    """All that this process has to know.

    Attributes:
        options: of the union, but for the place.
        wishes: what runs in it.
        plan: the maps of the user namespaces; None without any.
        environment: of the caller.
        group: the caller's process group, which the command joins, so that it has the terminal.
        ignored: signals that the caller has started us to ignore, as nohup(1) does: the command ignores them too.
        progress: for what takes long.
        say: one line to the user.
    """

    options: Options
    wishes: Wishes
    plan: ids.Plan | None
    environment: dict[str, str]
    group: int
    ignored: frozenset[signal.Signals]
    progress: Progress
    say: Callable[[str], None]


def enter(plan: ids.Plan | None, link: socket.socket, flags: int = 0) -> None:
    """Go to new namespaces, and be root there.

    Args:
        plan: None to keep the user namespace.
        link: to the process that writes the maps.
        flags: namespaces besides those of users and mounts.

    Raises:
        UserError: UNAVAILABLE.
    """
    wanted = flags | syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWUSER if plan else 0)
    try:
        syscalls.unshare(wanted)
    except OSError as error:
        raise _forbidden("made", plan, error) from None
    if plan:
        link.sendall(MAP + b"\n")
        if link.recv(1) != GO:
            os._exit(ExitCode.UNAVAILABLE)  # the other side has said why
        uid, gid = plan.uids.outer[0][0], plan.gids.outer[0][0]
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    try:
        namespaces.keep_mounts_private()
    except OSError as error:
        raise _forbidden("used", plan, error) from None  # where AppArmor lets one be made without rights in it


def _forbidden(how: str, plan: ids.Plan | None, error: OSError) -> UserError:
    what = "user namespaces" if plan else "mount namespaces"
    return UserError(
        f"{what} cannot be {how} here ({error.strerror}); see fuseunion doctor; "
        "the machine's administrator allows them by user.max_user_namespaces and the like",
        ExitCode.UNAVAILABLE,
    )


def run(task: Task, link: socket.socket) -> int:
    """Do everything; returns the exit status.

    Precondition: in a child of the process at the other end of `link`.
    """
    _prepare_process()
    wishes = task.wishes
    enter(
        task.plan,
        link,
        (syscalls.CLONE_NEWNET if wishes.net is Net.NONE else 0) | (syscalls.CLONE_NEWUTS if wishes.hostname else 0),
    )
    syscalls.hide_memory()
    if wishes.net is Net.NONE:
        _loopback_up()
    if wishes.hostname:
        socket.sethostname(wishes.hostname)
    root = wishes.place or _stage(task)
    _mount(task, root)
    daemons = frozenset(families.children(os.getpid()))
    for daemon in daemons:
        link.sendall((PROGRAM if daemon in images.started else DAEMON) + b"%d\n" % daemon)
    return _Command(task, link, root, daemons, daemons - images.started).run()


def _prepare_process() -> None:
    os.setpgid(0, 0)  # what is meant for the command, such as ^C, does not come here
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _wake)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    syscalls.adopt_orphans()


def _wake(number: int, frame: FrameType | None) -> None:
    """Let set_wakeup_fd(3) do its work: a signal without a handler wakes nobody."""


def _loopback_up() -> None:
    """SIOCSIFFLAGS with IFF_UP (netdevice(7))."""
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14s", b"lo", 0x1, b""))


def _stage(task: Task) -> str:
    """A directory for the union, on a tmpfs that hides nothing that is needed until the union is the root."""
    options = task.options
    needed = [*options.lowers, *(bind.source for bind in task.wishes.binds), sys.executable, sys.prefix, __file__]
    needed += [path for path in (options.upper, options.work, options.log_file, _here(), *sys.path) if path]
    paths = [os.path.realpath(path) for path in needed]
    # Over LOWER `/` what is in it would be missing in the view.
    for stage in sorted(filter(_is_directory, _STAGES), key=_holds_something):
        if any(f"{path}/".startswith(f"{stage}/") for path in paths):
            continue
        data = "mode=0755" + (f",size={options.size}" if options.size else "")
        syscalls.mount(b"tmpfs", stage.encode(), b"tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, data.encode())
        os.mkdir(f"{stage}/root", 0o755)
        return f"{stage}/root"
    raise UserError(
        f"none of {', '.join(_STAGES)} can be used to mount at: each is missing, or holds something that is needed; "
        "make a directory /mnt",
        ExitCode.LAYERS,
    )


def _here() -> str:
    """The working directory.

    Raises:
        UserError: FAILURE: it was removed.
    """
    try:
        return os.getcwd()
    except FileNotFoundError:
        raise UserError("the working directory does not exist any more; change to another", ExitCode.FAILURE) from None


def _is_directory(stage: str) -> bool:
    return os.path.isdir(stage) and not os.path.islink(stage)


def _holds_something(stage: str) -> bool:
    try:
        with os.scandir(stage) as entries:
            return next(entries, None) is not None
    except OSError:
        return True  # not to be looked at


def _mount(task: Task, root: str) -> None:
    """Show the union, with the first engine that mounts: a ranch is no root directory."""
    options = task.options._replace(target=root)
    chosen = [choice for choice in registry.order(options.engine) if choice is not EngineChoice.RANCH]
    reasons: list[str] = []
    for choice in chosen:
        try:
            choose.start(_suited(options, choice, root), task.progress, task.say)
        except UserError as error:
            if error.exit_code is not ExitCode.UNAVAILABLE or choice is chosen[-1] is chosen[0]:
                raise
            reasons.append(f"not {choice.value}: {error.message}")
            continue
        if reasons:
            task.say(f"the {choice.value} engine is used ({'; '.join(reasons)})")
        assert mount_at(root) is not None, "an engine that has started has mounted"
        return
    raise UserError(f"nothing can be mounted here: {'; '.join(reasons)}", ExitCode.UNAVAILABLE)


def _suited(options: Options, choice: EngineChoice, root: str) -> Options:
    """What one engine is asked for."""
    options = options._replace(engine=choice)
    if choice is EngineChoice.FUSE:
        # Else root of this namespace might not touch what is not its own, such as all of a tree of the machine's root;
        # and could neither use nor remove a directory there that is closed to the user on the machine.
        is_root = os.geteuid() == 0
        return options._replace(
            stranger_uid=0 if ids.strangers("uid") and is_root else None,
            stranger_gid=0 if ids.strangers("gid") and is_root else None,
            closed_is_empty=ids.strangers("uid") and is_root,
            hides_upper=True,
        )
    if options.ephemeral and root.endswith("/root"):
        # On our own tmpfs, so that nothing has to be cleaned up, whatever happens.
        return options._replace(ephemeral=False, size=None, upper=f"{os.path.dirname(root)}/upper")
    return options


class _Command:
    """The command, from its start until nothing of it is left.

    Args:
        root: where the union is mounted.
        daemons: children that end by themselves when the mount goes.
        needed: those of them without which there is no union; another one only shows an image.
    """

    def __init__(
        self, task: Task, link: socket.socket, root: str, daemons: frozenset[int], needed: frozenset[int]
    ) -> None:
        self._task = task
        self._link = link
        self._root = root
        self._daemons = daemons
        self._needed = needed
        self._made: list[places.Made] | None = None

    def run(self) -> int:
        """Start it and wait for it; returns its exit status."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            first = self._start()
            self._link.sendall(COMMAND + b"%d\n" % first)
            return self._wait(first, reader)
        except (BrokenPipeError, ConnectionResetError):
            return ExitCode.FAILURE  # nobody waits for us any more
        finally:
            families.end(self._daemons)
            self._tidy()

    def _tidy(self) -> None:
        """Remove the places that were made, from the view; it is still there for us, with nothing mounted over it."""
        if self._made:
            with suppress(OSError):  # the daemon has gone
                root_fd = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                places.remove(root_fd, self._made)
                os.close(root_fd)

    def _start(self) -> int:
        task = self._task
        ours, theirs = socket.socketpair()
        with ours, theirs:
            if task.wishes.own_pids:
                syscalls.unshare(syscalls.CLONE_NEWPID)
            me = os.getpid()
            first = os.fork()
            if first == 0:
                signal.set_wakeup_fd(-1)
                ours.close()
                live(lambda: self._first(theirs, me), "cannot enter the union: ")
            theirs.close()
            # From here, because in a pid namespace the caller's group has no number.
            os.setpgid(first, task.group)
            with ours.makefile("rb") as told:
                self._made = _made(told.readline())
            with suppress(BrokenPipeError):  # it has ended, and said why
                if self._made is not None and task.plan is not None and task.wishes.place is None:
                    ids.write_inner(task.plan, task.wishes.user if task.plan.is_single else None, first)
                ours.sendall(GO)
        return first

    def _first(self, link: socket.socket, parent: int) -> NoReturn:
        """The first process of the command's namespaces; never returns."""
        task = self._task
        wishes = task.wishes
        if wishes.place is not None:
            self._wait_for_go(link, [])
            self._execute_in_place(parent)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        single = ids.is_single_here()
        over = view.View(self._root)
        over.build(wishes, program.SETTINGS if single else {}, as_root=task.plan is None)
        over.enter()
        if task.plan is not None:
            syscalls.show_memory()  # else our maps are not ours to have written
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        self._wait_for_go(link, over.made)
        syscalls.hide_memory()
        as_root = task.plan is None
        if not wishes.own_pids:
            program.run(wishes, task.environment, parent, task.ignored, single_id=single, as_root=as_root)
        command = os.fork()
        if command == 0:
            program.run(wishes, task.environment, 1, task.ignored, single_id=single, as_root=as_root)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os._exit(_reap_until(command))

    @staticmethod
    def _wait_for_go(link: socket.socket, made: list[places.Made]) -> None:
        """Tell what was made, and wait until this process has its group and its maps: not after execve(2)."""
        link.sendall(_lines(made))
        if link.recv(1) != GO:
            os._exit(ExitCode.FAILURE)

    def _execute_in_place(self, parent: int) -> NoReturn:
        wishes, environment = self._task.wishes, self._task.environment
        program.go_to(wishes.workdir, _here())
        command = wishes.command or (environment.get("SHELL") or "/bin/sh",)
        program.execute(command, {**environment, **dict(wishes.environment)}, parent, self._task.ignored)

    def _wait(self, first: int, wakeup: int) -> int:
        """Until the command ends, or the daemon, or the caller."""
        while True:
            ready, _, _ = select.select([wakeup, self._link.fileno()], [], [])
            if wakeup in ready:
                os.read(wakeup, 4096)
            if self._link.fileno() in ready and not self._link.recv(1):
                return ExitCode.FAILURE
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == first:
                    return exit_status(status)
                if pid in self._needed:
                    self._task.say("the daemon of the union has ended; the command was ended too")
                    return ExitCode.FAILURE


def _lines(made: list[places.Made]) -> bytes:
    """What `_made` reads: one line, whatever is in the paths."""
    return b" ".join(b"%d:%s" % (ino, os.fsencode(path).hex().encode()) for ino, path in made) + b"\n"


def _made(line: bytes) -> list[places.Made] | None:
    """None where nothing was told."""
    if not line:
        return None
    pairs = (word.partition(b":") for word in line.split())
    return [places.Made(int(ino), os.fsdecode(bytes.fromhex(path.decode()))) for ino, _, path in pairs]


def exit_status(status: int) -> int:
    """The shell's number for how a process ended: 128 and the signal that ended it.

    Args:
        status: of waitpid(2).
    """
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _reap_until(command: int) -> int:
    """What the first process of a pid namespace does, until the command ends; returns its exit status."""
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == command:
            return exit_status(status)


def live(do: Callable[[], int], doing: str = "") -> NoReturn:
    """The life of a child, which never gets back into the code of its parent.

    Args:
        do: all of it; returns its exit status.
        doing: what fails when a system call does, for the message.
    """
    code = int(ExitCode.FAILURE)
    try:
        code = do()
    except UserError as error:
        sys.stderr.write(f"fuseunion: {error.message}\n")
        code = error.exit_code
    except OSError as error:
        where = f"'{os.fsdecode(error.filename)}': " if error.filename is not None else ""
        sys.stderr.write(f"fuseunion: {doing}{where}{error.strerror}\n")
    except Exception as error:  # noqa: BLE001 - nobody else is left to say it
        sys.stderr.write(f"fuseunion: unexpected error: {error!r}; please report it\n")
    finally:
        sys.stderr.flush()
        os._exit(code)
