"""What request a copy-up is made for, and whose.

A request that is answered later says it in the context of its task (contextvars); of one that is answered at once the
adapter knows it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class Cause(NamedTuple):
    """A request.

    Attributes:
        request: what it is called.
        pid: of the thread that made it; 0 where that is not known, as in another pid namespace.
    """

    request: str
    pid: int


UNKNOWN = Cause("", 0)

CAUSE: ContextVar[Cause] = ContextVar("fuseunion.cause", default=UNKNOWN)
"""What the task is there for."""
