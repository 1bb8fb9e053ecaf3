"""An upper that lies in the lower, as with LOWER `/`: the tree shows it as an empty directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.exec.stage import SINGLE, Stage, tree
from tests.support import tree as trees
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Dir, File, build
from tests.support.waiting import wait_until

pytestmark = pytest.mark.actors("root", "user", "lone")


@pytest.fixture
def lower(arena: Arena) -> Path:
    """Root's, with a directory of the actor's, in which there is going to be an upper."""
    path = build(arena.root / "lower", {**tree(), "data/home": Dir()})
    if arena.actor.role is not Role.ROOT:
        os.chown(path / "data/home", arena.actor.user.uid, arena.actor.user.gid)
    return path


def without_upper(lower: Path) -> trees.Tree:
    """The lower, but for the directory that UPPER is made in."""
    return {name: entry for name, entry in trees.snapshot(lower).items() if not name.startswith(b"data/home")}


def test_the_tree_does_not_show_its_upper(stage: Stage, lower: Path) -> None:
    upper = lower / "data/home/changes"
    before = without_upper(lower)
    script = "find data/home -mindepth 1 | sort; find data/home/* data/home/.[!.]* -mindepth 1; echo new >data/new"
    shown = ["data/home/.changes.fuseunion-work", "data/home/changes"]
    assert stage.shell([lower, upper], f"cd /; {script}") == shown
    assert stage.shell([lower, upper], f"cd /; cat data/new; {script}") == ["new", *shown]
    assert (upper / "data/new").read_text() == "new\n"
    assert without_upper(lower) == before
    assert sorted(os.listdir(lower / "data/home")) == ["changes"]


@pytest.mark.actors("user")
def test_what_is_made_where_the_upper_would_be_is_like_anything_else(stage: Stage, lower: Path) -> None:
    upper = lower / "data/home/changes"
    script = "cd /data/home/changes; mkdir -p data/home/changes; echo deep >data/home/changes/file; cat */*/*/*"
    assert stage.shell([lower, upper], script) == ["deep"]
    assert stage.shell([lower, upper], "cd /data; find home -name file; mv home house; find house -name file") == [
        "home/changes/data/home/changes/file",
        "house/changes/data/home/changes/file",
    ]
    assert stage.shell([lower, upper], "cd /data; test ! -e home; rm -r house; ls") == ["file"]
    assert sorted(os.listdir(lower / "data/home")) == ["changes"]


@pytest.mark.actors("user")
@pytest.mark.parametrize("option", [["-o", "redirect_dir=on"], []])
def test_moved_it_is_empty_still(stage: Stage, lower: Path, option: list[str]) -> None:
    upper = lower / "data/home/changes"
    assert stage.shell([*option, lower, upper], "mv /data/home /data/away; ls /data/away; find /data/away/changes") == [
        "changes",
        "/data/away/changes",
    ]
    assert stage.shell([*option, lower, upper], "ls /data; find /data/away/changes") == [
        "away",
        "file",
        "/data/away/changes",
    ]


@pytest.mark.actors("user")
def test_it_is_recognised_under_another_name(stage: Stage, lower: Path) -> None:
    """Somebody on the machine moves the directory that holds it, while the tree is shown."""
    upper = lower / "data/home/deep/changes"
    upper.parent.mkdir()
    script = "cd /data/home; echo up >/data/up; while test ! -e moved/changes; do :; done; find moved | sort"
    with stage.start("-o", "timeout=0", lower, upper, "--", "sh", "-euc", script) as process:
        wait_until(lambda: (upper / "data/up").exists(), "the command has begun")
        os.rename(lower / "data/home/deep", lower / "data/home/moved")
        output, errors = process.communicate(timeout=50)
    assert (process.returncode, output, errors) == (0, "moved\nmoved/.changes.fuseunion-work\nmoved/changes\n", "")


@pytest.mark.actors("user")
def test_every_lower_hides_it_and_the_work_directory(stage: Stage, arena: Arena, lower: Path) -> None:
    top = arena.lower({"data/top": File(b"top\n")})
    options = ["--work", lower / "data/home/area", f"{top}:{lower}", lower / "data/home/changes"]
    said = stage.shell(options, "cd /data; ls; find home -mindepth 1")
    assert said[:3] == ["file", "home", "top"] and sorted(said[3:]) == ["home/area", "home/changes"]


@pytest.mark.actors("user")
def test_read_only_it_is_hidden_too(stage: Stage, lower: Path) -> None:
    upper = lower / "data/home/changes"
    assert stage.shell([lower, upper], "echo new >/data/new") == []
    assert stage.shell(["--read-only", lower, upper], "cd /data; cat new; find home") == ["new", "home", "home/changes"]


def test_in_place(arena: Arena, stage: Stage) -> None:
    checkout = build(arena.root / "checkout", {"src/file": File(b"old\n")})
    script = "echo new >src/file; cat src/file; find .changes"
    done = arena.place.fuseunion("exec", "--here", ".", ".changes", "--", "sh", "-euc", script, cwd=checkout)
    assert (done.returncode, done.stdout) == (0, "new\n.changes\n"), done.stderr
    assert (checkout / "src/file").read_text() == "old\n"
    assert (checkout / ".changes/src/file").read_text() == "new\n"


def test_over_the_root_of_the_machine(arena: Arena, stage: Stage) -> None:
    script = f"echo x >/etc/fuseunion-probe; find {arena.upper}"
    done = arena.place.fuseunion("exec", "/", arena.upper, "--", "sh", "-euc", script)
    assert (done.returncode, done.stdout) == (0, f"{arena.upper}\n"), done.stderr
    assert (arena.upper / "etc/fuseunion-probe").read_text() == "x\n"
    assert not Path("/etc/fuseunion-probe").exists()


@pytest.mark.actors("user")
@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (("lower", "lower"), "is the same directory as the lower directory"),
        (("lower/data", "lower"), "lies inside the upper directory"),
    ],
)
def test_a_tree_in_its_own_upper_is_refused(
    stage: Stage, arena: Arena, lower: Path, paths: tuple[str, str], says: str
) -> None:
    code, _, errors = stage.run(*(arena.root / path for path in paths), "--", "true")
    assert code == 3 and says in errors
    assert os.listdir(lower / "data/home") == []


@pytest.mark.actors("user")
def test_the_kernel_cannot(stage: Stage, lower: Path) -> None:
    """fs/overlayfs/super.c ovl_check_layer: a layer in another one is ELOOP."""
    code, _, errors = stage.run("--engine", "kernel", lower, lower / "data/home/changes", "--", "true")
    assert code == 3 and "lies inside the lower directory" in errors
    assert os.listdir(lower / "data/home") == []


@pytest.mark.actors("root")
def test_what_the_machine_keeps_to_itself_can_be_replaced(arena: Arena, single: Stage) -> None:
    """As apt-get and dpkg do over `/`: a directory of their own, and an empty file that is locked."""
    lower = arena.lower(
        {
            **tree(),
            "data/closed/file": File(b"secret\n"),
            "data/closed": Dir(mode=0o700),
            "data/passage/file": File(b"known\n"),
            "data/passage": Dir(mode=0o711),
            "data/lock": File(mode=0o640),
            "data/log": File(b"secret\n", mode=0o640),
        }
    )
    script = """
        cd /data; cat passage/file; ! ls passage 2>/dev/null
        ls closed; test ! -e closed/file; echo new >closed/new; cat closed/new; stat -c %a closed lock
        echo locked >>lock; cat lock
        ! cat log 2>/dev/null; ! sh -c 'echo more >>log' 2>/dev/null; echo other >log; cat log
    """
    assert single.shell([lower, arena.upper], script) == ["known", "new", "700", "640", "locked", "other"]
    assert single.shell([lower, arena.upper], "cd /data; cat closed/new lock log; rm -r closed; ls") == [
        "new",
        "locked",
        "other",
        "file",
        "lock",
        "log",
        "passage",
    ]
    assert (arena.upper / "data/lock").stat().st_uid == SINGLE
