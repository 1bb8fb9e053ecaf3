"""`fuseunion image`, as root and as the ordinary user: what it makes, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseunion import __version__
from fuseunion.images import loops
from fuseunion.images.layers import by_kernel, by_program, mounted
from fuseunion.images.tools import cloning, opened, programs
from fuseunion.images.tools.ext import checking
from fuseunion.images.tools.trees import packing, squashing
from tests.images.commands import (
    a_sif,
    an_upper,
    assert_equal,
    features,
    image,
    info,
    left,
    refuse,
    succeed,
)
from tests.images.conftest import content, fsck, names
from tests.images.sifs import ENCRYPTED, EXT, OVERLAY, PRIMARY, SIGNATURE, SQUASHFS, Entry, Layout
from tests.support import libc, tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File, build

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user")]

USAGE, LAYERS, FAILURE, BUSY, UNAVAILABLE = 2, 3, 1, 4, 5
MIB = 1 << 20

APPTAINERS = {"has_journal", "filetype", "needs_recovery", "meta_bg", "sparse_super", "large_file", "dir_index"} | {
    "ext_attr",
    "resize_inode",
}
"""What may be in an overlay image of Apptainer: incompatible and read-only features from its list (pkg/image/ext3.go),
and compatible ones, which it does not look at."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is about to let go of an image in these tests."""
    monkeypatch.setattr(opened, "_PATIENCE", 0.0)


def seconds(root: Path | bytes) -> dict[bytes, int]:
    """When what is in a tree was modified."""
    return {path: entry.mtime // 10**9 for path, entry in tree.snapshot(root).items()}


# -- create ------------------------------------------------------------------------------------------------------------


def test_an_image_as_apptainer_makes_it(arena: Arena) -> None:
    file = arena.root / "x.img"
    assert "64.0M" in succeed("create", "--size", "64M", "--sparse", "--create-dir", "usr/local", file)
    fsck(file)
    assert features(file) <= APPTAINERS and "has_journal" in features(file)
    st = file.stat()
    assert (stat.S_IMODE(st.st_mode), st.st_size, st.st_uid) == (0o600, 64 * MIB, os.geteuid())
    assert st.st_blocks * 512 < 16 * MIB, "sparse"
    assert succeed("ls", file).split() == ["lost+found", "upper", "work"]
    assert succeed("ls", file, "upper/usr").split() == ["local"]
    upper = succeed("ls", "-l", file, "/").splitlines()[1].split()
    assert upper[:4] == ["drwxr-xr-x", "3", str(os.geteuid()), str(os.getegid())]
    (found,) = info(file)["filesystems"]
    assert (found["type"], found["state"], found["size"], found["for_apptainer"]) == ("ext3", "clean", 64 * MIB, True)
    assert found["owner_of_upper"] == [os.geteuid(), os.getegid()]
    before = file.read_bytes()
    refuse(LAYERS, "exists; give another name", "create", "--size", "64M", file)
    assert file.read_bytes() == before and left(arena) == ["logs", "x.img"]


def test_how_an_image_may_be_made(arena: Arena) -> None:
    file = arena.root / "dense"
    succeed("create", "--size", "20M", "--fakeroot", "--create-dir", "a b/c", "--inodes", "4096", file)
    assert file.stat().st_blocks * 512 >= 20 * MIB
    (found,) = info(file)["filesystems"]
    assert found["owner_of_upper"] == [0, 0] and abs(found["inodes"] - 4096) < 200
    assert succeed("ls", "-l", file, "upper/a b").split()[2:4] == ["0", "0"]
    few, many, modern = (arena.root / name for name in ("few", "many", "modern"))
    succeed("create", "--size", "16M", "--profile", "large-files", few)
    succeed("create", "--size", "16M", "--profile", "small-files", many)
    assert info(few)["filesystems"][0]["inodes"] < 100 < 4000 < info(many)["filesystems"][0]["inodes"]
    succeed("create", "--size", "32M", "--type", "ext4", "--sparse", modern)
    assert {"extent", "metadata_csum"} <= features(modern)
    assert info(modern)["filesystems"][0]["for_apptainer"] is False
    for each in (file, few, many, modern):
        fsck(each)


def test_what_fails_leaves_nothing(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    file = arena.root / "x.img"

    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "run", interrupted)
    assert image("create", "--size", "16M", file).code == 130
    monkeypatch.undo()
    monkeypatch.setattr(programs, "_PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    refuse(UNAVAILABLE, "mke2fs is not installed; it comes with the package e2fsprogs", "create", "--size", "16M", file)
    monkeypatch.undo()
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY | os.O_WRONLY)  # as a filesystem without it answers: EISDIR
    refuse(FAILURE, "cannot make", "create", "--size", "16M", "--inodes", "4000000000", file)
    assert left(arena) == ["logs"]
    succeed("create", "--size", "16M", "--sparse", file)
    succeed("resize", file, "18M")
    assert left(arena) == ["logs", "x.img"]
    fsck(file)


@pytest.mark.actors("root")
def test_a_full_disk(arena: Arena) -> None:
    small = arena.directory("small")
    libc.mount("tmpfs", str(small), "tmpfs", 0, "size=24m")
    try:
        file = small / "x.img"
        refuse(FAILURE, "No space left on device", "create", "--size", "64M", file)
        assert os.listdir(small) == []
        succeed("create", "--size", "16M", file)
        before = file.read_bytes()
        refuse(FAILURE, "cannot resize", "resize", file, "20M")
        assert os.listdir(small) == ["x.img"] and file.read_bytes() == before
        big = build(arena.root / "big", {"file": File(os.urandom(30 * MIB))})
        refuse(FAILURE, "cannot squash", "squash", big, small / "x.sqfs")
        refuse(FAILURE, "", "pack", big, small / "packed")
        assert os.listdir(small) == ["x.img"]
    finally:
        libc.umount(str(small))


# -- the life of an image ----------------------------------------------------------------------------------------------


def test_used_filled_resized_and_given_away(arena: Arena) -> None:
    lower = arena.lower({"file": File(b"of the lower"), "gone": File(b"")})
    file = arena.root / "x.img"
    succeed("create", "--size", "24M", "--sparse", file)
    assert info(file)["filesystems"][0]["last_used_with"] is None
    with arena.mount(lower, upper=file) as mount:
        assert info(file)["filesystems"][0]["used"] + info(file)["filesystems"][0]["free"] == 24 * MIB
        (mount / "file").write_text("changed")
        (mount / "gone").unlink()
        (mount / "big").write_bytes(os.urandom(12 * MIB))
        refuse(BUSY, "in use by another mount", "check", file)
        refuse(BUSY, "in use by another mount", "resize", file, "32M")
        refuse(BUSY, "in use by another mount", "chown", file, "--to", "root")
        refuse(BUSY, "being written by another mount", "clone", file, arena.root / "second")
        refuse(BUSY, f"at '{mount.merged}'", "ls", file)
        assert "being written" in info(file)["in_use"]
    assert info(file)["filesystems"][0]["last_used_with"] == [f"fuseunion {__version__}", str(lower)]
    assert f"last used with:    fuseunion {__version__}, {lower}\n" in succeed("info", file)
    assert "is clean" in succeed("check", file)
    refuse(LAYERS, "what its files and tables need", "resize", file, "16M")
    assert succeed("resize", file, "+8M").strip() == f"'{file}' was 24.0M and is 32.0M"
    assert file.stat().st_size == 32 * MIB
    with arena.mount(lower, upper=file) as mount:
        assert (mount / "file").read_text() == "changed" and not (mount / "gone").exists()
        (mount / "more").write_bytes(bytes(4 * MIB))
        (mount / "big").unlink()
    succeed("resize", file, "-12M")
    assert (file.stat().st_size, stat.S_IMODE(file.stat().st_mode)) == (20 * MIB, 0o600)
    fsck(file)
    me = [os.geteuid(), os.getegid()]
    succeed("chown", file, "--to", "3:4")
    assert info(file)["filesystems"][0]["owner_of_upper"] == [3, 4]
    assert "3      4" in succeed("ls", "-l", file, "upper/file")
    assert "would change" in succeed("chown", file, "--to", "me", "--dry-run")
    succeed("chown", file, "--to", "root")
    succeed("chown", file, "--to", "me")
    assert info(file)["filesystems"][0]["owner_of_upper"] == me
    assert names(file) == {"file", "gone", "more"} and content(file, "/upper/file") == b"changed"
    fsck(file)
    assert sorted(set(left(arena)) - {"logs", "merged", "lower0"}) == ["x.img"]


def test_what_the_kernel_has_is_left_alone(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop device takes no lock; where there are any, /sys says what they are of."""
    file, copy = arena.root / "x.img", arena.root / "copy"
    succeed("create", "--size", "16M", "--sparse", file)
    devices = build(
        arena.root / "block",
        {
            "loop3/loop/backing_file": File(b"/nowhere\n"),
            "loop5/loop/backing_file": File(b"/no\xff\n"),
            "loop7/loop/backing_file": File(os.fsencode(file) + b"\n"),
            "loop7/ro": File(b"1\n"),
            "sda": Dir(),
        },
    )
    monkeypatch.setattr(loops, "_BLOCK_DEVICES", str(devices))
    says = "is in use by /dev/loop7; unmount it, or: losetup -d /dev/loop7"
    refuse(BUSY, says, "check", file)
    succeed("clone", file, copy)
    assert info(file)["in_use"] == "/dev/loop7" and info(copy)["in_use"] is None
    (devices / "loop7/ro").write_text("0\n")
    refuse(BUSY, says, "clone", file, arena.root / "second")


def test_who_writes_without_a_lock_is_found(arena: Arena) -> None:
    file = arena.root / "x.img"
    succeed("create", "--size", "16M", "--sparse", file)
    for mode, is_refused in (("<", False), ("<>", True)):
        command = ["sh", "-c", f'exec 9{mode}"$1"; echo; exec cat', "sh", str(file)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdout.readline()
            if is_refused:
                refuse(BUSY, f"is in use by process {other.pid} (", "resize", file, "20M")
            else:
                succeed("resize", file, "20M")
            other.communicate()
    succeed("resize", file, "16M")


def test_clones(arena: Arena) -> None:
    file, copy, holes = (arena.root / name for name in ("x.img", "copy", "holes"))
    succeed("create", "--size", "16M", file)
    succeed("clone", file, copy)
    succeed("clone", "--sparse", file, holes)
    assert file.read_bytes() == copy.read_bytes() == holes.read_bytes()
    assert holes.stat().st_blocks * 512 < 2 * MIB < file.stat().st_blocks * 512
    refuse(LAYERS, "exists", "clone", file, copy)
    inside = arena.directory("inside")
    succeed("clone", file, inside)
    assert os.listdir(inside) == ["x.img"]


def test_check(arena: Arena) -> None:
    file = arena.root / "x.img"
    succeed("create", "--size", "16M", "--sparse", file)
    found = json.loads(succeed("check", "--json", file))
    assert (found["outcome"], found["union"]) == ("clean", [])
    subprocess.run(
        ["debugfs", "-w", "-R", "set_super_value free_blocks_count 7", str(file)], check=True, capture_output=True
    )
    assert "is corrected" in succeed("check", file)
    for request in ("mkdir work/work", "write /etc/passwd work/work/#5"):
        subprocess.run(["debugfs", "-w", "-R", request, str(file)], check=True, capture_output=True)
    assert "leftover: 'work/work/#5'" in succeed("check", file)
    for request in ("rm work/work/#5", "rmdir work/work"):
        subprocess.run(["debugfs", "-w", "-R", request, str(file)], check=True, capture_output=True)
    subprocess.run(["debugfs", "-w", "-R", "rmdir work", str(file)], check=True, capture_output=True)
    assert "work/ is missing" in succeed("check", file)
    # A block that is not in the filesystem: nothing that may be corrected without being asked.
    bad = "set_inode_field upper block[0] 99999999"
    subprocess.run(["debugfs", "-w", "-R", bad, str(file)], check=True, capture_output=True)
    before = file.read_bytes()
    done = image("check", "--dry-run", file)
    assert done.code == FAILURE and "has errors" in done.err and file.read_bytes() == before
    done = image("check", file)
    assert done.code == FAILURE and done.err.endswith(f"image check --repair {file}\n")
    assert "is corrected" in succeed("check", "--repair", file)
    fsck(file)


def test_what_was_not_unmounted_is_checked_first(arena: Arena) -> None:
    file = arena.root / "x.img"
    succeed("create", "--size", "16M", "--sparse", file)
    subprocess.run(["debugfs", "-w", "-R", "set_super_value state 0", str(file)], check=True, capture_output=True)
    assert info(file)["filesystems"][0]["state"] == "not unmounted"
    refuse(LAYERS, f"run: fuseunion image check {file}", "chown", file, "--to", "root")
    succeed("check", file)
    succeed("chown", file, "--to", "root")


# -- whole trees -------------------------------------------------------------------------------------------------------


def test_packed_and_unpacked(arena: Arena) -> None:
    upper, file, again = an_upper(arena), arena.root / "x.img", arena.root / "again"
    arena.guard(upper)
    assert " objects into " in succeed("pack", upper, file)
    fsck(file)
    assert features(file) <= APPTAINERS
    assert set(succeed("ls", file, "upper").splitlines()) == {
        os.fsdecode(name).replace("\n", "\\n").replace("\udcff", "\\xff") for name in os.listdir(upper)
    }
    succeed("unpack", file, again)
    assert_equal(upper, again, but=("mtime",))
    # fuse2fs tells whole seconds.
    assert seconds(upper) == seconds(again)
    assert (again / "dir/sparse").stat().st_blocks < 100, "holes stay holes"
    assert set(left(arena)) == {"logs", "up", "x.img", "again"}
    refuse(LAYERS, "'" + str(again) + "' exists", "unpack", file, again)
    refuse(LAYERS, "exists", "pack", upper, file)


@pytest.mark.actors("user")
def test_what_only_root_can_keep(arena: Arena) -> None:
    upper, file, again = an_upper(arena), arena.root / "x.img", arena.root / "again"
    succeed("pack", upper, file)
    succeed("chown", file, "--to", "root", "--keep-set-id")
    done = image("unpack", file, again)
    assert (done.code, done.err) == (
        0,
        "fuseunion: warning: 13 of 14 objects kept no owner of their own and no set-id bits\n",
    )
    assert_equal(upper, again, but=("mode", "mtime"))
    assert stat.S_IMODE((again / "dir/set-id").stat().st_mode) == 0o755, "no set-user-ID program for another user"
    subprocess.run(
        ["debugfs", "-w", "-R", "ea_set upper/empty trusted.overlay.opaque y", str(file)],
        check=True,
        capture_output=True,
    )
    refuse(LAYERS, "'empty' has the mark trusted.overlay.opaque of an overlay", "unpack", file, arena.root / "third")
    assert "third" not in " ".join(left(arena))


def test_the_link_index_goes_along(arena: Arena) -> None:
    lower = arena.lower({"one": File(b"linked"), "dir": File(b"")})
    os.link(lower / "one", lower / "two")
    arena.guard(lower)
    with arena.mount(lower) as mount:
        (mount / "one").write_bytes(b"changed")
    file, again = arena.root / "x.img", arena.root / "again"
    succeed("pack", arena.upper, file)
    succeed("unpack", file, again)
    for upper in (file, again):
        with arena.mount(lower, upper=upper) as mount:
            assert (mount / "two").read_bytes() == b"changed"
            assert (mount / "one").stat().st_nlink == 2


def _squashed(arena: Arena, stack: ExitStack, file: Path) -> bytes:
    """What is in a squashfs image: unpacked by root, who can; shown to the user, who can make no device."""
    if os.geteuid() == 0:
        again = arena.root / "again"
        subprocess.run(["unsquashfs", "-q", "-n", "-d", str(again), str(file)], check=True, capture_output=True)
        return bytes(again)
    root_fd = stack.enter_context(opened.inside(opened.open_image(stack, str(file), opened.Access.READ)))
    return b"/proc/self/fd/%d/." % root_fd


@pytest.mark.parametrize("writable", [False, True])
def test_a_signal_while_something_is_opened_in_it(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, writable: bool
) -> None:
    """Nobody knows of the descriptor any more, for which the image stays mounted: two minutes were waited for it."""
    for module in (mounted, by_program, by_kernel):
        monkeypatch.setattr(module, "SOON", 2.0)
        monkeypatch.setattr(module, "AT_MOST", 0.1)
    file = arena.root / "x.img"
    succeed("pack", an_upper(arena), file)
    with ExitStack() as stack:
        image = opened.open_image(stack, str(file), opened.Access.WRITE if writable else opened.Access.READ)
        with pytest.raises(KeyboardInterrupt), opened.inside(image, writable=writable) as root_fd:
            os.open("upper", os.O_RDONLY, dir_fd=root_fd)
            raise KeyboardInterrupt
    assert not caplog.messages
    fsck(file)


def test_squashed(arena: Arena) -> None:
    upper, file = an_upper(arena), arena.root / "x.sqfs"
    subprocess.run(["setfacl", "-b", str(upper / "attributes")], check=True)
    arena.guard(upper)
    succeed("squash", upper, file)
    assert info(file)["filesystems"][0]["type"] == "squashfs"
    with ExitStack() as stack:
        shown = _squashed(arena, stack, file)
        assert_equal(upper, shown, but=("mtime",))
        # squashfs has whole seconds.
        assert seconds(upper) == seconds(shown)
    refuse(LAYERS, "exists", "squash", upper, file)


@pytest.mark.actors("root")
def test_what_root_hid_stays_hidden_when_it_is_squashed(arena: Arena) -> None:
    lower = arena.lower({"dir/old": File(b"o"), "gone": File(b"g")})
    file = arena.root / "x.sqfs"
    with arena.mount(lower) as mount:
        shutil.rmtree(mount / "dir")
        (mount / "dir").mkdir()
        (mount / "dir/new").write_bytes(b"n")
        (mount / "gone").unlink()
    assert os.getxattr(arena.upper / "dir", "trusted.overlay.opaque") == b"y"
    succeed("squash", arena.upper, file)
    with arena.mount(file, lower, upper=arena.root / "second") as mount:
        assert os.listdir(mount.merged) == ["dir"] and os.listdir(mount / "dir") == ["new"]


def test_a_mount_is_squashed_as_it_is_shown(arena: Arena) -> None:
    lower = arena.lower({"kept": File(b"k"), "gone": File(b"g")})
    file = arena.root / "x.sqfs"
    with arena.mount(lower) as mount:
        (mount / "gone").unlink()
        (mount / "new").write_bytes(b"n")
        succeed("squash", mount.merged, file)
        refuse(BUSY, "in use", "squash", arena.upper, arena.root / "y.sqfs")
    assert succeed("ls", file).split() == ["kept", "new"]
    with arena.mount(file) as mount:
        assert (mount / "kept").read_bytes() == b"k"


@pytest.mark.actors("user")
def test_what_cannot_be_read_is_not_left_out(arena: Arena) -> None:
    upper = build(arena.root / "up", {"closed": File(b"secret", mode=0o000), "open": File(b"x")})
    refuse(FAILURE, "cannot copy", "pack", upper, arena.root / "x.img")
    refuse(FAILURE, "cannot squash", "squash", upper, arena.root / "x.sqfs")
    assert left(arena) == ["logs", "up"]
    file = arena.root / "x.img"
    succeed("create", "--size", "16M", "--sparse", file)
    file.chmod(0o400)
    refuse(FAILURE, f"'{file}': Permission denied", "check", file)
    assert "is clean" in succeed("check", "--dry-run", file)
    file.chmod(0o600)
    arena.root.chmod(0o500)
    refuse(FAILURE, f"'{file}': Permission denied", "resize", file, "20M")
    refuse(FAILURE, "new': Permission denied", "create", "--size", "16M", arena.root / "new")
    refuse(FAILURE, "Permission denied", "unpack", file, arena.root / "new")
    arena.root.chmod(0o755)


# -- SIF ---------------------------------------------------------------------------------------------------------------


def test_an_overlay_in_a_sif(arena: Arena) -> None:
    file = a_sif(arena)
    root = file.read_bytes()[32768:]
    assert succeed("ls", file).split() == ["etc", "file"]
    assert succeed("create", "--size", "16M", file) == f"added an overlay to '{file}': ext3, 16.0M\n"
    assert succeed("ls", file).split() == ["lost+found", "upper", "work"]
    found = info(file)
    assert [each["type"] for each in found["filesystems"]] == ["squashfs", "ext3"]
    assert found["descriptors"][1]["use"] == "overlay" and found["kind"] == "SIF image"
    refuse(LAYERS, "has an overlay that can be written already", "create", "--size", "16M", file)
    with arena.mount(file, upper=file) as mount:
        assert (mount / "etc/conf").read_text() == "of the root\n"
        (mount / "etc/conf").write_text("changed\n")
        refuse(BUSY, "in use", "resize", file, "32M")
    assert "is clean" in succeed("check", file)
    succeed("resize", file, "32M")
    assert info(file)["filesystems"][1]["size"] == 32 * MIB
    succeed("resize", file, "-10M")
    succeed("chown", file, "--to", "7:8")
    assert info(file)["filesystems"][1]["owner_of_upper"] == [7, 8]
    succeed("chown", file, "--to", "me")
    with arena.mount(file, upper=file) as mount:
        assert (mount / "etc/conf").read_text() == "changed\n"
    assert file.read_bytes()[32768 : 32768 + len(root)] == root
    again = arena.root / "again"
    succeed("unpack", file, again)
    assert (again / "etc/conf").read_text() == "changed\n"
    assert "primary system squashfs" in succeed("info", file)


def test_a_sif_in_which_anything_may_stand(arena: Arena) -> None:
    file = a_sif(arena)
    with file.open("r+b") as raw:
        raw.seek(64)
        raw.write((1 << 62).to_bytes(8, "little"))
    assert f"{1 << 62}, which is no time" in succeed("info", file)
    succeed("create", "--size", "16M", file)
    behind = arena.root / "behind.sif"
    entry = Entry(filesystem=EXT, use=OVERLAY, content=(arena.root / "x.sif").read_bytes()[-16 * MIB :])
    primary = Entry(content=b"hsqs".ljust(4096, b"s"), filesystem=SQUASHFS, use=PRIMARY)
    Layout([primary, entry, Entry(0x4007, b"")]).write(behind)
    before = behind.read_bytes()
    refuse(LAYERS, "partition 3 lies behind it", "resize", behind, "17M")
    assert behind.read_bytes() == before


def test_a_sif_that_must_not_be_changed(arena: Arena) -> None:
    signed = a_sif(arena, "signed.sif", Entry(SIGNATURE, b"-----BEGIN"))
    closed = Layout([Entry(content=b"?" * 100, filesystem=ENCRYPTED, use=2)]).write(arena.root / "closed.sif")
    broken = Layout([Entry(content=b"x", offset=1 << 62)]).write(arena.root / "broken.sif")
    before = {file: file.read_bytes() for file in (signed, closed, broken)}
    refuse(LAYERS, "is signed, and a change", "create", "--size", "16M", signed)
    refuse(LAYERS, "is encrypted and cannot hold", "create", "--size", "16M", closed)
    refuse(LAYERS, "does not lie in the file", "create", "--size", "16M", broken)
    refuse(LAYERS, "cannot be read: it is encrypted", "ls", closed)
    assert info(closed)["encrypted"] and info(signed)["signed"]
    for action in (["info"], ["ls"], ["check"]):
        refuse(LAYERS, "is damaged: the data of descriptor 1", *action, broken)
    refuse(LAYERS, "has no overlay that can be written; add one", "resize", signed, "2G")
    assert before == {file: file.read_bytes() for file in before}


# -- how far it is -----------------------------------------------------------------------------------------------------


@pytest.mark.actors("user")
def test_long_work_says_how_far_it_is(arena: Arena) -> None:
    upper, file = an_upper(arena), arena.root / "x.img"
    succeed("pack", upper, file)
    for work, end in (("check", 100), ("squash", 100), ("copy", file.stat().st_size), ("unpack", 14)):
        told: list[int] = []
        with ExitStack() as stack:
            writable = opened.Access.WRITE if work == "check" else opened.Access.READ
            found = opened.open_image(stack, str(file), writable)
            if work == "check":
                checking.check(found, checking.Care.SAFE, told.append)
            elif work == "squash":
                fd = os.open(upper, os.O_RDONLY)
                stack.callback(os.close, fd)
                squashing.squash(fd, "up", str(arena.root / "x.sqfs"), told.append)
            elif work == "copy":
                with (arena.root / "copy").open("wb") as copy:
                    cloning.copy(found.fd, copy.fileno(), report=told.append)
            else:
                packing.unpack(found, str(arena.root / "again"), str(arena.root / "work"), told.append)
        assert told == sorted(told) and told[-1] == end, work


# -- mistakes ----------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[int, str, list[str]]] = [
    (USAGE, "say what to do with an image: create, info, ", []),
    (USAGE, "unknown action 'resise'; did you mean 'fuseunion image resize'?", ["resise", "x.img", "2G"]),
    (USAGE, "did you mean 'fuseunion image clone'?", ["cp", "x.img", "y.img"]),
    (USAGE, "give FILE SIZE: fuseunion image resize FILE SIZE", ["resize", "x.img"]),
    (USAGE, "give FILE: fuseunion image info FILE", ["info", "x.img", "y.img"]),
    (USAGE, "unknown option '--siez'; did you mean --size?", ["create", "--siez", "2G", "new"]),
    (USAGE, "--size is not for fuseunion image info", ["info", "--size", "2G", "x.img"]),
    (USAGE, "give the size of the image", ["create", "new"]),
    (USAGE, "--size 2X: expected a size such as 512M or 2G", ["create", "--size", "2X", "new"]),
    (USAGE, "--size +2G: expected a size", ["create", "--size", "+2G", "new"]),
    (USAGE, "--size 0: that is 0 bytes", ["create", "--size", "0", "new"]),
    (USAGE, "--size 99T: that is", ["create", "--size", "99T", "new"]),
    (USAGE, "1.0M is too small; an image has 16.0M or more", ["create", "--size", "1M", "new"]),
    (USAGE, "--inodes and --profile say the same", ["create", "--size=1G", "--inodes=99", "--profile=x", "new"]),
    (USAGE, "--inodes -5: expected a number between 16", ["create", "--size", "1G", "--inodes=-5", "new"]),
    (USAGE, "--profile tiny: expected one of small-files, large-files", ["create", "--size=1G", "--profile=tiny", "n"]),
    (USAGE, "--type xfs: expected one of ext3, ext4", ["create", "--size", "1G", "--type", "xfs", "new"]),
    (USAGE, "--create-dir ../x: expected a path", ["create", "--size", "1G", "--create-dir", "../x", "new"]),
    (USAGE, "a name like this cannot be made", ["create", "--size", "1G", "--create-dir", 'a"b', "new"]),
    (LAYERS, "there is no directory 'nowhere' for 'nowhere/new'", ["create", "--size", "1G", "nowhere/new"]),
    (LAYERS, "'text' exists; give another name", ["create", "--size", "1G", "text"]),
    (LAYERS, "'dir' exists", ["create", "--size", "1G", "dir"]),
    (LAYERS, "there is no image 'new'", ["info", "new"]),
    (LAYERS, "'dir' is not a regular file; give an image", ["info", "dir"]),
    (LAYERS, "'fifo' is not a regular file", ["check", "fifo"]),
    (LAYERS, "'text' is no image that is known", ["ls", "text"]),
    (LAYERS, "'short' is cut short", ["ls", "short"]),
    (USAGE, "--dry-run changes nothing and --repair everything", ["check", "--dry-run", "--repair", "x.img"]),
    (USAGE, "SIZE big: expected a size such as 512M or 2G, +500M or -1G", ["resize", "x.img", "big"]),
    (USAGE, "SIZE -1T: that is", ["resize", "x.img", "-1T"]),
    (USAGE, "expected a size", ["resize", "x.img", "9" * 5000]),
    (USAGE, "expected a number between", ["create", "--size", "16M", "--inodes", "9" * 5000, "new"]),
    (USAGE, "1.0M is too small", ["resize", "x.img", "1M"]),
    (LAYERS, "has 2 hard links", ["resize", "twice.img", "32M"]),
    (USAGE, "say whose it is to be", ["chown", "x.img"]),
    (USAGE, "--to nobody: expected root", ["chown", "x.img", "--to", "nobody"]),
    (LAYERS, "'nosuch' in 'x.img': No such file", ["ls", "x.img", "nosuch"]),
    (LAYERS, "upper directory 'nosuch'", ["pack", "nosuch", "new"]),
    (LAYERS, "'x.img' exists", ["pack", "dir", "x.img"]),
    (FAILURE, "does not fit into 16.0M", ["pack", "--size", "16M", "big", "new"]),
    (LAYERS, "'dir' exists", ["unpack", "x.img", "dir"]),
    (LAYERS, "there is no directory 'nowhere' for 'nowhere/up'", ["unpack", "x.img", "nowhere/up"]),
    (LAYERS, "upper directory 'nosuch'", ["squash", "nosuch", "new"]),
    (LAYERS, "'text' exists", ["squash", "dir", "text"]),
]


def test_mistakes(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dir", "big"):
        arena.directory(name)
    (arena.root / "big/file").write_bytes(os.urandom(20 * MIB))
    (arena.root / "text").write_text("no image")
    os.mkfifo(arena.root / "fifo")
    succeed("create", "--size", "16M", "--sparse", arena.root / "x.img")
    succeed("create", "--size", "16M", "--sparse", arena.root / "twice.img")
    (arena.root / "other.img").hardlink_to(arena.root / "twice.img")
    (arena.root / "short").write_bytes((arena.root / "x.img").read_bytes()[:100_000])
    before = tree.snapshot(arena.root)
    monkeypatch.chdir(arena.root)
    for code, says, arguments in MISTAKES:
        refuse(code, says, *arguments)
    after = tree.snapshot(arena.root)
    assert not tree.differences(before, after, ("kind", "mode", "size", "content"))
    monkeypatch.undo()


def test_the_help(arena: Arena) -> None:
    assert succeed("--help").startswith("Usage: fuseunion image create")
    assert succeed("create", "--help") == succeed("-h")


def test_images_of_others_are_not_made_ones_own(arena: Arena) -> None:
    """A link in the place of an image is followed, and stays; what it leads to is resized."""
    file, link = arena.root / "x.img", arena.root / "link"
    succeed("create", "--size", "16M", "--sparse", file)
    link.symlink_to("x.img")
    succeed("resize", link, "20M")
    assert link.is_symlink() and file.stat().st_size == 20 * MIB
    shutil.copy(file, arena.root / "y.img")
    (arena.root / "y.img").chmod(0o640)
    succeed("resize", arena.root / "y.img", "24M")
    assert stat.S_IMODE((arena.root / "y.img").stat().st_mode) == 0o640
