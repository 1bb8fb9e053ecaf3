"""Which engine shows the union.

    auto       fuse, else kernel, else ranch
    fastest    kernel, else fuse, else ranch
    a name     that one or none

An engine is passed over when it cannot honour an option, or when it says UNAVAILABLE while it is being started: that
is the only honest probe, and it costs nothing where the first one works. When another than the first one serves, one
line says which and why. Where nothing serves, one line says why not, engine by engine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls
from fuseunion.mounting.options import EngineChoice, Form, Options, XattrPermissions

_ORDER = {
    EngineChoice.AUTO: (EngineChoice.FUSE, EngineChoice.KERNEL, EngineChoice.RANCH),
    EngineChoice.FASTEST: (EngineChoice.KERNEL, EngineChoice.FUSE, EngineChoice.RANCH),
}

Start = Callable[[EngineChoice], ExitCode]


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


def order(engine: EngineChoice) -> Sequence[EngineChoice]:
    """The engines to try, in this order."""
    return _ORDER.get(engine, (engine,))


def refusals(options: Options, engine: EngineChoice) -> list[str]:
    """Why an engine cannot honour the options, wherever it is started; empty when it can."""
    match engine:
        case EngineChoice.KERNEL:
            from fuseunion.engines.kernel import overlay

            return overlay.refusals(options)
        case EngineChoice.RANCH:
            return _ranch_refusals(options)
        case _:
            return _fuse_refusals(options)


def _fuse_refusals(options: Options) -> list[str]:
    wishes = (
        (options.ranch.inject, "it cannot inject files"),
        (
            options.wants_access_times,
            f"it cannot keep access times ({options.wants_access_times}): reads of what the kernel has cached never "
            "reach it",
        ),
    )
    return [reason for wish, reason in wishes if wish]


def _ranch_refusals(options: Options) -> list[str]:
    wishes = (
        (options.form is Form.MOUNT_PROGRAM, "the caller needs a mount"),
        (options.read_only, "a tree of links cannot be read-only"),
        (options.size is not None, "it cannot limit its size"),
        (options.uid_map or options.gid_map, "it has no id maps"),
        (options.squash_uid is not None or options.squash_gid is not None, "it cannot squash ids"),
        (options.xattr_permissions is not XattrPermissions.OFF, "it keeps no owners in attributes (--fakeroot)"),
        (options.foreground or options.trace, "there is no daemon to stay in the foreground"),
        (options.log_file is not None, "there is no daemon to write a log"),
        (options.allow_root, "it cannot let root in alone (allow_root)"),
        (not options.exec, "it cannot forbid to execute (noexec)"),
        (not options.acl, "it cannot leave ACLs out (noacl)"),
        (not options.xattrs, "it cannot leave attributes out (noxattrs)"),
        (options.wants_access_times, f"it keeps no access times ({options.wants_access_times})"),
        (options.static_nlink, "it shows the links that a directory has (static_nlink)"),
        (options.target.startswith("/dev/fd/"), "it needs a directory"),
    )
    return [reason for wish, reason in wishes if wish]


def start(options: Options, start_one: Start, say: Callable[[str], None]) -> ExitCode:
    """Start the first engine that serves.

    Args:
        start_one: starts one engine; raises UserError UNAVAILABLE where it cannot be had.
        say: writes one line to the user.
    Raises:
        UserError: UNAVAILABLE with all the reasons; whatever else stops an engine, at once.
    """
    lacking = missing()
    if lacking is not None:
        raise UserError(lacking, ExitCode.UNAVAILABLE)
    reasons: list[str] = []
    for engine in order(options.engine):
        refused = refusals(options, engine)
        if refused:
            reasons.append(f"not {engine.value}: {', '.join(refused)}")
            continue
        # With -f nothing can be said afterwards.
        taken = f"the {engine.value} engine is used ({'; '.join(reasons)})" if reasons else None
        if taken and options.foreground:
            say(taken)
        try:
            code = start_one(engine)
        except UserError as error:
            if options.engine is engine:
                raise
            if error.exit_code is not ExitCode.UNAVAILABLE:
                raise _with_reasons(error, engine, reasons) from None
            reasons.append(f"not {engine.value}: {error.message}")
            continue
        if taken and not options.foreground:
            say(taken)
        return code
    raise UserError(f"no engine can do this here: {'; '.join(reasons)}", ExitCode.UNAVAILABLE)


def _with_reasons(error: UserError, engine: EngineChoice, reasons: list[str]) -> UserError:
    """What stopped an engine that the user did not name has to say why it was tried at all."""
    if not reasons:
        return error
    return UserError(f"{error.message} (the {engine.value} engine; {'; '.join(reasons)})", error.exit_code)
