"""The note beside a directory that is being filled (filling.py)."""

from __future__ import annotations

import os

from fuseunion.errors import ExitCode, UserError
from fuseunion.offline import beside


def note_of(directory: str) -> str:
    """Where the note of a directory lies."""
    return beside.place(directory, "unfinished")


def refuse_unfinished(directory: str) -> None:
    """Refuse a directory that holds a part of what it should.

    Raises:
        UserError: LAYERS.
    """
    note = note_of(directory)
    if os.path.lexists(note):
        raise UserError(
            f"'{directory}' is incomplete: what filled it was cut off; remove it and '{note}', and begin again",
            ExitCode.LAYERS,
        )
