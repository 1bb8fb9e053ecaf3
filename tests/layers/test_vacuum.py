"""vacuum removes what changes nothing, all of it, and nothing else."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuseunion.cli.commands.layers.upkeep import vacuum
from fuseunion.core.ops.attributes import Change
from fuseunion.errors import UserError
from tests.layers import uppers
from tests.layers.uppers import LOWER, OPERATIONS
from tests.support import tree
from tests.support.arena import Arena
from tests.support.crash import run_until_change
from tests.support.inprocess import in_process
from tests.support.layers import build


def _run(lower: Path, upper: Path, *arguments: str) -> None:
    assert vacuum.main([str(upper), "--lower", str(lower), *arguments]) == 0


@pytest.mark.root
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=OPERATIONS)
def test_random_uppers_show_the_same(scratch: Path, operations: Sequence[tuple[object, ...]]) -> None:
    show_the_same(scratch, operations)


def show_the_same(scratch: Path, operations: Sequence[tuple[object, ...]]) -> None:
    """An upper that was made by some operations, before and after what is needless goes."""
    root = Path(tempfile.mkdtemp(dir=scratch))
    try:
        lower = build(root / "lower", LOWER)
        upper = uppers.made(root, lower, operations, redirect_dir=True, metacopy=True)
        _make_some_equal(lower, upper)
        before = uppers.seen(lower, upper, root / "scratch")
        _run(lower, upper)
        assert uppers.seen(lower, upper, root / "scratch") == before
        after = tree.snapshot(upper)
        _run(lower, upper)
        assert tree.differences(after, tree.snapshot(upper), tree.EXACT) == [], "nothing is left for another run"
    finally:
        shutil.rmtree(root)


def _make_some_equal(lower: Path, upper: Path) -> None:
    """Copies that were only touched, and directories that were only walked through."""
    for path in ["b", "d/a", "d/e/f", "h/deep/er"]:
        source, target = lower / path, upper / path
        if source.is_file() and not target.is_symlink() and target.is_file() and target.stat().st_nlink == 1:
            shutil.copy2(source, target)


def _needless(arena: Arena) -> tuple[Path, Path]:
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, [("write", "b", b"changed"), ("unlink", "a")])
    with in_process([lower], upper, arena.root / ".upper.fuseunion-work") as union:
        for path in ("d/a", "d/e/f", "h/deep/er"):
            st = (lower / path).stat()
            union.setattr(path, Change(mtime_ns=st.st_mtime_ns))
    os.mknod(upper / "nothing", stat.S_IFCHR)
    return lower, upper


LEFT = {"a", "b"}


@pytest.mark.actors("root", "user")
def test_what_goes_and_what_stays(arena: Arena, capsys: pytest.CaptureFixture[str]) -> None:
    lower, upper = _needless(arena)
    before = tree.snapshot(upper)
    view = uppers.seen(lower, upper, arena.root / "scratch")
    capsys.readouterr()
    _run(lower, upper, "--dry-run")
    lines = capsys.readouterr().out.splitlines()
    changed = tree.differences(before, tree.snapshot(upper), tree.EXACT)
    assert not [line for line in changed if not line.startswith("b'.': ")], "but for the mark of who used it last"
    assert "h/deep/er  (copy equal to the lower)" in lines and "h  (empty copied directory)" in lines
    _run(lower, upper)
    assert {str(path.relative_to(upper)) for path in upper.rglob("*")} == LEFT
    assert uppers.seen(lower, upper, arena.root / "scratch") == view


@pytest.mark.actors("user")
def test_it_is_killed_anywhere(arena: Arena) -> None:
    lower, upper = _needless(arena)
    view = uppers.seen(lower, upper, arena.root / "scratch")
    number = 0
    while not run_until_change(number, lambda: _run(lower, upper)):
        number += 1
        assert uppers.seen(lower, upper, arena.root / "scratch") == view
    _run(lower, upper)
    left = {str(path.relative_to(upper)) for path in upper.rglob("*") if not path.is_dir()}
    assert left == LEFT, "directories may have lost their times, and stay"


@pytest.mark.actors("user")
@pytest.mark.parametrize("change", ["mode", "time", "attribute", "content"])
def test_any_difference_keeps_a_copy(arena: Arena, change: str) -> None:
    lower, upper = _needless(arena)
    path = upper / "d/a"
    st = path.stat()
    if change == "mode":
        path.chmod(0o604)
    elif change == "attribute":
        os.setxattr(path, "user.new", b"1")
    elif change == "content":
        path.write_bytes(b"LOWER d/a")
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns + (change == "time")))
    _run(lower, upper)
    assert path.exists()


def test_the_lowers_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give them with --lower"):
        vacuum.main([str(tmp_path)])
