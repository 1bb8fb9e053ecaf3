"""Forged marks and states of a ranch lead root nowhere, and a genuine ranch is not led elsewhere."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuseunion.engines.ranch.record import marker
from fuseunion.engines.ranch.record.record import Mode, Phase, Ranch, Record, opened
from fuseunion.errors import UserError
from tests.support.arena import Arena
from tests.trust.hostile import UID, Land, land

pytestmark = [pytest.mark.root, pytest.mark.actors("root")]


def _record(there: Land, **changes: Any) -> Record:
    """A record that names the treasure where something is deleted or written."""
    fields: dict[str, Any] = {
        "phase": Phase.COLLECTED,
        "mode": Mode.PLAIN,
        "merged": str(there.treasure),
        "upper": str(there.upper),
        "work": None,
        "lowers": (str(there.lower),),
        "merged_mode": 0o4777,
    }
    return Record(**{**fields, **changes})


def _write_state(state: Path, record: Record) -> None:
    """A state directory of whoever runs this."""
    state.mkdir(0o711)
    fd = os.open(state, os.O_RDONLY)
    try:
        Ranch(state, fd, None).write(record)
    finally:
        os.close(fd)


def _mark(directory: Path, state: Path, *, by_link: bool) -> None:
    if by_link:
        (directory / os.fsdecode(marker.NAME)).symlink_to(state)
    else:
        os.setxattr(directory, marker.XATTR, os.fsencode(state))


COMMANDS: dict[str, Callable[[Path], tuple[str | Path, ...]]] = {
    "umount": lambda merged: ("umount", merged),
    "umount --discard": lambda merged: ("umount", "--discard", merged),
    "sync": lambda merged: ("sync", merged),
    "promote": lambda merged: ("promote", merged, "file"),
    "doctor --repair": lambda merged: ("doctor", "--repair", merged),
}

commands = pytest.mark.parametrize("command", COMMANDS)
marks = pytest.mark.parametrize("by_link", [True, False], ids=["link", "attribute"])


@commands
@marks
@pytest.mark.parametrize("phase", [Phase.COLLECTED, Phase.COLLECTING, Phase.LIVE, Phase.BUILDING])
def test_a_forged_mark_and_state(arena: Arena, command: str, by_link: bool, phase: Phase) -> None:
    there = land(arena)
    merged = there.home / "merged"
    with there.hostile():
        merged.mkdir()
        (merged / "file").touch()
        _write_state(there.home / "state", _record(there, phase=phase, merged=str(merged)))
        _mark(merged, there.home / "state", by_link=by_link)
    done = there.run(*COMMANDS[command](merged))
    assert done.returncode != 0
    assert "belongs to another user" in done.stderr, done.stderr
    assert (merged / "file").lstat().st_uid == UID


@commands
def test_a_mark_that_leads_to_a_state_of_root_that_names_another_directory(arena: Arena, command: str) -> None:
    there = land(arena)
    merged = there.home / "merged"
    state = arena.root / ".treasure.fuseunion-ranch"
    _write_state(state, _record(there))
    with there.hostile():
        merged.mkdir()
        _mark(merged, state, by_link=True)
    done = there.run(*COMMANDS[command](merged))
    assert done.returncode != 0
    assert "does not stand at" in done.stderr
    assert (state / "state.json").exists()


@commands
def test_a_mark_that_leads_to_a_directory_of_root_without_a_record(arena: Arena, command: str) -> None:
    there = land(arena)
    merged, private = there.home / "merged", arena.directory("private")
    (private / "lent").write_text("of root")
    with there.hostile():
        merged.mkdir()
        _mark(merged, private, by_link=True)
    assert there.run(*COMMANDS[command](merged)).returncode != 0
    assert (private / "lent").read_text() == "of root"


def _link_to_it(there: Land) -> None:
    _write_state(there.treasure.parent / "state", _record(there))
    with there.hostile():
        there.state.symlink_to(there.treasure.parent / "state")


def _of_another(there: Land) -> None:
    with there.hostile():
        _write_state(there.state, _record(there))


def _written_by_all(there: Land) -> None:
    _write_state(there.state, _record(there))
    there.state.chmod(0o733)


def _record_of_another(there: Land) -> None:
    _write_state(there.state, _record(there))
    os.chown(there.state / "state.json", UID, UID)


def _record_is(make: Callable[[Path], object]) -> Callable[[Land], None]:
    def forge(there: Land) -> None:
        there.state.mkdir(0o711)
        make(there.state / "state.json")

    return forge


FORGED: dict[str, Callable[[Land], None]] = {
    "link": _link_to_it,
    "of another": _of_another,
    "written by all": _written_by_all,
    "record of another": _record_of_another,
    "record is a link": _record_is(lambda path: path.symlink_to("/dev/zero")),
    "record is a fifo": _record_is(os.mkfifo),
    "record is endless": _record_is(lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))),
    "record is huge": _record_is(lambda path: (path.touch(), os.truncate(path, 1 << 40))),
    "record is deep": _record_is(lambda path: path.write_text("[" * 100_000)),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_state_beside_upper(arena: Arena, kind: str) -> None:
    there = land(arena)
    there.upper.mkdir()
    FORGED[kind](there)
    assert there.run("doctor", "--repair", there.upper).returncode != 0
    assert there.run(*there.mount("--engine", "ranch")).returncode != 0
    done = there.run("doctor", *there.mount())
    assert str(there.state) in done.stdout
    assert not os.listdir(there.upper)


@pytest.mark.parametrize("kind", ["link", "of another", "written by all"])
def test_it_is_in_nobody_elses_way(arena: Arena, kind: str) -> None:
    there = land(arena)
    there.upper.mkdir()
    FORGED[kind](there)
    with arena.mount(there.lower, upper=there.upper) as mount:
        (mount / "file").write_text("changed")
    assert (there.upper / "file").read_text() == "changed"
    there.check()


def test_a_ranch_of_the_owner_of_upper_is_in_the_way(arena: Arena) -> None:
    there = land(arena)
    with there.hostile():
        there.upper.mkdir()
        _write_state(there.state, _record(there))
    there.refused(*there.mount("--engine", "fuse"), because="belongs to the ranch at", code=4)


def test_a_state_that_was_moved_to_another_upper(arena: Arena) -> None:
    """Who owns the directory above can rename what root made in it."""
    there = land(arena)
    there.upper.mkdir()
    _write_state(there.state, _record(there, upper=str(there.home / "other")))
    there.refused("doctor", "--repair", there.upper, because="does not stand at")


# -- a genuine ranch of root's in the hostile user's directory -----------------------------------------------------


def _genuine(there: Land) -> Path:
    merged = there.home / "merged"
    merged.mkdir()
    there.upper.mkdir()
    assert there.run("--engine", "ranch", there.lower, there.upper, merged).returncode == 0
    return merged


@pytest.mark.parametrize("phase", [Phase.COLLECTED, Phase.COLLECTING, Phase.BUILDING])
@pytest.mark.parametrize("by", ["link", "directory"])
def test_merged_was_exchanged(arena: Arena, phase: Phase, by: str) -> None:
    there = land(arena)
    merged = there.home / "merged"
    there.upper.mkdir()
    _write_state(there.state, _record(there, merged=str(merged), phase=phase))
    if by == "link":
        with there.hostile():
            merged.symlink_to(there.treasure)
    else:
        merged.mkdir(0o700)
        (merged / "dear").touch()
    done = there.run("doctor", "--repair", there.upper)
    assert done.returncode != 0, done.stdout
    assert not os.listdir(there.upper)
    if by == "directory":
        assert os.listdir(merged) == ["dear"]
    assert there.state.exists()


def test_upper_was_exchanged_for_a_link(arena: Arena) -> None:
    there = land(arena)
    merged = _genuine(there)
    (merged / "new").write_text("of root")
    with there.hostile():
        there.upper.rename(there.home / "away")
        there.upper.symlink_to(there.treasure)
    done = there.run("umount", merged)
    assert done.returncode != 0
    assert "is a link now" in done.stderr
    with there.hostile():
        there.upper.unlink()
        (there.home / "away").rename(there.upper)
    assert there.run("umount", merged).returncode == 0
    assert (there.upper / "new").read_text() == "of root"


@pytest.mark.parametrize("command", ["umount", "sync", "doctor --repair"])
def test_upper_was_exchanged_for_another_directory(arena: Arena, command: str) -> None:
    there = land(arena)
    merged = _genuine(there)
    (merged / "new").write_text("of root")
    with there.hostile():
        there.upper.rename(there.home / "away")
        there.upper.mkdir()

    def run() -> subprocess.CompletedProcess[str]:
        if command == "doctor --repair":  # as if the one before had been killed
            with opened(there.state) as ranch:
                ranch.enter(Phase.COLLECTING)
        return there.run(*COMMANDS[command](merged))

    done = run()
    assert done.returncode == 3, done.stderr
    assert "is not the upper directory that the ranch" in done.stderr
    assert os.listdir(there.upper) == []
    with there.hostile():
        there.upper.rmdir()
    assert run().returncode == 3, "one that is missing is not made anew"
    assert not there.upper.exists()
    with there.hostile():
        (there.home / "away").rename(there.upper)
    assert run().returncode == 0
    assert (there.upper / "new").read_text() == "of root"
    if command == "sync":
        assert there.run("umount", merged).returncode == 0


def test_a_record_of_an_older_version_knows_no_upper(arena: Arena) -> None:
    there = land(arena)
    merged = _genuine(there)
    (merged / "new").write_text("of root")
    record = json.loads((there.state / "state.json").read_text())
    assert record.pop("upper_identity") is not None
    (there.state / "state.json").write_text(json.dumps(record))
    assert there.run("umount", merged).returncode == 0
    assert (there.upper / "new").read_text() == "of root"


def test_its_state_was_exchanged(arena: Arena) -> None:
    """What is aside is reached through the descriptor, and the name is looked at before it is believed."""
    there = land(arena)
    merged = _genuine(there)
    with opened(there.state) as ranch:
        away = there.home / "away"
        with there.hostile():
            there.state.rename(away)
            there.state.symlink_to(there.treasure)
        with pytest.raises(UserError, match="was moved or exchanged"):
            ranch.refuse_exchanged()
        ranch.enter(Phase.LIVE)
        assert json.loads((away / "state.json").read_text())["phase"] == "live"
        with there.hostile():
            there.state.unlink()
            away.rename(there.state)
    there.check()
    assert there.run("umount", merged).returncode == 0
