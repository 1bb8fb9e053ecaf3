"""Programs that use a mount while something is done to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.mounts import FuseunionMount

UNCHANGED = b"x" * 3000
"""What each file of the lower holds; more is written behind it."""


@contextmanager
def traffic(mount: FuseunionMount, files: int) -> Iterator[None]:
    """During the block threads look up, list, read, write and rename in the same directories; none of it may fail.

    Args:
        files: how many there are: `d{n % 5}/f{n}`, all `UNCHANGED`.
    """
    ended = threading.Event()
    failures: list[Exception] = []

    def repeated(call: Callable[[int], object]) -> None:
        round_ = 0
        try:
            while not ended.is_set():
                call(round_)
                round_ += 1
            assert round_
        except (OSError, AssertionError) as error:
            failures.append(error)

    def write(number: int) -> None:
        path = mount / f"d{number % 5}/f{number % files}"
        with path.open("ab") as file:
            file.write(b"y")
        assert path.stat().st_size > len(UNCHANGED)

    def move(number: int) -> None:
        (mount / f"d{number % 5}/new").write_bytes(b"n")
        (mount / f"d{number % 5}/new").rename(mount / f"d{(number + 1) % 5}/moved")
        (mount / f"d{(number + 1) % 5}/moved").unlink()

    def read_all(_: int) -> None:
        for path in (mount / "d1").iterdir():
            if path.name in ("new", "moved"):
                continue  # `move` has it there for a moment
            assert path.is_file()
            data = path.read_bytes()
            assert data.startswith(UNCHANGED) or not path.name.startswith("f")

    calls = (write, move, read_all, lambda number: (mount / f"d2/no{number}").exists())
    threads = [threading.Thread(target=repeated, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
