"""The status socket: a mount does without it whatever fails, and one answer that fails is not the last."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from fuseunion.engines.fuse.asking.sockets import listener, status_socket
from fuseunion.engines.fuse.asking.sockets.listener import Listener
from fuseunion.linux.runtime import answers, directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(directory, "candidates", lambda: ((str(tmp_path), "fuseunion"),))
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir("/proc/self/fd"))
    mask = os.umask(0o022)
    yield tmp_path / "fuseunion"
    assert os.umask(mask) == 0o022
    assert set(os.listdir("/proc/self/fd")) <= before


def _failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("name", ["socket", "bind", "listen", "fchdir"])
def test_what_fails_while_it_is_made(place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner = {"socket": listener.socket, "fchdir": os}.get(name, socket.socket)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _failing(errno.EMFILE))
        assert listener.make(".socket", ".control") == []
    assert os.listdir(place) == []


def test_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "candidates", lambda: ())
    assert listener.make(".socket") == []


async def _asked(made: Listener, facts: Callable[[], bytes], times: int) -> list[answers.Answer]:
    found = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(status_socket.serve, made, facts)
        for _ in range(times):
            with trio.move_on_after(10):
                found += await trio.to_thread.run_sync(answers.answers)
        nursery.cancel_scope.cancel()
    return found


def test_an_answer(place: Path) -> None:
    """Shown only when it is shown, and gone when it is served no more."""
    (made,) = listener.make(".socket")
    assert os.getcwd() == "/"
    assert answers.answers() == []
    made.show()
    (name,) = os.listdir(place)
    assert (place / name).stat().st_mode & 0o777 == 0o600
    odd = b"/a=b\n\xff"
    (answer,) = trio.run(_asked, made, lambda: b"merged=" + odd + b"\0lower=1\0lower=2\0empty=\0", 1)
    assert answer.pid == os.getpid()
    assert answer.fields == {"merged": [os.fsdecode(odd)], "lower": ["1", "2"], "empty": [""]}
    assert os.listdir(place) == []
    made.close()


def test_an_answer_that_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where accept(2) or send(2) fails, the next one who asks is answered; what is no OSError ends it, quietly."""
    (made,) = listener.make(".socket")
    made.show()
    monkeypatch.setattr(answers, "PATIENCE", 0.5)
    failures: list[Exception] = [OSError(errno.EMFILE, "no"), ValueError("ended")]

    def facts() -> bytes:
        if len(said) != 1:
            raise failures.pop(0)
        return b"merged=/m\0"

    said: list[object] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(status_socket.serve, made, facts)
            for _ in range(3):
                said.append(await trio.to_thread.run_sync(answers.answers))

    trio.run(run)
    assert [[answer.fields for answer in found] for found in said] == [[None], [{"merged": ["/m"]}], [None]]  # type: ignore[attr-defined]
    assert not failures and os.listdir(place) == []
