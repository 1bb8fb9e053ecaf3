"""Waiting for a condition instead of for a time.

A test never assumes how long something takes: it names what it waits for, and fails with that name if it does not
come. The short pause between two looks only keeps the machine free for what is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSE = 0.005


def wait_until(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    """Return as soon as `condition()` is true.

    :param what: what is being waited for, for the failure message
    :raises AssertionError: it was not true within `timeout` seconds
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain for: {what}")
        time.sleep(_PAUSE)
