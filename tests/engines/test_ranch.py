"""What only a ranch has: promoting, depth, injected files, collecting without taking down, throwing away."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.engines.ranching import LOWER, everybody, is_link, ranch, with_mounts
from tests.engines.shown import Engine, engines_of, run, seen, shown
from tests.support import tree
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import File, Opacity, Opaque, Whiteout


@with_mounts
def test_layers_are_merged(arena: Arena) -> None:
    """Whiteouts, opaque directories and order are those of every union."""
    opacity = Opacity.TRUSTED if arena.actor.role is Role.ROOT else Opacity.USER
    top = arena.lower({"a": File(b"top"), "gone": Whiteout(), "opaque": Opaque(opacity), "opaque/new": File()})
    bottom = arena.lower({"a": File(b"bottom"), "gone": File(), "opaque/old": File(), "dir/b": File(b"b")})
    with shown(arena, Engine.RANCH, [top, bottom], arena.upper) as merged:
        assert sorted(os.listdir(merged.root)) == ["a", "dir", "opaque"]
        assert (merged / "a").read_bytes() == b"top"
        assert os.listdir(merged / "opaque") == ["new"]
        (merged / "dir/b").unlink()
    with shown(arena, Engine.FUSE, [top, bottom], arena.upper) as merged:
        assert os.listdir(merged / "dir") == []


@everybody
def test_what_is_collected(arena: Arena) -> None:
    """New, replaced and changed files go to UPPER, removed ones become whiteouts, the rest vanishes."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    run(arena, "promote", "--recursive", merged, "dir", "one")
    (merged / "new").write_bytes(b"new")
    (merged / "dir/two").write_bytes(b"changed")
    (merged / "other/four").unlink()
    run(arena, "umount", merged)
    found = tree.snapshot(arena.upper)
    assert {path: entry.kind for path, entry in found.items()} == {
        b".": "dir",
        b"new": "file",
        b"dir": "dir",
        b"dir/two": "file",
        b"other": "dir",
        b"other/four": "char",
    }


@everybody
def test_replaced_directory_is_opaque(arena: Arena) -> None:
    """A directory that was removed and made again hides everything below it with one mark."""
    merged = ranch(arena, arena.lower(LOWER))
    subprocess.run(["rm", "-r", merged / "dir"], check=True)
    (merged / "dir").mkdir()
    (merged / "dir/new").write_bytes(b"new")
    run(arena, "umount", merged)
    assert os.listdir(arena.upper / "dir") == ["new"]
    assert os.getxattr(arena.upper / "dir", arena.actor.xattr_prefix + "opaque") == b"y"


@with_mounts
def test_promote(arena: Arena) -> None:
    """A promoted file has everything of the original, and its directory keeps its time."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    before = os.lstat(merged / "dir/sub").st_mtime_ns
    assert is_link(merged / "dir/sub/three")
    run(arena, "promote", merged, "dir/sub/three")
    assert not (merged / "dir/sub/three").is_symlink()
    assert os.getxattr(merged / "dir/sub/three", "user.mine") == b"value"
    assert os.lstat(merged / "dir/sub/three").st_mtime_ns == os.lstat(lower / "dir/sub/three").st_mtime_ns
    assert os.lstat(merged / "dir/sub").st_mtime_ns == before
    assert is_link(merged / "dir/two")
    run(arena, "promote", "-r", merged, str(merged / "dir"))
    assert not is_link(merged / "dir/two")
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == []


@with_mounts
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_depth(arena: Arena, depth: int) -> None:
    """Beneath so many levels a directory is one link, until it is promoted; on the way to a file too."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, "--depth", str(depth), lower)
    assert is_link(merged / "dir") == (depth == 0)
    assert is_link(merged / "dir/sub") == (depth == 1)
    assert (merged / "dir/sub/three").read_bytes() == b"3"
    run(arena, "promote", merged, "dir/sub/three")
    assert not is_link(merged / "dir/sub/three")
    assert is_link(merged / "dir/two")
    assert is_link(merged / "other") == (depth == 0)
    (merged / "dir/sub/three").write_bytes(b"three")
    run(arena, "umount", merged)
    assert [path for path in tree.snapshot(arena.upper) if path != b"."] == [b"dir", b"dir/sub", b"dir/sub/three"]


@with_mounts
def test_a_linked_directory_that_is_moved(arena: Arena) -> None:
    """Its contents are copied, its old place is hidden."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, "--depth", "0", lower)
    (merged / "dir").rename(merged / "moved")
    run(arena, "umount", merged)
    assert os.lstat(arena.upper / "dir").st_rdev == 0
    assert (arena.upper / "moved/sub/three").read_bytes() == b"3"
    assert os.readlink(arena.upper / "moved/sub/link") == "three"


@everybody
def test_sync(arena: Arena) -> None:
    """What was changed is in UPPER while the ranch stands; it can be changed on without touching UPPER."""
    merged = ranch(arena, arena.lower(LOWER))
    (merged / "new").write_bytes(b"new")
    (merged / "other/four").unlink()
    run(arena, "sync", merged)
    assert (arena.upper / "new").read_bytes() == b"new"
    (merged / "new").write_bytes(b"newer")
    assert (arena.upper / "new").read_bytes() == b"new"
    run(arena, "sync", merged)
    run(arena, "umount", "--discard", merged)
    assert (arena.upper / "new").read_bytes() == b"newer"
    assert os.lstat(arena.upper / "other/four").st_rdev == 0


@everybody
def test_discard(arena: Arena) -> None:
    """UPPER is what it was, whatever was done to its own files."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    (merged / "mine").write_bytes(b"mine")
    run(arena, "umount", merged)
    arena.guard(arena.upper)
    merged = ranch(arena, lower)
    (merged / "mine").write_bytes(b"changed")
    (merged / "one").unlink()
    run(arena, "umount", "--discard", merged)
    assert os.listdir(merged) == []


@everybody
def test_injected_files(arena: Arena) -> None:
    """They are seen, also in the place of others and in new directories, and are never collected."""
    driver = arena.root / "driver.so"
    driver.write_bytes(b"driver")
    merged = ranch(
        arena, "--inject", f"{driver}:/lib/gpu/driver.so", "--inject", f"{driver}:dir/two", arena.lower(LOWER)
    )
    assert (merged / "lib/gpu/driver.so").read_bytes() == b"driver"
    assert (merged / "dir/two").read_bytes() == b"driver"
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == []


@everybody
def test_hard_links_of_upper_stay_one_file(arena: Arena) -> None:
    """Two names of one file that was made in a ranch are one file in UPPER, and in the next ranch."""
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    (merged / "a").write_bytes(b"a")
    os.link(merged / "a", merged / "dir/b")
    run(arena, "umount", merged)
    assert os.path.samefile(arena.upper / "a", arena.upper / "dir/b")
    merged = ranch(arena, lower)
    (merged / "a").write_bytes(b"changed")
    assert (merged / "dir/b").read_bytes() == b"changed"
    run(arena, "umount", merged)
    assert os.path.samefile(arena.upper / "a", arena.upper / "dir/b")
    assert os.lstat(arena.upper / "a").st_nlink == 2


@pytest.mark.actors("denied")
@pytest.mark.parametrize("links", ["absolute", "relative"])
def test_links_that_were_moved(arena: Arena, links: str) -> None:
    """A link stands for its file wherever it is moved to, even where a relative one leads nowhere."""
    merged = ranch(arena, "--allow-writable-lower", "--links", links, arena.lower(LOWER))
    os.rename(merged / "one", merged / "dir/sub/moved")
    os.link(merged / "other/four", merged / "four", follow_symlinks=False)
    run(arena, "umount", merged)
    assert (arena.upper / "dir/sub/moved").read_bytes() == b"1"
    assert (arena.upper / "four").read_bytes() == b"4"
    assert os.lstat(arena.upper / "one").st_rdev == 0


@with_mounts
def test_ephemeral(arena: Arena) -> None:
    """Without an UPPER everything goes with the ranch."""
    merged = arena.directory("merged")
    lower = arena.lower(LOWER)
    run(arena, "--engine", "ranch", "--ephemeral", lower, merged)
    (merged / "new").write_bytes(b"new")
    run(arena, "umount", merged)
    assert sorted(os.listdir(arena.root)) == ["logs", "lower0", "merged"]


@everybody
def test_whiteouts_where_no_devices_are_wanted(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are `.wh.` files then, and the next ranch honours them."""
    monkeypatch.setenv("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1")
    lower = arena.lower(LOWER)
    merged = ranch(arena, lower)
    (merged / "one").unlink()
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == [".wh.one"]
    merged = ranch(arena, lower)
    assert sorted(os.listdir(merged)) == ["dir", "other"]
    (merged / "one").write_bytes(b"again")
    run(arena, "umount", merged)
    assert os.listdir(arena.upper) == ["one"]


@pytest.mark.actors("root")
def test_others_may_use_a_ranch(arena: Arena) -> None:
    """The links lead where everybody who sees them may go."""
    merged = ranch(arena, arena.lower({"file": File(b"x", mode=0o644)}))
    done = subprocess.run(["cat", merged / "file"], user=arena.actor.user.uid, capture_output=True)
    assert done.stdout == b"x", done.stderr
    run(arena, "umount", merged)


@everybody
def test_the_same_tree_as_the_other_engines(arena: Arena) -> None:
    """Followed through its links, a ranch shows what every engine of the actor shows."""
    lower = arena.lower(LOWER)
    trees = []
    for engine in engines_of(arena.actor.role):
        with shown(arena, engine, [lower], arena.upper) as merged:
            trees.append(seen(merged.root))
    assert all(found == trees[0] for found in trees)
