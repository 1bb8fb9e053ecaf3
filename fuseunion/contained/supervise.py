"""The process that the user started: it makes the namespaces' first process, and waits until nothing is left.

Whatever of our processes is killed, the others end the rest:

    this one            `inside.py` sees the link end, kills the command and all its descendants, and ends
    that of inside.py   the command's descendants become children of this process, which kills them
    the daemon          inside.py ends the command; this process then puts the work directory in order
    the command         has ended with status 137

It passes on signals that somebody sent to it. What the terminal sends (^C, ^Z) the command gets itself, since it is in
the same process group. It returns when the daemon has put the upper on disk.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

from fuseunion.contained import families, ids, inside, program
from fuseunion.contained.wishes import Wishes
from fuseunion.engines.engine import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.options import Options

_PASSED_ON = frozenset(
    (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
)


def run(options: Options, wishes: Wishes, progress: Progress, say: Callable[[str], None]) -> int:
    """Run a command in a union; returns its exit status when nothing of it is left and the upper is in order.

    Args:
        options: the union; its target is not looked at.
        wishes: the command.
        progress: for what takes long.
        say: writes one line to the user.

    Raises:
        UserError: UNAVAILABLE where no user namespace can be had.
    """
    ignored = frozenset(number for number in program.SIGNALS if signal.getsignal(number) is signal.SIG_IGN)
    environment = dict(os.environ)
    task = inside.Task(options, wishes, _plan(wishes), environment, os.getpgrp(), ignored, progress, say)
    syscalls.adopt_orphans()
    waited_for = _PASSED_ON - ignored | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    try:
        return _Supervisor(task, waited_for).run()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _plan(wishes: Wishes) -> ids.Plan | None:
    if os.geteuid() == 0:
        return None
    if wishes.place is not None:
        return ids.as_they_are()
    return ids.with_subordinates() or ids.single()


class _Supervisor:
    """One command.

    Args:
        waited_for: the signals that are blocked, and come here.
    """

    def __init__(self, task: inside.Task, waited_for: frozenset[signal.Signals]) -> None:
        self._task = task
        self._waited_for = waited_for
        self._link: socket.socket | None = None
        self._daemons: set[int] = set()
        self._programs: set[int] = set()  # that show images, on behalf of a daemon
        self._command: int | None = None
        # What the caller had started before it called execve(2) for us: nobody asked to end it.
        self._others = frozenset(families.children(os.getpid()))
        self._told = b""
        self._stopped_by = 0

    def run(self) -> int:
        """Start, wait, clean up; returns the exit status."""
        self._link, theirs = socket.socketpair()
        first = os.fork()
        if first == 0:
            link = self._link
            link.close()
            inside.live(lambda: inside.run(self._task, theirs))
        theirs.close()
        if self._task.plan is not None:
            self._write_maps(first)
        status, killed = self._wait(first)
        return self._clean_up(status, killed)

    def _write_maps(self, first: int) -> None:
        assert self._link is not None and self._task.plan is not None
        if self._link.recv(2) != inside.MAP + b"\n":
            return  # it has ended, and said why
        reason = ids.write(self._task.plan, first)
        if reason is None:
            self._link.sendall(inside.GO)
            return
        self._link.close()
        os.waitpid(first, 0)
        raise UserError(
            f"the ids of the user namespace cannot be mapped ({reason}); see /etc/subuid and /etc/subgid",
            ExitCode.UNAVAILABLE,
        )

    def _wait(self, first: int) -> tuple[int, bool]:
        """Until the first process ends; returns its exit status, and whether it was killed."""
        while True:
            number = signal.sigwaitinfo(self._waited_for)
            if number.si_signo == signal.SIGCHLD:
                with suppress(ChildProcessError):
                    pid, status = os.waitpid(first, os.WNOHANG)
                    if pid == first:
                        return inside.exit_status(status), os.WIFSIGNALED(status)
                continue
            # What the terminal sent, it sent to the command as well (si_code SI_KERNEL).
            self._pass_on(number.si_signo, by_kernel=number.si_code > 0)

    def _pass_on(self, number: int, *, by_kernel: bool) -> None:
        self._listen()
        if self._command is None:
            # Not begun yet: there will be no command.
            self._stopped_by = number
            if self._link is not None:
                self._link.shutdown(socket.SHUT_WR)
        elif not by_kernel:
            target = self._command
            if self._task.wishes.own_pids:
                target = next(iter(families.children(target)), target)
            with suppress(ProcessLookupError):
                os.kill(target, number)

    def _listen(self) -> None:
        """Take in what was told so far."""
        assert self._link is not None
        while True:
            try:
                piece = self._link.recv(4096, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not piece:
                break
            self._told += piece
        *lines, self._told = self._told.split(b"\n")
        for line in lines:
            if line.startswith(inside.DAEMON):
                self._daemons.add(int(line[1:]))
            elif line.startswith(inside.PROGRAM):
                self._programs.add(int(line[1:]))
            elif line.startswith(inside.COMMAND):
                self._command = int(line[1:])

    def _clean_up(self, status: int, killed: bool) -> int:
        assert self._link is not None
        self._listen()
        self._link.close()
        if self._command is not None:
            families.end(self._daemons | self._programs | self._others)
        # Before there was a command, nothing but a daemon can be left, which ends by itself.
        broken = killed
        for pid, ended in self._ended():
            if pid in self._others:
                continue
            if os.WIFSIGNALED(ended):
                broken = True
            elif os.WEXITSTATUS(ended) and pid in self._daemons:
                self._task.say("what was changed last could not be put in order; see the log of the daemon")
                status = status or ExitCode.FAILURE
        if broken or status == ExitCode.FAILURE or not self._daemons:
            self._put_in_order()
        if killed:
            self._task.say("one of our processes was killed; the command was ended with it")
        return 128 + self._stopped_by if self._stopped_by else status

    def _ended(self) -> Iterator[tuple[int, int]]:
        """The children that end, as waitpid(2) tells it, until none of ours is left."""
        while not self._others or not self._others.issuperset(families.children(os.getpid())):
            try:
                yield os.waitpid(-1, 0)
            except ChildProcessError:
                return

    def _put_in_order(self) -> None:
        """What a killed daemon left in the work directory goes, as at the next mount."""
        options = self._task.options
        if options.upper is None or options.read_only:
            return
        from fuseunion.mounting.prepare import default_work_path

        if options.work is None and not os.path.isdir(default_work_path(os.path.realpath(options.upper))):
            return  # nothing was left
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            ours.close()
            inside.live(lambda: _clean(options, self._task.plan, theirs))
        theirs.close()
        self._link = ours
        with suppress(UserError):
            if self._task.plan is not None:
                self._write_maps(child)
        ours.close()
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _clean(options: Options, plan: ids.Plan | None, link: socket.socket) -> int:
    from fuseunion.mounting.assembly import build_union, open_layers
    from fuseunion.mounting.prepare import prepare

    # What cannot be tidied now, because somebody mounts it already, is tidied by the next mount.
    with suppress(UserError):
        inside.enter(plan, link)
        prepared = prepare(options._replace(target="/proc", hides_upper=True))
        build_union(open_layers(prepared, options), options, posix_acl=False).close()
        prepared.close()
    return ExitCode.OK
