"""`--overlay PATH[:ro|:rw]`, repeated, with the meaning and in the order that Apptainer gives it.

    a directory        holds `upper` and `work`; written, unless it says `:ro`
    an ext image       the same, in a file
    a SIF              its last overlay partition, which is written
    squashfs, tar      only read, as they are

A later one lies on top of those before it, and the one that is written on top of all, wherever it stands; there is one
at most (apptainer-exec(1); internal/pkg/runtime/engine/apptainer/container_linux.go, addOverlayMount).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.recognise import Kind, kind_of, open_file
from fuseunion.mounting.options import Options
from fuseunion.mounting.options.grammar import split_unescaped, unescape


def applied(options: Options, overlays: Sequence[str]) -> Options:
    """The options of a union with these overlays on its lowers.

    Args:
        options: of the union below them; without an upper where one of them is written.
        overlays: as the user wrote them, in their order.

    Raises:
        UserError: USAGE for two that are written, or one beside an UPPER; LAYERS for one that is none.
    """
    written: tuple[str, Options] | None = None
    lowers = options.lowers
    for text in overlays:
        path, mode = _parsed(text)
        kind = _kind(path)
        read_only = mode == "ro" or kind in (Kind.SQUASHFS, Kind.TAR)
        if read_only and mode == "rw":
            raise UserError(f"--overlay '{text}': a {kind.value if kind else ''} cannot be written; leave ':rw' out")
        if read_only:
            lowers = (_lower(text, path, kind), *lowers)
            continue
        _refuse_second(options, text, written and written[0])
        changed = options._replace(ephemeral=False, upper=path)
        if kind is None:
            changed = changed._replace(upper=os.path.join(path, "upper"), work=os.path.join(path, "work"))
        written = text, changed
    return (written[1] if written else options)._replace(lowers=lowers)


def _parsed(text: str) -> tuple[str, str | None]:
    *before, last = split_unescaped(text, ":")
    mode = last if before and last in ("ro", "rw") else None
    path = unescape(text if mode is None else ":".join(before))
    if not path:
        raise UserError(f"--overlay '{text}' is not PATH[:ro|:rw]")
    return path, mode


def _kind(path: str) -> Kind | None:
    """What kind of image it is; None for a directory.

    Raises:
        UserError: LAYERS.
    """
    try:
        fd = open_file(path)
    except IsADirectoryError:
        return None
    except OSError as error:
        raise UserError(f"overlay '{path}' cannot be opened: {error.strerror}", ExitCode.LAYERS) from None
    try:
        kind = kind_of(fd)
    except OSError as error:
        raise UserError(f"overlay '{path}' cannot be read: {error.strerror}", ExitCode.LAYERS) from None
    finally:
        os.close(fd)
    if kind is None:
        raise UserError(f"overlay '{path}' is neither a directory nor an image (squashfs, ext, SIF)", ExitCode.LAYERS)
    return kind


def _lower(text: str, path: str, kind: Kind | None) -> str:
    if kind is Kind.SIF:
        raise UserError(f"--overlay '{text}': give a SIF that is only read as a LOWER", ExitCode.LAYERS)
    if kind is not None:
        return path
    upper = os.path.join(path, "upper")
    if not os.path.isdir(upper):
        raise UserError(
            f"overlay '{path}' has no directory 'upper', so there is nothing in it to show", ExitCode.LAYERS
        )
    return upper


def _refuse_second(options: Options, text: str, other: str | None) -> None:
    if other is None and options.upper is not None:
        other = options.upper
    if other is not None:
        raise UserError(
            f"--overlay '{text}' and '{other}' would both be written, and one can be: write ':ro' behind the others"
        )
    if options.read_only:
        raise UserError(f"--read-only and --overlay '{text}' contradict each other; write ':ro' behind it")
