"""The argument lines that podman 4.3 and buildah 1.28 were seen to pass, one test each.

They run in a user namespace, as rootless engines do, and as root. The caller checks the rest of the contract at every
call: a silent stderr, exit 0 only when the mount is live, no inherited descriptor kept, an end within a second.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.caller import Caller
from tests.support.fake_store import FakeStore
from tests.support.layers import Dir, File, Name, Node
from tests.support.layers import Symlink as SymbolicLink

pytestmark = pytest.mark.actors("root", "userns")

BASE: dict[Name, Node] = {
    "etc": Dir(),
    "etc/a": File(b"base a"),
    "etc/b": File(b"base b"),
    "bin": SymbolicLink(target="usr/bin"),
    "usr/bin/sh": File(b"#!", mode=0o755),
}
SECOND: dict[Name, Node] = {"etc/.wh.b": File(mode=0), "etc/c": File(b"second c")}


def assert_writable_over_both(merged: Path, upper: Path) -> None:
    """The merged tree shows the two layers above, and writing goes to `upper`."""
    assert sorted(os.listdir(merged / "etc")) == ["a", "c"]
    (merged / "etc/a").write_text("changed")
    (merged / "etc/new").write_text("new")
    (merged / "etc/c").unlink()
    assert (upper / "etc/a").read_text() == "changed"
    assert sorted(os.listdir(merged / "etc")) == ["a", "new"]


def test_buildah_from_scratch(caller: Caller, store: FakeStore) -> None:
    layer = store.layer("c838")
    options = f"lowerdir={layer.empty},{layer.writable()},,volatile"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert os.listdir(merged) == []
        (merged / "etc").mkdir()
    assert (layer.diff / "etc").is_dir()


def test_podman_run_with_removal(caller: Caller, store: FakeStore) -> None:
    base, second, layer = store.layer("a1", BASE), store.layer("b2", SECOND), store.layer("5204")
    options = f"lowerdir={second.link}:{base.link},{layer.writable()},,volatile"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert_writable_over_both(merged, layer.diff)


def test_podman_run_that_keeps_the_container(caller: Caller, store: FakeStore) -> None:
    base, second, layer = store.layer("a1", BASE), store.layer("b2", SECOND), store.layer("5248")
    options = f"lowerdir={second.link}:{base.link},{layer.writable()},"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert_writable_over_both(merged, layer.diff)


def test_the_base_layer_for_a_diff(caller: Caller, store: FakeStore) -> None:
    base = store.layer("f17d", BASE)
    with caller.mounted(f"lowerdir={base.diff}:{base.empty}", base.merged, store.home) as merged:
        assert (merged / "etc/b").read_text() == "base b"
        with pytest.raises(OSError) as refused:
            (merged / "etc/new").touch()
        assert refused.value.errno == errno.EROFS


def test_the_parent_for_a_commit(caller: Caller, store: FakeStore) -> None:
    base, second = store.layer("a1", BASE), store.layer("b2", SECOND)
    layer = store.layer("04d9", {"etc/d": File(b"third")})
    options = f"lowerdir={layer.diff}:{second.link}:{base.link}"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert sorted(os.listdir(merged / "etc")) == ["a", "c", "d"]


def test_mount_options_of_storage_conf(caller: Caller, store: FakeStore) -> None:
    base, second, layer = store.layer("a1", BASE), store.layer("b2", SECOND), store.layer("493e")
    options = f"lowerdir={second.link}:{base.link},{layer.writable()},noacl,fsync=0,volatile"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert_writable_over_both(merged, layer.diff)


def test_a_volume_with_overlay(caller: Caller, store: FakeStore, arena: Arena) -> None:
    """`-v src:dst:O`: any directory as the lower, colons escaped, the literal word `private`."""
    source = arena.lower({"data": File(b"data")}, name="root:fs")
    volume = arena.directory("userdata/overlay/1259672350")
    for name in ("upper", "work", "merge"):
        (volume / name).mkdir()
    lower = str(source).replace(":", "\\:")
    options = f"lowerdir={lower},upperdir={volume}/upper,workdir={volume}/work,private"
    with caller.mounted(options, volume / "merge") as merged:
        (merged / "data").write_text("changed")
    assert (volume / "upper/data").read_text() == "changed"


def test_an_image_as_a_volume(caller: Caller, store: FakeStore, arena: Arena) -> None:
    """`--mount type=image`: the lower is itself such a mount, and there is no upper."""
    image = store.layer("04d9", BASE)
    volume = arena.directory("userdata/overlay/239")
    for name in ("lower", "merge"):
        (volume / name).mkdir()
    with (
        caller.mounted(f"lowerdir={image.diff}:{image.empty}", image.merged, store.home) as inner,
        caller.mounted(f"lowerdir={inner}:{volume}/lower,private", volume / "merge") as merged,
    ):
        assert (merged / "etc/a").read_text() == "base a"


def test_a_selinux_context_is_accepted(caller: Caller, store: FakeStore) -> None:
    """The label is quoted and holds commas inside the quotes."""
    base, second, layer = store.layer("a1", BASE), store.layer("b2", SECOND), store.layer("77aa")
    label = 'context="system_u:object_r:container_file_t:s0:c1,c2"'
    options = f"lowerdir={second.link}:{base.link},{layer.writable()},,volatile,{label}"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert_writable_over_both(merged, layer.diff)


def test_version_for_podman_info(caller: Caller) -> None:
    call = caller.call("--version")
    assert (call.exit_code, call.stderr) == (0, "")
    assert call.seconds < 1
