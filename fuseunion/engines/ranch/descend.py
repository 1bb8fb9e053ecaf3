"""Recursion without the stack: trees may be deeper than Python's limit, and than PATH_MAX.

A step into a directory is a generator; what it yields are the steps into directories below it, done before it goes on.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeAlias

Step: TypeAlias = "Generator[Step, None, None]"


def run(first: Step) -> None:
    """Do a step with all that it yields; what a step has open is closed, also when one below it fails."""
    stack = [first]
    try:
        while stack:
            below = next(stack[-1], None)
            if below is None:
                stack.pop()
            else:
                stack.append(below)
    finally:
        for step in reversed(stack):
            step.close()
