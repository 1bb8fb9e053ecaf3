"""The errno boundary around every handler.

FUSEError passes, OSError becomes its errno, anything else is logged with its traceback and becomes EIO: pyfuse3 ends
the mount on any other exception. Cancellation passes.
"""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from fuseunion.engines.fuse.asking.watching.counts import Histogram
from fuseunion.engines.fuse.serving.waiting.ahead import Ahead, Question

log = logging.getLogger("fuseunion.fuse")
trace_log = logging.getLogger("fuseunion.trace")


class Traced(Protocol):
    """What has handlers.

    Attributes:
        trace: whether each request is logged.
        requests: how many there were, by the names of their handlers.
        errors: how many were answered with an error, by its number, but for ENOSYS, which is asked for once.
        busy: how often inodes were asked for, while somebody wants to know.
        histograms: how long the answers took, by the names of the handlers.
        ahead: who asks what has to be asked before.
    """

    trace: bool
    requests: Counter[str]
    errors: Counter[int]
    busy: Counter[int] | None
    histograms: defaultdict[str, Histogram]
    ahead: Ahead

    def question(self, name: str, arguments: tuple[object, ...]) -> Question | None:
        """What has to be asked before the handler is called (waiting/ahead.py)."""

    def note_busy(self, name: str, number: int) -> None:
        """Count a request that says an inode, or an open file, first."""


_S = TypeVar("_S", bound=Traced)
_T = TypeVar("_T")
_P = ParamSpec("_P")
_Handler = Callable[Concatenate[_S, _P], Coroutine[Any, Any, _T]]


def answered(handler: _Handler[_S, _P, _T]) -> _Handler[_S, _P, _T]:
    """Put the boundary around one handler."""
    name = handler.__name__

    async def answer(self: _S, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        self.requests[name] += 1
        if self.busy is not None and args and isinstance(args[0], int):
            self.note_busy(name, args[0])
        since = time.monotonic_ns()
        try:
            if self.trace:
                trace_log.debug("%s%r", name, args)
            question = self.question(name, args)
            if question is not None:
                await self.ahead.ask(question)
            return await handler(self, *args, **kwargs)
        except FUSEError as error:
            if error.errno != errno.ENOSYS:
                self.errors[error.errno] += 1
            raise
        except OSError as error:
            code = error.errno or errno.EIO
            self.errors[code] += 1
            if self.trace:
                trace_log.debug("%s: %s", name, error)
            # ENOSYS would switch the whole operation off in the kernel.
            raise FUSEError(errno.EOPNOTSUPP if code == errno.ENOSYS else code) from None
        except Exception:
            self.errors[errno.EIO] += 1
            log.exception("unexpected error in %s%r; answered EIO", name, args)
            raise FUSEError(errno.EIO) from None
        finally:
            self.histograms[name].add(time.monotonic_ns() - since)

    functools.update_wrapper(answer, handler)
    return answer
