"""The picture of a mount at work, as lines of a terminal: as many as there is room for, each as long as there is room.

what is shown, and for how long; all requests together
OPERATION      requests in a second, average and longest duration, which part needed no Python
BUSIEST        what was asked for most since the picture before
COPIED UP      the last files that were copied up
the keys
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from rich.text import Text

from fuseunion.cli.commands.live import log
from fuseunion.cli.commands.live.top.figures import Figures, Operation, operations
from fuseunion.cli.commands.live.words import seconds, size
from fuseunion.errors import one_line
from fuseunion.linux.runtime.frames import Record

KEYS = "q quit   space pause   s sort   + - interval"

_HEAD, _TITLE, _WEAK = "bold", "bold cyan", "dim"
_KEPT = 200
"""Copy-ups that fit on any screen."""

SORTS: dict[str, Callable[[Operation], tuple[float, str]]] = {
    "requests": lambda each: (-each.rate, each.name),
    "time": lambda each: (-each.latency.seconds if each.latency else 0.0, each.name),
    "name": lambda each: (0.0, each.name),
}
"""How operations are sorted, by what is said of it."""


class Screen:
    """What is shown of one mount.

    Args:
        merged: where it is.
        reading: who reads /dev/fuse.

    Attributes:
        sort: one of SORTS.
        paused: the picture stands still.
        interval: seconds between two pictures.
    """

    def __init__(self, merged: str, reading: str) -> None:
        self._merged = one_line(merged)
        self._reading = reading
        self._before: Figures | None = None
        self._now: Figures | None = None
        self._copy_ups: deque[Record] = deque(maxlen=_KEPT)
        self.memory: int | None = None
        self.sort = "requests"
        self.paused = False
        self.interval = 1.0

    def take(self, figures: Figures) -> None:
        """The next moment."""
        self._copy_ups.extend(figures.copy_ups)
        if not self.paused:
            self._before, self._now = self._now, figures

    def lines(self, width: int, height: int) -> list[Text]:
        """The picture."""
        found = [self._cut(text, width) for text in self._all(height)]
        keys = Text(f"{'paused   ' if self.paused else ''}{KEYS}   ({self.sort}, {self.interval:g} s)", style=_WEAK)
        found = found[: max(height - 1, 0)]
        found += [Text()] * (height - 1 - len(found))
        return [*found, self._cut(keys, width)][:height]

    @staticmethod
    def _cut(text: Text, width: int) -> Text:
        text.truncate(max(width, 1), overflow="ellipsis")
        text.no_wrap = True
        return text

    def _all(self, height: int) -> Iterator[Text]:
        now, before = self._now, self._before
        if now is None:
            yield Text(f"{self._merged}: waiting for its daemon", style=_HEAD)
            return
        done = operations(before, now) if before is not None else []
        yield self._first_line(now)
        yield self._together(now, done)
        room = max(height - 9, 3)
        rows = max(room // 3, 1)
        shown = sorted(done, key=SORTS[self.sort])[: max(rows, room - 2 * rows)]
        yield Text()
        yield Text(f"{'OPERATION':<18}{'PER SECOND':>12}{'AVERAGE':>10}{'99 %':>10}{'NO PYTHON':>12}", style=_TITLE)
        for each in shown:
            yield self._operation(each)
        yield Text()
        yield Text(f"{'REQUESTS':>9}  BUSIEST", style=_TITLE)
        for path, count in now.busy[:rows]:
            yield Text(f"{count:>9}  {one_line(path) or '(removed)'}")
        yield Text()
        yield Text(f"{'TIME':<8} {'SIZE':>10} {'TOOK':>8}  COPIED UP", style=_TITLE)
        for record in list(self._copy_ups)[: -height - 1 : -1]:
            yield Text(log.line(record))

    def _first_line(self, now: Figures) -> Text:
        age = now.numbers.get("age", 0)
        memory = f", {size(self.memory)}" if self.memory is not None else ""
        about = f"{now.numbers.get('inodes', 0)} inodes, {now.numbers.get('copy_ups', 0)} copied up{memory}"
        return Text.assemble((self._merged, _HEAD), f"  {age // 3600}:{age // 60 % 60:02}:{age % 60:02}  {about}")

    def _together(self, now: Figures, done: list[Operation]) -> Text:
        rate = sum(each.rate for each in done)
        answers = sum(each.latency.answers for each in done if each.latency)
        taken = sum(each.latency.seconds for each in done if each.latency)
        average = f", {seconds(taken / answers)} each" if answers else ""
        alone = sum(each.rate * each.alone for each in done)
        python = f", {alone / rate:.0%} without Python" if rate and self._reading == "extension" else ""
        return Text(f"{rate:.0f} requests a second{average}{python}; {sum(now.requests.values())} in all")

    def _operation(self, each: Operation) -> Text:
        average = most = ""
        if each.latency is not None:
            average = seconds(each.latency.seconds / each.latency.answers)
            most = f"< {seconds(each.latency.quantile(0.99))}" if each.latency.quantile(0.99) < 60 else "> 8 s"
        alone = f"{each.alone:.0%}" if self._reading == "extension" else "-"
        return Text(f"{each.name:<18}{each.rate:>12.1f}{average:>10}{most:>10}{alone:>12}")
