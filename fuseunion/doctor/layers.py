"""What the directories of a mount in question are like, and what the filesystem of the upper can do."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fuseunion.doctor import trials
from fuseunion.engines import registry
from fuseunion.engines.finding import Finding, refused
from fuseunion.errors import UserError
from fuseunion.linux.mountinfo import filesystem_of
from fuseunion.mounting.checks import owners
from fuseunion.mounting.options import Options


def layers(options: Options, *, try_upper: bool) -> Iterator[Finding]:
    """Each lower, the upper and what is known of it, and MERGED.

    Args:
        options: what was asked for.
        try_upper: make a directory beside the upper, and see what its filesystem can do.
    """
    for path in options.lowers:
        yield _image("lower", path, options) if os.path.isfile(path) else _directory("lower", path)
        if not options.read_only and os.path.isdir(path):
            says = owners.objection(os.stat(path), options)
            if says is not None:
                yield Finding(f"lower {path}", None, says)
    if options.upper is not None and os.path.isfile(options.upper):
        yield _image("upper", options.upper, options)
    elif options.upper is not None:
        yield from _upper(options.upper, try_it=try_upper)
    if not options.target.startswith("/dev/fd/"):
        yield _directory("merged", options.target)


def _directory(part: str, path: str) -> Finding:
    if not os.path.isdir(path):
        return Finding(f"{part} {path}", False, "is not a directory", f"mkdir '{path}', or correct the path")
    if not os.access(path, os.R_OK | os.X_OK):
        return Finding(f"{part} {path}", False, "may not be read by you", f"chmod +rx '{path}', or use another")
    return Finding(f"{part} {path}", True, f"on {filesystem_of(path)}")


def _image(part: str, path: str, options: Options) -> Finding:
    """An image file, and who would show it."""
    from fuseunion.images import recognise
    from fuseunion.images.layers import showing

    try:
        fd = recognise.open_file(path)
    except OSError as error:
        return Finding(f"{part} {path}", False, f"cannot be opened: {error.strerror}", "correct the path, or chmod it")
    try:
        kind = recognise.kind_of(fd)
        if kind is None:
            remedy = "correct the path"
            return Finding(f"{part} {path}", False, "is neither a directory nor an image", remedy)
        reason = showing.objection(path, fd, kind, showing.Way(options.images.value), writable=part == "upper")
    except UserError as error:
        return refused(f"{part} {path}", error.message, "leave images=kernel out")
    finally:
        os.close(fd)
    shown = "mounted by the kernel" if reason is None else f"shown by a program, not mounted by the kernel: {reason}"
    return Finding(f"{part} {path}", True, f"{kind.value}, {shown}")


def _upper(upper: str, *, try_it: bool) -> Iterator[Finding]:
    path = os.path.realpath(upper)
    parent = path if os.path.isdir(path) else os.path.dirname(path)
    if not os.path.isdir(parent):
        yield Finding(f"upper {upper}", False, "cannot be made", f"mkdir '{parent}'")
        return
    yield Finding(f"upper {upper}", True, f"on {filesystem_of(parent)}" + ("" if parent == path else " (to be made)"))
    for engine in registry.every():
        yield from engine.claims(path)
    if not try_it:
        return
    found = trials.capabilities(os.path.dirname(path))
    if found is None:
        remedy = f"use an UPPER in a directory that you can write, or --work; '{os.path.dirname(path)}' is not"
        yield Finding("upper's filesystem", False, "could not be tried: no directory can be made beside it", remedy)
        return
    abilities = (
        (
            "whiteout devices",
            found.whiteout_devices,
            "nothing needed: .wh. files are written instead (not with kernel)",
        ),
        ("trusted attributes", found.trusted_xattrs, "only real root has them; user attributes do"),
        ("user attributes", found.user_xattrs, "mount with user_xattr, or use another filesystem (not with kernel)"),
        ("exchanging renames", found.exchange, "nothing needed: a slower way is taken"),
        ("renames that do not replace", found.noreplace, "nothing needed: a slower way is taken"),
        ("renames that leave a whiteout", found.whiteout, "nothing needed: a slower way is taken (not with kernel)"),
    )
    for name, able, remedy in abilities:
        yield Finding(f"upper: {name}", able, "yes" if able else "no", "" if able else remedy)
