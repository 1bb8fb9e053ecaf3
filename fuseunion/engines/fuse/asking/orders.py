"""What the daemon of a mount can be asked for at its control socket, each with the fields of the order.

    log     since=NUMBER [follow=1]   the copy-ups after that one; with `follow` also those that come

A number of a copy-up counts from the first of the mount. An answer to `log` begins with a record of how many are
`missed`, because they are kept no more.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from fuseunion.engines.fuse.asking.control_socket import Order, Said
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.watching.copy_up_log import CopyUp
from fuseunion.linux.runtime import frames
from fuseunion.linux.runtime.frames import Record

_LARGEST_NUMBER = 1 << 62


class Orders:
    """The orders of one mount.

    Args:
        requests: those of the mount.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._log = requests.copy_ups.log

    def by_name(self) -> Mapping[str, Order]:
        """What does each."""
        return {"log": self._tell_log}

    async def _tell_log(self, order: Record) -> AsyncGenerator[Said, None]:
        number = _number(order, "since")
        follows = "follow" in order
        while True:
            missed, entries = self._log.since(number)
            yield [[("missed", missed)], *map(copy_up_fields, entries)]
            if not follows:
                return
            number = entries[-1].number if entries else number
            await self._log.more(number)


def _number(order: Record, name: str) -> int:
    """Raises ValueError for what is no number."""
    text = frames.first(order, name, "0")
    if not text.isdecimal() or int(text) > _LARGEST_NUMBER:
        raise ValueError(f"{name} is a number")
    return int(text)


def copy_up_fields(entry: CopyUp) -> list[tuple[str, str | bytes | float]]:
    """A copy-up as a record."""
    return [
        ("number", entry.number),
        ("when", f"{entry.when:.6f}"),
        ("path", entry.path),
        ("size", entry.size),
        ("seconds", f"{entry.seconds:.6f}"),
        ("request", entry.cause.request),
        ("pid", entry.cause.pid),
        ("program", entry.program.name),
        ("executable", entry.program.path),
    ]
