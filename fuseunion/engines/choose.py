"""Which engine shows the union: the first one in the order of registry.py that serves.

An engine is passed over when it cannot honour an option, or when it says UNAVAILABLE while it is being started: that
is the only honest probe, and it costs nothing where the first one works. When another than the first one serves, one
line says which and why. Where nothing serves, one line says why not, engine by engine.

What is mounted at MERGED already is judged here too, because any engine may have mounted it:

                    a person mounts there                    a container engine does
    live, ours      refused, but where it is a layer too     goes on top, as the kernel has it
    dead, ours      refused, with the remedy                 taken away: the engine has lost its daemon, and cannot
    anything else   goes on top, as the kernel has it        goes on top; what does not answer is refused later
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import nullcontext

from fuseunion.engines import registry
from fuseunion.engines.engine import Progress
from fuseunion.engines.live import is_dead
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.options import EngineChoice, Form, Options


def missing() -> str | None:
    """What every engine needs and is not here, for a message; None when nothing is missing.

    Every directory of a layer is opened by openat2(2), beneath the layer's root and without a link on the way.
    """
    try:
        os.close(syscalls.openat2(syscalls.AT_FDCWD, b"/", os.O_PATH | os.O_DIRECTORY, syscalls.RESOLVE_NO_SYMLINKS))
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return "openat2(2) is missing: Linux 5.6 or newer is needed, and a sandbox that lets it through"
        return f"openat2(2) is forbidden by a sandbox ({error.strerror}); in docker: --security-opt seccomp=unconfined"
    return None


def start(options: Options, progress: Progress, say: Callable[[str], None]) -> ExitCode:
    """Start the first engine that serves.

    Args:
        options: what was asked for.
        progress: for what takes long.
        say: writes one line to the user.
    Returns:
        What the engine's `start` returns.
    Raises:
        UserError: UNAVAILABLE with all the reasons; whatever else stops an engine, at once.
    """
    lacking = missing()
    if lacking is not None:
        raise UserError(lacking, ExitCode.UNAVAILABLE)
    make_way(options)
    reasons: list[str] = []
    for choice in registry.order(options.engine):
        engine = registry.load(choice)
        refused = engine.refusals(options)
        if refused:
            reasons.append(f"not {choice.value}: {', '.join(refused)}")
            continue
        # With -f nothing can be said afterwards.
        taken = f"the {choice.value} engine is used ({'; '.join(reasons)})" if reasons else None
        if taken and options.foreground:
            say(taken)
        try:
            code = engine.start(options, progress)
        except UserError as error:
            if options.engine is choice:
                raise
            if error.exit_code is not ExitCode.UNAVAILABLE:
                raise _with_reasons(error, choice, reasons) from None
            reasons.append(f"not {choice.value}: {error.message}")
            continue
        if taken and not options.foreground:
            say(taken)
        return code
    raise UserError(f"no engine can do this here: {'; '.join(reasons)}", ExitCode.UNAVAILABLE)


def make_way(options: Options, *, only_look: bool = False) -> None:
    """Refuse to mount over a mount of ours, or take a dead one away; the module says when.

    Args:
        options: what was asked for.
        only_look: change nothing.
    Raises:
        UserError: BUSY over a live mount, LAYERS over a dead one.
    """
    target = options.target
    dead = is_dead(target)
    if target.startswith("/dev/fd/") or not (dead or _is_mount_point(target)):
        return
    found = registry.find(target)
    if found is None or found[1].entry is None:
        return  # somebody else's, or no mount
    engine, live = found
    if options.form is Form.PLAIN:
        _refuse_covering(options, dead=dead)
    elif dead and live.entry is not None and live.entry.option("user_id") == str(os.getuid()) and not only_look:
        try:
            _detach(live.path, live.entry.mount_id)
        except PermissionError:
            # fusermount3 does it for an ordinary user, and looks itself whose mount it is.
            engine.stop(live, lambda _: nullcontext(lambda _: None), lazy=True, discard=False)


def _detach(path: str, mount_id: int) -> None:
    """Take away this mount and no other, whatever somebody has put in its place, or in that of a directory above.

    Raises:
        PermissionError: an ordinary user.
    """
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as fields:
            found = [line.split()[1] for line in fields if line.startswith("mnt_id:")]
        if found == [str(mount_id)]:
            syscalls.umount2(b"/proc/self/fd/%d" % fd, syscalls.MNT_DETACH)
    finally:
        os.close(fd)


def _refuse_covering(options: Options, *, dead: bool) -> None:
    target = options.target
    if dead:
        raise UserError(
            f"merged directory '{target}' is a dead mount of fuseunion; remove it with: fuseunion umount '{target}'",
            ExitCode.LAYERS,
        )
    layers = [*options.lowers, *filter(None, [options.upper])]
    if not any(os.path.exists(layer) and os.path.samefile(layer, target) for layer in layers):
        raise UserError(
            f"merged directory '{target}' is a live mount of fuseunion; unmount it first: fuseunion umount '{target}'",
            ExitCode.BUSY,
        )


def _is_mount_point(path: str) -> bool:
    """Whether another filesystem begins there; a quick look, for which no list of mounts is read."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.join(os.path.realpath(path), os.pardir)).st_dev
    except OSError:
        return False  # missing, or not to be looked at: the engine says so


def _with_reasons(error: UserError, choice: EngineChoice, reasons: list[str]) -> UserError:
    """What stopped an engine that the user did not name has to say why it was tried at all."""
    if not reasons:
        return error
    return UserError(f"{error.message} (the {choice.value} engine; {'; '.join(reasons)})", error.exit_code)
