"""The directory of an ephemeral mount where no private tmpfs can be made."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.sources import scratch


@pytest.fixture(autouse=True)
def no_tmpfs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Linux before 5.2 with user namespaces switched off; directories are made in tmp_path."""

    def refuse(size: str | None) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(scratch, "_tmpfs", refuse)
    monkeypatch.setattr(scratch, "_tmpfs_from_namespace", refuse)
    monkeypatch.setattr(scratch, "_parents", lambda: [str(tmp_path / "missing"), str(tmp_path)])


def test_a_directory_serves_and_goes(tmp_path: Path) -> None:
    made = scratch.make(None)
    path = Path(made.label)
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o700
    (path / "closed/inner").mkdir(parents=True)
    (path / "closed/inner/f").touch()
    (path / "closed").chmod(0)
    made.remove()
    assert os.listdir(tmp_path) == []


def test_leftovers_of_a_killed_daemon_go_and_those_in_use_stay(tmp_path: Path) -> None:
    live = scratch.make(None)
    left, foreign = tmp_path / f"fuseunion-{os.geteuid()}-left", tmp_path / "something-else"
    for path in (left, foreign):
        (path / "upper").mkdir(parents=True)
    second = scratch.make(None)
    assert sorted(os.listdir(tmp_path)) == sorted(Path(name).name for name in (live.label, second.label, foreign))
    for made in (live, second):
        made.remove()


@pytest.mark.parametrize("call", ["open_directory", "flock"])
def test_one_that_another_mount_sweeps_away_is_made_again(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is locked it looks like that of a daemon that has gone."""
    module = scratch.owned if call == "open_directory" else scratch.fcntl
    real = getattr(module, call)
    swept: list[str] = []

    def late(*arguments: object) -> object:
        if not swept:
            swept.extend(os.listdir(tmp_path))
            (tmp_path / swept[0]).rmdir()
        return real(*arguments)

    monkeypatch.setattr(module, call, late)
    made = scratch.make(None)
    assert len(swept) == 1 and os.listdir(tmp_path) == [Path(made.label).name] != swept
    os.mkdir("upper", dir_fd=made.root_fd)
    made.remove()
    assert os.listdir(tmp_path) == []


def test_a_limit_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"--size 1m needs a private tmpfs.*Operation not permitted") as raised:
        scratch.make("1m")
    assert raised.value.exit_code is ExitCode.UNAVAILABLE


def test_it_is_locked(tmp_path: Path) -> None:
    made = scratch.make(None)
    fd = os.open(made.label, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    made.remove()
