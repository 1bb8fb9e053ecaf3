"""Upper directories that a ranch stands on: what is changed in one now would be undone when the ranch is collected.

What a ranch keeps beside UPPER is described in engines/ranch/record/record.py. It says what may be deleted, so it is
believed only where nobody else can have written it (linux/owned.py).
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger("fuseunion.ranch")

VERSION = 1
RECORD = "state.json"

_LIMIT = 1 << 22
"""Bytes of a record. It holds the paths of at most 500 layers, and what was written on one command line."""


def beside(upper: str) -> Path:
    """Where the state of a ranch with this upper directory lies; without one, MERGED takes its place."""
    from pathlib import Path  # a mount that has nothing to do with ranches need not wait for it

    return Path(_name_beside(upper))


def may_stand_on(upper: str) -> bool:
    """Whether there is something where the state of a ranch with this upper directory would be."""
    return os.path.lexists(_name_beside(upper))


def _name_beside(upper: str) -> str:
    return os.path.join(os.path.dirname(upper), f".{os.path.basename(upper)}.fuseunion-ranch")


def open_state(path: Path) -> int | None:
    """A descriptor of a state directory that is this user's alone; None where there is none.

    Raises:
        UserError: LAYERS, when it is a link or somebody else's.
    """
    try:
        return owned.open_directory(str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, error) from None


def read_fields(path: Path, fd: int, owners: Collection[int] = ()) -> dict[str, Any] | None:
    """The fields of the record in a state directory, not yet judged; None where there is none.

    Args:
        path: of the directory, for messages.
        fd: of the directory.
        owners: who may own the record besides the effective user.

    Raises:
        UserError: LAYERS, when it cannot be read or is of another version.
    """
    import json  # only here: every mount with an upper imports this module

    try:
        fields = json.loads(owned.read_file(RECORD, fd, _LIMIT, owners=owners).decode("ascii"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path / RECORD, error) from None
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
        raise damaged(path)
    return fields


def _unusable(path: Path, error: OSError) -> UserError:
    reason = {
        errno.ELOOP: "is a symbolic link, or behind one",
        errno.ENOTDIR: "is no directory",
    }.get(error.errno or 0, error.strerror)
    return UserError(f"the state of a ranch '{path}' cannot be used: {reason}; it must be yours alone", ExitCode.LAYERS)


def damaged(path: Path) -> UserError:
    """The error for a record that cannot be understood."""
    return UserError(
        f"'{path / RECORD}' is damaged or of another version; move it away to give the ranch up", ExitCode.LAYERS
    )


def refuse(upper: str) -> None:
    """Refuse an upper directory that a ranch stands on: one of this user, or of whom the upper belongs to.

    What anybody else put there is no ranch, and is in nobody's way.

    Raises:
        UserError: BUSY.
    """
    path = beside(upper)
    try:
        owners = {os.stat(upper).st_uid}
    except OSError:
        owners = set()  # still to be made
    try:
        fd = owned.open_directory(str(path), owners=owners)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("'%s' is not the state of a ranch of yours: %s", path, error.strerror)
        return
    try:
        fields = read_fields(path, fd, owners)
    finally:
        os.close(fd)
    if fields is not None:
        merged = fields.get("merged")
        raise UserError(
            f"upper directory '{upper}' belongs to the ranch at {merged!r}; "
            f"take that down first: fuseunion umount {merged!r}",
            ExitCode.BUSY,
        )
