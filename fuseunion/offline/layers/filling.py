"""Filling a directory with a tree, or an upper, from somewhere else.

The directory says so beside it until all is there: `.NAME.fuseunion-unfinished` is made before the first object and
goes after the last one is on disk. What fails in a directory that was empty is undone. Anywhere else, and where the
command is killed, the note stays, and the next command that would fill or read that directory refuses it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from fuseunion.core.disk import trees
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options import Options
from fuseunion.offline.layers import opening
from fuseunion.offline.layers.builder import Builder
from fuseunion.offline.layers.unfinished import note_of, refuse_unfinished


@contextmanager
def filled(
    directory: str, *, hides: bool, adds: bool, work: str | None = None, options: Options | None = None
) -> Iterator[Builder]:
    """A directory to fill in the block; it is on disk when the block has ended well.

    Args:
        directory: made if it is not there; its parent must be.
        hides: it becomes an upper (Builder).
        adds: there may be something in it.
        work: its work directory, None for the default one.
        options: of them count id maps and stored ownership.

    Raises:
        UserError: LAYERS for one that is not empty, or cannot be used; BUSY where it is mounted.
    """
    refuse_unfinished(directory)
    made = _make(directory)
    before = os.stat(directory)
    was_empty = made or not os.listdir(directory)
    if not was_empty and not adds:
        raise UserError(
            f"'{directory}' is not empty; give a new directory, or --add to bring it into this one", ExitCode.LAYERS
        )
    note = _noted(directory)
    try:
        with opening.owned(directory, (), work, options, writes=True) as view:
            builder = Builder(view.union, hides=hides)
            try:
                yield builder
                builder.finish()
            except BaseException:
                builder.close()
                if was_empty:
                    trees.empty(view.upper.root)
                raise
            finally:
                builder.close()
    except BaseException as error:
        if was_empty:
            _restore(directory, before, made=made)
            os.unlink(note)
        elif isinstance(error, UserError):
            raise UserError(
                f"{error.message}; '{directory}' is incomplete now, as '{note}' says", error.exit_code
            ) from None
        raise
    os.unlink(note)


def _make(directory: str) -> bool:
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        if not os.path.isdir(directory):
            raise UserError(f"'{directory}' is not a directory", ExitCode.LAYERS) from None
        return False
    except OSError as error:
        raise UserError(f"'{directory}' cannot be made: {error.strerror}", ExitCode.LAYERS) from None
    return True


def _noted(directory: str) -> str:
    note = note_of(directory)
    try:
        os.close(os.open(note, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise UserError(f"'{note}' cannot be made: {error.strerror}", ExitCode.LAYERS) from None
    return note


def _restore(directory: str, before: os.stat_result, *, made: bool) -> None:
    """Leave an empty directory as it was found."""
    if made:
        os.rmdir(directory)
        return
    now = os.stat(directory)
    if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
        os.chown(directory, before.st_uid, before.st_gid)
    os.chmod(directory, stat.S_IMODE(before.st_mode))
