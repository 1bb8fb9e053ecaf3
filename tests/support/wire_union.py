"""A union and its handlers, in one process with the extension module, which is asked beside them (wire_kernel.py)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire.answers import Answers
from tests.support.inprocess import InProcess, in_process
from tests.support.wire_kernel import Kernel


@contextmanager
def union_in(base: Path, *lowers: str, static_nlink: bool = False) -> Iterator[InProcess]:
    """The union of lowers (`lower` alone, if none is said), `upper` and `work` in a directory, all of whose inodes are
    forgotten at the end."""
    layers = [base / name for name in lowers or ("lower",)]
    with in_process(layers, base / "upper", base / "work", static_nlink=static_nlink) as union:
        yield union
        union.forget()


@contextmanager
def answers_of(union: InProcess) -> Iterator[Answers]:
    """The handlers of a union, which close at the end what they keep open, and what the module does for them."""
    made = Answers(Requests(union.union), 1.0)
    yield made
    made.close_files()


@pytest.fixture
def answers(attached: Kernel, inside: InProcess) -> Iterator[Answers]:
    """The handlers of the test's union, while its module is attached."""
    with answers_of(inside) as made:
        yield made
