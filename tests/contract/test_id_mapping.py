"""`uidmapping=` and `gidmapping=` as podman passes them: triples DISK:SHOWN:LEN, with a leading colon.

Container id = the id on disk; host id = the id in podman's user namespace, which is what the mount shows.
"""

from __future__ import annotations

import os
import stat
import struct

import pytest

from tests.support.caller import Caller
from tests.support.fake_store import FakeStore
from tests.support.layers import Dir, File

pytestmark = pytest.mark.actors("root", "userns")

KEEP_ID = ":0:1:1055:1055:0:1:1056:1056:64481"

# Version 2, cap_net_raw=ep (include/uapi/linux/capability.h, struct vfs_cap_data); containers/storage unpacks it so.
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def test_keep_id(caller: Caller, store: FakeStore) -> None:
    base = store.layer(
        "a1",
        {
            "etc": Dir(),
            "etc/of-root": File(uid=0, gid=0),
            "etc/of-five": File(uid=5, gid=7),
            "home": Dir(uid=1055, gid=1055),
        },
    )
    layer = store.layer("c8cd")
    maps = f"uidmapping={KEEP_ID},gidmapping={KEEP_ID}"
    options = f"lowerdir={base.link},{layer.writable()},,volatile,{maps}"
    with caller.mounted(options, layer.merged, store.home) as merged:
        shown = {path: os.lstat(merged / path) for path in ("etc/of-root", "etc/of-five", "home")}
        assert [(entry.st_uid, entry.st_gid) for entry in shown.values()] == [(1, 1), (6, 8), (0, 0)]
        (merged / "home/made").touch()  # by 0, which is 1055 on disk
        os.chown(merged / "etc/of-five", 1, 6)
    made, changed = os.stat(layer.diff / "home/made"), os.stat(layer.diff / "etc/of-five")
    assert (made.st_uid, made.st_gid) == (1055, 1055)
    assert (changed.st_uid, changed.st_gid) == (0, 5)


def test_uidmap(caller: Caller, store: FakeStore) -> None:
    """`--uidmap 0:1:1000 --gidmap 0:1:1000`."""
    base, layer = store.layer("a1", {"file": File(uid=10, gid=20)}), store.layer("d001")
    options = f"lowerdir={base.link},{layer.writable()},,uidmapping=:0:1:1000,gidmapping=:0:1:1000"
    with caller.mounted(options, layer.merged, store.home) as merged:
        entry = os.stat(merged / "file")
        assert (entry.st_uid, entry.st_gid) == (11, 21)
        os.chown(merged / "file", 1, 1)
        # podman makes /etc/mtab as root of its own namespace, whom the map leaves out.
        (merged / "mtab").symlink_to("/proc/mounts")
        assert os.lstat(merged / "mtab").st_uid == 1
    for name in ("file", "mtab"):
        entry = os.lstat(layer.diff / name)
        assert (entry.st_uid, entry.st_gid) == (0, 0)


@pytest.mark.actors("userns")
def test_a_work_directory_of_the_container_s_root(caller: Caller, store: FakeStore) -> None:
    """Ids of several ranges cannot be shown shifted: podman changes the owners on disk, that of WORK too, but not of
    UPPER, which has the owner of the directory below. Then it mounts the layer as itself (`podman commit`)."""
    base, layer = store.layer("a1", {"file": File(b"lower")}), store.layer("d004")
    os.chown(layer.work, 1, 1)
    with caller.mounted(f"lowerdir={base.link},{layer.writable()}", layer.merged, store.home) as merged:
        (merged / "file").write_text("changed")
    assert (layer.diff / "file").read_text() == "changed"


def test_the_overflow_id_is_never_stored(caller: Caller, store: FakeStore) -> None:
    base, layer = store.layer("a1", {"file": File(uid=2000, gid=2000)}), store.layer("d002")
    options = f"lowerdir={base.link},{layer.writable()},,uidmapping=:0:1:1000,gidmapping=:0:1:1000"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert os.stat(merged / "file").st_uid == 65534
        with pytest.raises(OSError):
            os.chown(merged / "file", 5000, 5000)
    assert not (layer.diff / "file").exists()


@pytest.mark.parametrize(
    ("option", "shown"),
    [("squash_to_root", (0, 0)), ("squash_to_uid=12,squash_to_gid=13", (12, 13))],
)
def test_squash(caller: Caller, store: FakeStore, option: str, shown: tuple[int, int]) -> None:
    base, layer = store.layer("a1", {"file": File(uid=10, gid=20)}), store.layer("d003")
    options = f"lowerdir={base.link},{layer.writable()},{option}"
    with caller.mounted(options, layer.merged, store.home) as merged:
        entry = os.stat(merged / "file")
        assert (entry.st_uid, entry.st_gid) == shown


def test_force_mask(caller: Caller, store: FakeStore) -> None:
    """`force_mask=700` in storage.conf: xattr_permissions=2, and every real file has mode 0700."""
    override = "user.containers.override_stat"
    base = store.layer(
        "a1",
        {
            "bin": Dir(mode=0o700, xattrs={override: b"0:0:0755:dir"}),
            "bin/su": File(b"#!", mode=0o700, xattrs={override: b"0:0:04755"}),
            "bin/ping": File(b"#!", mode=0o700, xattrs={override: b"0:0:0755", "security.capability": NET_RAW}),
            "bin/null": File(mode=0o700, xattrs={override: b"0:0:0666:char-1-3"}),
        },
    )
    os.setxattr(base.diff, override, b"0:0:0755:dir")
    store.arena.guard(base.diff)
    layer = store.layer("8be5")
    options = f"lowerdir={base.link},{layer.writable()},,volatile,xattr_permissions=2"
    with caller.mounted(options, layer.merged, store.home) as merged:
        assert stat.filemode(os.lstat(merged / "bin/su").st_mode) == "-rwsr-xr-x"
        null = os.lstat(merged / "bin/null")
        assert stat.S_ISCHR(null.st_mode)
        assert (os.major(null.st_rdev), os.minor(null.st_rdev)) == (1, 3)
        assert os.getxattr(merged / "bin/ping", "security.capability") == NET_RAW
        assert os.listxattr(merged / "bin/ping") == ["security.capability"]
        os.chmod(merged / "bin/ping", 0o750)
        assert os.getxattr(merged / "bin/ping", "security.capability") == NET_RAW
        os.removexattr(merged / "bin/ping", "security.capability")
        assert os.listxattr(merged / "bin/ping") == []
        os.chown(merged / "bin/su", 33, 44)
        entry = os.lstat(merged / "bin/su")
        assert (entry.st_uid, entry.st_gid) == (33, 44)
    assert os.getxattr(layer.diff / "bin/su", override).startswith(b"33:44:")
    assert os.stat(layer.diff / "bin/su").st_uid == 0
