"""Copy-ups in one call leave the same upper as those in Python, and none of what they could not finish."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.serving import copy_ups
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.linux import syscalls
from tests.support.inprocess import in_process
from tests.support.product import WITH_EXTENSION

pytestmark = pytest.mark.skipif(not WITH_EXTENSION, reason="there is nothing to compare")

NOW = 1_700_000_000_123_456_789

CHANGES = {
    "none": None,
    "mode": Change(mode=0o100604),
    "owner": Change(uid=1234, gid=4321),
    "group": Change(gid=77),
    "times": Change(atime_ns=NOW, mtime_ns=NOW + 5),
    "mtime": Change(mtime_ns=1),
    "set-id": Change(mode=0o104755),
    "size": Change(size=3),
    "touch": Change(touch=True),
    "before 1970": Change(mtime_ns=-1),
}


def _make_lower(lower: Path) -> None:
    directory = lower / "d"
    directory.mkdir(parents=True)
    (directory / "plain").write_bytes(b"contents" * 100)
    (directory / "empty").write_bytes(b"")
    (directory / "full").write_bytes(os.urandom(1 << 16))
    (directory / "large").write_bytes(os.urandom((1 << 16) + 1))
    (directory / "closed").write_bytes(b"x")
    (directory / "closed").chmod(0o400)
    (directory / "set-id").write_bytes(b"x")
    (directory / "set-id").chmod(0o6755)
    (directory / "attributes").write_bytes(b"x")
    os.setxattr(directory / "attributes", "user.name", b"value")
    (directory / "two").write_bytes(b"x")
    (directory / "names").hardlink_to(directory / "two")
    with open(directory / "holes", "wb") as file:
        file.truncate(30_000)
        file.seek(10_000)
        file.write(b"x")
    for number, path in enumerate(sorted(directory.iterdir())):
        os.utime(path, ns=(NOW + number, NOW - number))
    os.utime(directory, ns=(NOW, NOW + 1))


NAMES = ("plain", "empty", "full", "large", "closed", "set-id", "attributes", "two", "holes")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of copy_plain copied something, where no filesystem has a disk."""
    monkeypatch.setattr(syscalls, "is_in_memory", lambda fd: True)
    found: list[bool] = []
    real = copy_ups.device

    class Device:
        @staticmethod
        def copy_plain(*arguments: Any) -> Any:
            assert real is not None
            made = real.copy_plain(*arguments)
            found.append(made is not None)
            return made

    monkeypatch.setattr(copy_ups, "device", Device)
    return found


def _described(path: Path) -> dict[str, Any]:
    """What is in an upper, with the numbers of its objects left out."""
    found = {}
    for each in sorted(path.rglob("*")):
        st = each.lstat()
        marks = {name: os.getxattr(each, name)[9:] for name in os.listxattr(each) if name.endswith("origin")}
        others = {name: os.getxattr(each, name) for name in os.listxattr(each) if name not in marks}
        data = each.read_bytes() if each.is_file() else b""
        facts = (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, min(st.st_mtime_ns, NOW + 10**9))
        found[str(each.relative_to(path))] = (*facts, data, marks, others)
    return found


def _copied(top: Path, change: Change | None) -> dict[str, Any]:
    top.mkdir()
    upper, work = top / "upper", top / "work"
    upper.mkdir()
    work.mkdir()
    with in_process([top.parent / "lower"], upper, work) as inside:
        requests = Requests(inside.union)
        first = inside.find("d/closed")
        assert isinstance(first, File)
        assert requests.copy_ups.now(first) is True, "the directory is in the upper from now on"
        for name in NAMES:
            file = inside.find(f"d/{name}")
            assert isinstance(file, File)
            before = os.stat(upper / "d").st_mtime_ns
            if change is None:
                inside.copied(f"d/{name}")
            elif requests.copy_ups.now(file, change) is False:
                inside.union.setattr(file, change)
            if file.in_upper:
                assert os.stat(upper / "d").st_mtime_ns == before
                shown, real = inside.union.stat(file)[0], (upper / "d" / name).lstat()
                assert (shown.st_mode, shown.st_uid, shown.st_mtime_ns) == (real.st_mode, real.st_uid, real.st_mtime_ns)
        assert os.listdir(work / "work") == []
        inside.forget()
    return _described(upper)


@pytest.mark.root
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_same_upper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[bool], change: Change) -> None:
    _make_lower(tmp_path / "lower")
    plain = _copied(tmp_path / "plain", change)
    if change is not None and change.size is None and not change.touch and (change.mtime_ns or 0) >= 0:
        assert any(counted) != bool((change.mode or 0) & stat.S_ISUID)
    monkeypatch.setattr(copy_ups, "device", None)
    assert plain == _copied(tmp_path / "python", change)


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What copy_plain is called with."""
    for name in ("lower", "work", "upper"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_bytes(b"contents")
    st = (tmp_path / "lower/f").stat()
    fds = {name: os.open(tmp_path / name, os.O_PATH | os.O_DIRECTORY) for name in ("lower", "work", "upper")}
    yield {
        "lower": fds["lower"],
        "name": b"f",
        "device": st.st_dev,
        "number": st.st_ino,
        "work": fds["work"],
        "temporary": b"#0",
        "upper": fds["upper"],
        "new_name": b"f",
        "uid": -1,
        "gid": -1,
        "mode": -1,
        "atime_ns": -1,
        "mtime_ns": -1,
        "mark": b"user.overlay.fuseunion.origin",
        "value": bytes(25),
        "waits": False,
    }
    for fd in fds.values():
        os.close(fd)


def _call(arguments: dict[str, Any]) -> Any:
    assert copy_ups.device is not None
    return copy_ups.device.copy_plain(*arguments.values())


def test_one_call(arguments: dict[str, Any], tmp_path: Path) -> None:
    made = (tmp_path / "lower/f").stat()
    device, number, times_kept = _call(arguments)
    copy = (tmp_path / "upper/f").stat()
    assert (device, number, times_kept) == (copy.st_dev, copy.st_ino, True)
    assert (copy.st_mode, copy.st_mtime_ns, copy.st_size) == (made.st_mode, made.st_mtime_ns, made.st_size)
    assert os.listdir(tmp_path / "work") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": 1},
        {"device": 1},
        {"name": b"missing"},
        {"upper": -1},
        {"work": -1},
        {"new_name": b"there"},
        {"mark": b"user.overlay." + b"x" * 300},
        {"mark": b"unknown.name"},
    ],
    ids=str,
)
def test_what_fails_is_taken_back(arguments: dict[str, Any], tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "upper/there").write_bytes(b"not ours")
    assert _call(arguments | wrong) is None
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(tmp_path / "upper") == ["there"]
    assert (tmp_path / "upper/there").read_bytes() == b"not ours"


def test_what_is_in_work_is_left_alone(arguments: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "work/#0").write_bytes(b"another's")
    assert _call(arguments) is None
    assert (tmp_path / "work/#0").read_bytes() == b"another's"


@pytest.mark.parametrize("make", ["fifo", "link", "directory"])
def test_another_kind_is_left_alone(arguments: dict[str, Any], tmp_path: Path, make: str) -> None:
    path = tmp_path / "lower/f"
    path.unlink()
    {"fifo": os.mkfifo, "link": lambda p: os.symlink("g", p), "directory": os.mkdir}[make](path)
    st = path.lstat()
    assert _call(arguments | {"device": st.st_dev, "number": st.st_ino}) is None
    assert os.listdir(tmp_path / "work") == []


def test_malformed_calls(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="mark"):
        _call(arguments | {"value": b"short"})
    with pytest.raises(TypeError):
        _call(arguments | {"lower": None})
    with pytest.raises(ValueError, match="null"):
        _call(arguments | {"name": b"a\0b"})


def test_the_last_step_fails(arguments: dict[str, Any], tmp_path: Path) -> None:
    """A rename to another filesystem."""
    elsewhere = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        assert _call(arguments | {"upper": elsewhere}) is None
    finally:
        os.close(elsewhere)
    assert os.listdir(tmp_path / "work") == []
