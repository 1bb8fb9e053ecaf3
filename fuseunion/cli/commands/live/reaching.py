"""The mount that a command is about, and its daemon."""

from __future__ import annotations

import os

from fuseunion.engines import registry
from fuseunion.engines.status import State, Status
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.runtime.conversation import Conversation


def reach(given: str, otherwise: str = "there is nothing to be asked") -> tuple[Status, Conversation]:
    """The mount at a path, and a conversation with its daemon, which the caller closes.

    Args:
        given: the path as the user wrote it.
        otherwise: what is said of an engine without a daemon.

    Raises:
        UserError: LAYERS when nothing of this user is there; UNAVAILABLE where nobody can be spoken to.
    """
    # First without a look at what is there: nobody may answer.
    parent, name = os.path.split(os.path.abspath(given))
    found = _at(os.path.join(os.path.realpath(parent), name)) or _at(os.path.realpath(given))
    if found is None:
        raise UserError(f"nothing of yours is mounted at '{given}'; see all with: fuseunion status", ExitCode.LAYERS)
    status, conversation = found
    if conversation is None:
        raise UserError(_why_not(given, status, otherwise), ExitCode.UNAVAILABLE)
    return status, conversation


def _at(path: str) -> tuple[Status, Conversation | None] | None:
    for engine in registry.every():
        found = engine.reach(path)
        if found is not None:
            return found
    return None


def _why_not(given: str, status: Status, otherwise: str) -> str:
    if status.state is not State.LIVE:
        remedy = f"; {status.remedy}" if status.remedy else ""
        return f"the mount at '{given}' is {status.state.value}{remedy}"
    if status.reading is None and status.pid is None:
        return f"'{given}' is shown by the {status.engine.value} engine, which nobody serves: {otherwise}"
    return f"the daemon of '{given}' cannot be asked: it has no runtime directory, or is of an older version"
