"""Upper directories that a ranch stands on: what is changed in one now would be undone when the ranch is collected.

What a ranch keeps beside UPPER is described in engines/ranch/record/record.py.
"""

import os
from pathlib import Path
from typing import Any

from fuseunion.errors import ExitCode, UserError

VERSION = 1
RECORD = "state.json"


def beside(upper: str) -> Path:
    """Where the state of a ranch with this upper directory lies; without one, MERGED takes its place."""
    return Path(os.path.dirname(upper), f".{os.path.basename(upper)}.fuseunion-ranch")


def read_fields(path: Path) -> dict[str, Any] | None:
    """The fields of the record in a state directory, not yet judged; None where there is none.

    Raises:
        UserError: LAYERS, when it cannot be read or is of another version.
    """
    import json  # only here: every mount with an upper imports this module

    try:
        with open(path / RECORD, encoding="ascii") as file:
            fields = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"the state of a ranch in '{path}' cannot be read: {error.strerror}", ExitCode.LAYERS) from None
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or fields.pop("version", None) != VERSION:
        raise damaged(path)
    return fields


def damaged(path: Path) -> UserError:
    """The error for a record that cannot be understood."""
    return UserError(
        f"'{path / RECORD}' is damaged or of another version; move it away to give the ranch up", ExitCode.LAYERS
    )


def refuse(upper: str) -> None:
    """Refuse an upper directory that a ranch stands on.

    Raises:
        UserError: BUSY.
    """
    fields = read_fields(beside(upper))
    if fields is not None:
        merged = fields.get("merged")
        raise UserError(
            f"upper directory '{upper}' belongs to the ranch at '{merged}'; "
            f"take that down first: fuseunion umount '{merged}'",
            ExitCode.BUSY,
        )
