"""From prepared layers to a mount that answers, and the process that serves it.

    parent                                       child (its own session)
    ------                                       -----------------------
    prepare: check, open, lock
    fork ------------------------------------->  build the union, mount, import pyfuse3
    wait for one report                          /dev/null on 0-2, close what was inherited
           <---------------------- b"+" -------  about to take the first request
                                                 leave a private mount namespace (linux/namespaces/apart.py)
    statvfs(MERGED): an answer from the child
    exit 0                                       serve ... unmounted: close layers, remove the work directory, let go
                                                 of the locks, put the upper on disk, exit

The locks and the layers' descriptors pass over the fork. A failure in the child comes back as the report, so that the
one line on stderr and the exit code are the parent's, and the child undoes what was made. Nothing of the child keeps
the parent's stderr or session: a container engine waits until both have gone.

Putting the upper on disk can take as long as the disk likes, and container engines mount the same upper again at once.
So it comes when nothing is held any more but a descriptor to do it with.
"""

import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

from fuseunion import bytecode
from fuseunion.engines.fuse import mount_point
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.linux.objects.permission import opened_again
from fuseunion.linux.runtime.directory import CONTROL, PAUSE, SUFFIX
from fuseunion.mounting import log
from fuseunion.mounting.assembly import announce, build_union, open_layers, tell
from fuseunion.mounting.options import Options
from fuseunion.mounting.prepared import Prepared

_log = logging.getLogger("fuseunion.daemon")

_READY = b"+"

_NEVER = 1 << 30
"""Times that the younger objects are looked through before all are."""


def run(prepared: Prepared, options: Options, inherited: frozenset[int]) -> ExitCode:
    """Mount and serve: in this process with -f or -d, else in a child, returning when the mount is live.

    Args:
        inherited: descriptors that the program was started with, closed in the child.
    Raises:
        UserError: the mount did not come about.
    """
    given = mount_point.descriptor_of(prepared.target)
    handler = log.file_handler(options.log_file) if options.log_file else None
    if options.foreground or options.trace:
        if handler:
            log.to_handler(handler, trace=options.trace)
        else:
            log.to_stderr(trace=options.trace)
        _serve(prepared, options, lambda: None)
        return ExitCode.OK

    def detach() -> None:
        if handler:
            log.to_handler(handler)
        else:
            log.to_syslog()
        _close_inherited(inherited - {given})
        _redirect_to_null()

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        prepared.apart = True
        os._exit(_child(prepared, options, writer, detach))
    os.close(writer)
    _await_report(reader, pid)
    prepared.let_go_of_images()
    _await_answer(prepared.target)
    return ExitCode.OK


def _child(prepared: Prepared, options: Options, writer: int, detach: Callable[[], None]) -> int:
    """The daemon's life; returns its exit status, which nobody reads after the report."""
    report = writer

    def ready() -> None:
        nonlocal report
        detach()
        os.write(report, _READY)
        os.close(report)
        report = -1

    try:
        os.setsid()
        _serve(prepared, options, ready)
    except UserError as error:
        code, message = error.exit_code, error.message
    except Exception as error:  # noqa: BLE001
        # The last line of defence of the process: whatever it is has to reach the user or the log.
        _log.debug("the daemon ends", exc_info=True)
        code, message = ExitCode.FAILURE, f"{type(error).__name__}: {error}"
    else:
        return ExitCode.OK
    if report >= 0:
        os.write(report, b"%d %s" % (code, message.encode(errors="surrogateescape")))
    else:
        _log.error("%s", message)
    return code


def load() -> None:
    """Import what serves a mount, and with that all that there is to import.

    Raises:
        ImportError: pyfuse3, trio, or a library that they need, is missing.
    """
    # What is beneath pyfuse3 has to be there first.
    from fuseunion.engines.fuse.pyfuse.lean_imports import import_lean
    from fuseunion.engines.fuse.wire.native import device  # noqa: F401

    import_lean()
    from fuseunion.engines.fuse.asking import facts  # noqa: F401
    from fuseunion.engines.fuse.asking.sockets import orders, pause_socket, status_socket  # noqa: F401
    from fuseunion.engines.fuse.serving import requests, tidying  # noqa: F401
    from fuseunion.engines.fuse import session  # noqa: F401  # isort: skip  # the last import of all

    bytecode.finish()


def _serve(prepared: Prepared, options: Options, ready: Callable[[], None]) -> None:
    """Build, mount and serve until unmounted; undoes everything on failure."""
    with ExitStack() as last, ExitStack() as stack:
        stack.callback(prepared.close)
        try:
            # Only now, when the user can be refused nothing any more: this imports pyfuse3 and trio.
            load()
        except ImportError as error:
            raise _not_installed(error) from None
        from fuseunion.engines.fuse import session
        from fuseunion.engines.fuse.asking.facts import Facts
        from fuseunion.engines.fuse.asking.sockets import listener, pause_socket, status_socket
        from fuseunion.engines.fuse.asking.sockets.control_socket import ControlSocket
        from fuseunion.engines.fuse.asking.sockets.orders import Orders
        from fuseunion.engines.fuse.serving.requests import Requests
        from fuseunion.engines.fuse.serving.tidying import tidy
        from fuseunion.engines.fuse.wire.native import device

        layers = open_layers(prepared, options)
        sockets = listener.make(SUFFIX, CONTROL, *([PAUSE] if prepared.upper is not None else []))
        for each in sockets:
            stack.callback(each.close)
        os.chdir("/")
        os.umask(0)
        # A signal that comes between the mount and the loop is kept for the loop, which unmounts.
        signal.pthread_sigmask(signal.SIG_BLOCK, session.SIGNALS)
        prepared.on_failure(signal.pthread_sigmask, signal.SIG_UNBLOCK, session.SIGNALS)
        stored = (layers.upper or layers.lowers[0]).ownership is not None
        read_only = options.read_only or prepared.full is not None
        mounted = mount_point.make(
            prepared.target, _mount_flags(options, prepared, read_only=read_only, own_root=stored)
        )
        stack.callback(mounted.unmount)
        # What is copied up without its owner must not keep what would speak for that owner (core/copying/metadata.py).
        union = build_union(layers, options, posix_acl=mounted.posix_acl, owner_optional=options.mine)
        stack.callback(union.close)

        to_sync = -1
        if layers.upper is not None and not union.settings.volatile and not prepared.has_image_upper:
            # Opened, not duplicated: a lock goes with the last duplicate of its descriptor (flock(2)). An image is put
            # on disk when its program has ended, for which nothing of it may be open.
            to_sync = opened_again(layers.upper.root_fd)
            last.callback(os.close, to_sync)

        def live() -> None:
            if layers.upper is not None and to_sync >= 0:
                last.callback(_write_out, to_sync, layers.upper.label)
            prepared.keep()
            union.root.stale()  # the upper remembers its lowers
            tell(layers, prepared, options)
            for each in reversed(sockets):  # the one that is looked for comes last
                each.show()
            ready()
            if not (options.foreground or options.trace or union.needs_paths) and mounted.namespace is not None:
                mounted.namespace.leave()
            announce(layers, prepared)

        gc.freeze()
        gc.enable()  # off since FuseEngine.start
        # What a request leaves is found while it is young. To look at every inode that is known would make everybody
        # wait, 0.2 s for 200,000 of them, and find nothing: they hold no cycles when they go.
        gc.set_threshold(*gc.get_threshold()[:2], _NEVER)
        requests = Requests(union, own_root=mounted.own_root, list_layers=options.list_layers)
        requests.ahead.begin()
        reading = "pyfuse3" if device.device is None else "extension"
        facts = Facts(requests, prepared, options, reading)
        beside: list[Callable[[], Awaitable[None]]] = [partial(tidy, union)]
        if sockets:
            status, control, *pauses = sockets
            beside.append(partial(status_socket.serve, status, facts))
            beside.append(ControlSocket(control, Orders(requests, facts, prepared, options).by_name()).serve)
            beside += (partial(pause_socket.serve, pause) for pause in pauses)
        shown = ((image.pidfd, image.died) for image in prepared.images)
        beside += (partial(session.watch, pidfd, died) for pidfd, died in shown if pidfd is not None)
        session.serve(
            requests,
            mounted,
            on_ready=live,
            beside=beside,
            timeout=options.timeout,
            trace=options.trace,
            allow_root=options.allow_root,
            spin=options.spin / 1e6,
        )


def _not_installed(error: ImportError) -> UserError:
    """What to install: the packages of the extra `fuse`, or the library that pyfuse3 was built for."""
    if isinstance(error, ModuleNotFoundError):
        return UserError(
            f"the Python package {error.name} is not installed; install it with: pip install 'fuseunion[fuse]'",
            ExitCode.UNAVAILABLE,
        )
    return UserError(
        f"pyfuse3 cannot be loaded ({error}); install libfuse 3 (Debian, Ubuntu: libfuse3-3 or libfuse3-4)",
        ExitCode.UNAVAILABLE,
    )


def _write_out(fd: int, label: str) -> None:
    """Put the filesystem of an upper on disk, after its mount has ended.

    Raises:
        UserError: FAILURE, which a daemon in the background can only log.
    """
    try:
        syscalls.syncfs(fd)
    except OSError as error:
        raise UserError(
            f"upper '{label}' cannot be written to disk: {error.strerror}; what was changed last may be lost",
            ExitCode.FAILURE,
        ) from None


def _mount_flags(options: Options, prepared: Prepared, *, read_only: bool, own_root: bool) -> mount_point.MountFlags:
    return mount_point.MountFlags(
        read_only=read_only,
        allow_other=True if options.allow_root else options.allow_other,
        suid=False if prepared.is_anybodys and options.suid is None else options.suid,
        dev=options.dev,
        exec=options.exec,
        posix_acl=options.keeps_acls,
        own_root=own_root,
        source=options.source or mount_point.source_of([lower.label for lower in prepared.lowers]),
    )


def _await_report(reader: int, pid: int) -> None:
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        with open(reader, "rb") as pipe:
            report = pipe.read()
        # From here on it is too late: the mount is live, and what it stands on must not be taken away.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    except KeyboardInterrupt:
        # In a session of its own the child has heard nothing. It keeps the signal for its loop, and unmounts then.
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        raise
    if report == _READY:
        return
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if report:
        code, _, message = report.partition(b" ")
        raise UserError(message.decode(errors="surrogateescape"), ExitCode(int(code)))
    reason = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    raise UserError(f"the daemon ended {reason} before the mount was live", ExitCode.FAILURE)


def _await_answer(target: str) -> None:
    """One request through the kernel and back: the mount answers."""
    if target.startswith("/dev/fd/"):
        return  # mounted by somebody else, and we are not told where
    try:
        os.statvfs(target)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise UserError(f"the daemon of '{target}' ended at once; see its log", ExitCode.FAILURE) from None
        # Any other errno is an answer.
        _log.debug("statvfs of the new mount: %s", error)


def _close_inherited(fds: frozenset[int]) -> None:
    for fd in fds:
        os.close(fd)


def _redirect_to_null() -> None:
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
