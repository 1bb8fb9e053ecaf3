"""The forms in which lowers come: relative, through links and `..`, on FUSE, with AUFS whiteouts of mode 0."""

from __future__ import annotations

import os

import pytest

from tests.support.arena import Arena
from tests.support.caller import Caller
from tests.support.fake_store import FakeStore
from tests.support.layers import Dir, File

pytestmark = pytest.mark.actors("root", "userns")


def test_relative_to_the_working_directory(caller: Caller, store: FakeStore) -> None:
    """Long lists of lowers come as l/SHORT, relative to the driver's home."""
    base, layer = store.layer("a1", {"file": File(b"x")}), store.layer("b2")
    short = os.path.relpath(base.link, store.home)
    options = f"lowerdir={short},upperdir=b2/diff,workdir=b2/work,,volatile"
    with caller.mounted(options, layer.merged, store.home) as merged:
        (merged / "new").write_text("y")
    assert (layer.diff / "new").read_text() == "y"


def test_a_relative_target(caller: Caller, store: FakeStore) -> None:
    base, layer = store.layer("a1", {"file": File(b"x")}), store.layer("b2")
    call = caller.call("-o", f"lowerdir=a1/diff,{layer.writable()}", "b2/merged", cwd=store.home)
    assert (call.exit_code, call.stderr) == (0, "")
    assert (layer.merged / "file").read_text() == "x"
    caller.unmount(layer.merged)
    caller.await_exit(set())
    assert base.diff.is_dir()


def test_dotdot_after_a_symbolic_link(caller: Caller, store: FakeStore) -> None:
    """`l/SHORT/../diff1`: the parent of what the link points to, not of the link."""
    base, layer = store.layer("a1", {"file": File(b"diff")}), store.layer("b2")
    store.arena.lower({"file": File(b"diff1")}, name=str((base.directory / "diff1").relative_to(store.arena.root)))
    with caller.mounted(f"lowerdir={base.link}/../diff1,{layer.writable()}", layer.merged, store.home) as merged:
        assert (merged / "file").read_text() == "diff1"


def test_whiteout_files_that_nobody_may_read(caller: Caller, store: FakeStore) -> None:
    """What containers/storage unpacks when a mount program is set."""
    base = store.layer(
        "a1",
        {
            "gone": File(b"1"),
            "kept": File(b"2"),
            "dir/old": File(b"3"),
            "dir/sub/old": File(b"4"),
            "bare/x": File(b"5"),
        },
    )
    second = store.layer(
        "b2",
        {
            ".wh.gone": File(mode=0),
            "dir": Dir(mode=0o755),
            "dir/.wh..wh..opq": File(mode=0),
            "dir/new": File(b"6"),
            "bare/.wh.x": File(mode=0),
        },
    )
    layer = store.layer("c3")
    options = f"lowerdir={second.link}:{base.link},{layer.writable()}"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert sorted(os.listdir(merged)) == ["bare", "dir", "kept"]
        assert os.listdir(merged / "dir") == ["new"]
        assert os.listdir(merged / "bare") == []
        for name in ("gone", ".wh.gone", "dir/old", "dir/sub/old", "dir/.wh..wh..opq", "bare/x"):
            assert not os.path.lexists(merged / name), name
        (merged / "bare").rmdir()
        (merged / "gone").write_text("again")
        assert sorted(os.listdir(merged)) == ["dir", "gone", "kept"]


def test_one_lower_and_nothing_else(caller: Caller, arena: Arena) -> None:
    lower, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    with caller.mounted(f"lowerdir={lower}", merged):
        assert (merged / "file").read_text() == "x"


def test_a_lower_on_fuse(caller: Caller, store: FakeStore) -> None:
    base, layer = store.layer("a1", {"dir/file": File(b"x")}), store.layer("b2")
    with (
        caller.mounted(f"lowerdir={base.diff}:{base.empty}", base.merged, store.home) as inner,
        caller.mounted(f"lowerdir={inner},{layer.writable()}", layer.merged, store.home) as merged,
    ):
        (merged / "dir/file").write_text("y")
        (merged / "dir").rename(merged / "moved")
        assert (merged / "moved/file").read_text() == "y"


def test_two_hundred_lowers(caller: Caller, store: FakeStore) -> None:
    lowers = [store.layer(f"{number:x}", {f"file{number}": File(b"x")}) for number in range(200)]
    layer = store.layer("fff")
    options = "lowerdir=" + ":".join(f"l/{lower.link.name}" for lower in lowers) + f",{layer.writable()}"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert len(os.listdir(merged)) == 200
