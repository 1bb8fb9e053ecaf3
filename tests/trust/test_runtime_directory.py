"""The runtime directory and the sockets in it: who may ask, and what somebody else can put there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fuseunion.linux.runtime import answers, directory, frames, notes
from tests.support.arena import Arena
from tests.support.identity import acting_as
from tests.support.layers import File

OTHER = 61_234
"""A user who has nothing to do with the mount."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runtime directory would be, in a directory that this user alone can write."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(directory, "candidates", lambda: ((str(tmp_path), "fuseunion"),))
    return tmp_path / "fuseunion"


def _used() -> bool:
    fd = directory.make()
    if fd is not None:
        os.close(fd)
    return fd is not None


def test_it_is_made_and_found(place: Path) -> None:
    assert list(directory.existing()) == []
    assert _used() and _used()
    assert place.stat().st_mode & 0o7777 == 0o700
    (fd,) = directory.existing()
    assert os.path.samestat(os.fstat(fd), place.stat())
    os.close(fd)


def _link(place: Path) -> None:
    (place.parent / "elsewhere").mkdir(0o700)
    place.symlink_to("elsewhere")


def _foreign(place: Path) -> None:
    place.mkdir(0o700)
    os.chown(place, OTHER, OTHER)


def _open(mode: int) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        place.mkdir()
        place.chmod(mode)

    return make


@pytest.mark.root
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_link, id="link"),
        pytest.param(_foreign, id="foreign owner"),
        pytest.param(_open(0o770), id="group may write"),
        pytest.param(_open(0o703), id="others may write"),
        pytest.param(_open(0o711), id="others may search"),
        pytest.param(os.mkfifo, id="fifo"),
        pytest.param(Path.touch, id="file"),
        pytest.param(lambda place: place.symlink_to("/nowhere"), id="dangling link"),
    ],
)
def test_what_somebody_else_could_have_made_is_not_used(place: Path, make: Callable[[Path], object]) -> None:
    make(place)
    before = place.lstat()
    assert not _used() and list(directory.existing()) == []
    assert place.lstat() == before
    notes.leave("/")
    assert list(notes.found()) == [] and answers.answers() == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("mode", "owner", "safe"),
    [(0o1777, 0, True), (0o777, 0, False), (0o1777, OTHER, False), (0o755, OTHER, False), (0o755, 0, True)],
)
def test_where_others_could_exchange_it(place: Path, mode: int, owner: int, safe: bool) -> None:
    """As in /tmp: only root's directory with the sticky bit keeps names, or one that nobody else may write."""
    place.parent.chmod(mode)
    os.chown(place.parent, owner, -1)
    assert _used() is safe


def test_a_way_with_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(directory, "candidates", lambda: ((str(tmp_path / "link"), "fuseunion"),))
    assert not _used() and os.listdir(tmp_path / "real") == []


def test_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/xdg")
    monkeypatch.setattr(directory, "uid_outside", lambda: 0)
    assert directory.candidates() == (("/run", "fuseunion"), ("/tmp", "fuseunion-0"))
    monkeypatch.setattr(directory, "uid_outside", lambda: 7)
    usual = (("/run/user/7", "fuseunion"), ("/tmp", "fuseunion-7"))
    assert directory.candidates() == (("/xdg", "fuseunion"), *usual)
    for none in ("", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", none)
        assert directory.candidates() == usual


def test_a_note(place: Path, tmp_path: Path) -> None:
    """It is left once, and goes with what it names; what is on a filesystem that is away keeps its note."""
    state = tmp_path / "state"
    state.mkdir()
    for _ in range(2):
        notes.leave(str(state))
    assert list(notes.found()) == [str(state)] and len(os.listdir(place)) == 1
    (place / "away.ranch").symlink_to("/no/such/filesystem")
    (place / "file.ranch").touch()
    state.rmdir()
    assert list(notes.found()) == []
    assert sorted(os.listdir(place)) == ["away.ranch", "file.ranch"]
    notes.forget("/no/such/filesystem")
    assert os.listdir(place) == ["file.ranch"]


def test_a_note_that_two_commands_remove(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that looks for ranches fails at nothing that another one has removed before it."""
    state = tmp_path / "state"
    state.mkdir()
    notes.leave(str(state))
    state.rmdir()
    (note,) = place.iterdir()

    def removed_meanwhile(_fd: int) -> bool:
        note.unlink()
        return False

    monkeypatch.setattr(directory, "is_a_view", removed_meanwhile)
    assert list(notes.found()) == []


LOG = frames.packed([[("order", "log")]])


def _said(path: Path, order: bytes = b"") -> bytes:
    """What a daemon says to who connects now, and gives an order."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        data = b""
        if order:
            with contextlib.suppress(BrokenPipeError):  # let go of already
                connection.sendall(order)
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                data += piece
        return data


@pytest.mark.parametrize("suffix", [".socket", ".control"])
@pytest.mark.actors("root")
def test_another_user_is_told_nothing(arena: Arena, suffix: str) -> None:
    """Neither by the path, nor with the directory open, nor even where both modes were opened."""
    with arena.mount(arena.lower({"f": File(b"x")})) as mount:
        place = Path("/run/fuseunion")
        (status,) = place.glob(f"{mount.daemon}-*.socket")
        path = status.with_suffix(suffix)
        assert path.stat().st_mode & 0o777 == 0o600 and place.stat().st_mode & 0o777 == 0o700
        fd = os.open(place, os.O_RDONLY)
        inside = Path(f"/proc/self/fd/{fd}/{path.name}")
        with acting_as(OTHER):
            for way in (path, inside):
                with pytest.raises(PermissionError):
                    _said(way)
        path.chmod(0o666)
        place.chmod(0o711)
        try:
            with acting_as(OTHER):
                assert _said(path, LOG) == b""
        finally:
            place.chmod(0o700)
            path.chmod(0o600)
            os.close(fd)
        said = {".socket": b"merged=" + os.fsencode(mount.merged) + b"\0", ".control": b"missed=0\0"}
        assert said[suffix] in _said(path, LOG if suffix == ".control" else b"")


@pytest.mark.actors("root", "user")
def test_a_union_that_shows_it(arena: Arena) -> None:
    """Seen through a union, sockets that are served look dead: they are not removed, which would change UPPER."""
    runtime = arena.directory("runtime")
    (runtime / "fuseunion").mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "fuseunion/1-live.socket"))
        listener.listen()
        (runtime / "fuseunion/gone.ranch").symlink_to(arena.root / "gone")
        with arena.mount(runtime) as mount, pytest.MonkeyPatch.context() as patch:
            patch.setattr(directory, "candidates", lambda: ((str(mount.merged), "fuseunion"),))
            assert answers.answers() == [] and list(notes.found()) == []
            assert sorted(os.listdir(mount / "fuseunion")) == ["1-live.socket", "gone.ranch"]
        assert os.listdir(arena.upper) == []
