"""A count of what was done, on a terminal, once the work has taken long enough to want one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

_AFTER = 1.0
"""Seconds of work after which a bar is worth its import."""

_EVERY = 200
"""Objects between two looks at the clock."""


class Progress:
    """Shows how many objects were done; what is called `report` elsewhere.

    Args:
        what: the word before the bar.
        total: how many there are, if that is known.
        every: counts that are no multiple of it pass unseen; 1 for percents and for bytes, None for objects.
    """

    def __init__(self, what: str, total: int | None = None, *, every: int | None = None) -> None:
        self._what = what
        self._total = total
        self._every = every or _EVERY
        self._start = time.monotonic()
        self._wanted = sys.stderr.isatty()
        self._stack = ExitStack()
        self._update: Callable[[int], None] | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __call__(self, done: int) -> None:
        if not self._wanted or done % self._every:
            return
        if self._update is not None:
            self._update(done)
        elif time.monotonic() - self._start > _AFTER:
            self._update = self._open()

    def _open(self) -> Callable[[int], None]:
        from rich.console import Console
        from rich.progress import Progress as Bar
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        if self._total is None:
            columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed} objects"), TimeElapsedColumn())
            shown = Bar(*columns, console=Console(stderr=True), transient=True)
        else:
            shown = Bar(console=Console(stderr=True), transient=True)
        bar = self._stack.enter_context(shown)
        task = bar.add_task(self._what, total=self._total)
        return lambda done: bar.update(task, completed=done)
