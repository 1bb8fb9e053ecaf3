"""Root's own images, mounted by the kernel: by loop devices that free themselves, and never those of strangers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from fuseunion.images import loops as product_loops
from tests.engines.shown import Engine, run, shown
from tests.images.commands import a_sif, image, info, succeed
from tests.images.conftest import content, ext, fsck, names, repair, squashfs
from tests.support import libc, loops, processes
from tests.support.arena import Arena
from tests.support.layers import File, Link, build
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.actors("root")]

TREE = {
    "file": File(b"of the lower"),
    "gone": File(b"g"),
    "dir/inner": File(b"i"),
    "dir/deep/x": File(b"x"),
    "other/y": File(b"y"),
    "one": File(b"linked"),
    "two": Link("one"),
}


def _images(arena: Arena, kind: str = "ext4") -> tuple[Path, Path]:
    tree = build(arena.root / "tree", TREE)
    return squashfs(tree, arena.root / "base.sqfs"), ext(arena.root / "changes.img", kind=kind, size="32M")


def _shown_by(arena: Arena, merged: Path) -> list[str]:
    """What `status` says of the images of a mount."""
    done = arena.place.fuseunion("status", "--json", merged)
    (status,) = json.loads(done.stdout)["mounts"]
    return list(status["images"])


# -- the fuse engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
def test_no_program_and_nothing_left(arena: Arena, kind: str) -> None:
    lower, upper = _images(arena, kind)
    before = lower.read_bytes()
    with arena.mount(lower, upper=upper) as mount:
        assert mount.programs == []
        devices = loops.of(arena.root)
        assert sorted(device.split()[1] for device in devices) == [str(lower), str(upper)]
        by = {
            Path(path).name: who for path, _, who in (line.partition(": ") for line in _shown_by(arena, mount.merged))
        }
        assert {f"/dev/{device.split()[0]}" for device in devices} == {who.split(", ")[1] for who in by.values()}
        assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if "/dev/loop" in line]
        (mount / "file").write_text("changed")
        (mount / "gone").unlink()
        with open(mount / "new", "wb") as file:
            file.write(bytes(100_000))
            os.fsync(file.fileno())
        assert arena.place.fuseunion("sync", mount.merged).returncode == 0
    assert loops.of(arena.root) == []
    fsck(upper)
    assert names(upper) == {"file", "gone", "new"}
    assert content(upper, "/upper/file") == b"changed"
    assert lower.read_bytes() == before


def test_both_ways_and_both_engines_agree(arena: Arena) -> None:
    """What one has written, the next one shows: whiteouts, opaque directories, renamed ones, hard links."""
    lower, upper = _images(arena)
    ways = (("fuse", "kernel"), ("fuse", "fuse"), ("kernel", "auto"), ("fuse", "fuse"))
    for number, (engine, way) in enumerate(ways):
        with shown(arena, Engine(engine), [lower], upper, options=["-o", f"images={way}"]) as merged:
            if number == 0:
                (merged / "gone").unlink()
                subprocess.run(["rm", "-r", str(merged / "dir")], check=True)
                (merged / "dir").mkdir()
                (merged / "dir/only").write_text("only")
                os.rename(merged / "other", merged / "moved")
            (merged / f"new{number}").write_text(engine)
            (merged / "one").write_text(f"{number}")
            assert (merged / "two").read_text() == f"{number}"
            listed = {"dir", "file", "moved", "one", "two", *(f"new{n}" for n in range(number + 1))}
            assert set(os.listdir(merged.root)) == listed
            assert os.listdir(merged / "dir") == ["only"]
            assert (merged / "moved/y").read_text() == "y"
        fsck(upper)
        assert loops.of(arena.root) == []


def test_the_other_lowers_warning_does_not_depend_on_the_way(arena: Arena) -> None:
    lower, upper = _images(arena)
    for way in ("kernel", "fuse", "kernel"):
        merged = arena.directory("merged")
        assert run(arena, "-o", f"images={way}", lower, upper, merged) == ""
        run(arena, "umount", merged)


def test_a_lower_that_was_added_is_remembered(arena: Arena) -> None:
    """The next mount over the same layers has nothing to warn of, and the image says what it was used with."""
    lower, upper = _images(arena)
    above, below = arena.lower({"above": File(b"a")}), arena.lower({"below": File(b"b")})
    merged = arena.directory("merged")
    run(arena, "-o", "images=kernel", f"{lower}:{below}", upper, merged)
    run(arena, "add-lower", merged, above)
    run(arena, "umount", merged)
    assert info(upper)["filesystems"][0]["last_used_with"][1:] == [str(above), str(lower), str(below)]
    for way in ("kernel", "fuse"):
        assert run(arena, "-o", f"images={way}", f"{above}:{lower}:{below}", upper, merged) == ""
        run(arena, "umount", merged)


def test_a_sif_is_both(arena: Arena) -> None:
    sif = a_sif(arena)
    succeed("create", "--size", "20M", sif)
    for number, engine in enumerate((Engine.FUSE, Engine.KERNEL, Engine.FUSE)):
        with shown(arena, engine, [sif], sif, options=["-o", "images=kernel"]) as merged:
            assert len(loops.of(arena.root)) == 2
            assert (merged / "etc/conf").read_text() == ("of the root\n" if number == 0 else f"{number - 1}")
            (merged / "etc/conf").write_text(f"{number}")
        assert loops.of(arena.root) == []
        assert succeed("check", sif)


def test_the_daemon_is_killed_while_it_writes(arena: Arena) -> None:
    """Whatever fsync(2) has answered for is there, the image is clean at once, and no device is left."""
    lower, upper = arena.lower({f"f{number}": File(b"0" * 20_000) for number in range(10)}), None
    upper = ext(arena.root / "image", size="32M")
    durable: dict[str, bytes] = {}
    for turn in range(4):
        mount = arena.mount(lower, upper=upper)
        mount.start()
        assert {name: (mount / name).read_bytes() for name in durable} == durable

        def write(merged: Path = mount.merged, turn: int = turn) -> None:
            try:
                for number in range(100_000):
                    name, data = f"f{number % 10}", b"%d-%d;" % (turn, number) * 4000
                    with open(merged / f"{name}.new", "wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    known = durable.pop(name, None)  # until the next line is done it may be the one or the other
                    os.rename(merged / f"{name}.new", merged / name)
                    durable[name] = data
                    del known
            except OSError:
                pass  # the mount is dead

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: len(durable) > 1 + turn * 2, "some files to be written", 30)  # noqa: B023
        os.kill(mount.daemon, signal.SIGKILL)
        writer.join()
        mount.kill()
        assert loops.left_of(arena.root) == []
        fsck(upper)
    with arena.mount(lower, upper=upper) as mount:
        assert {name: (mount / name).read_bytes() for name in durable} == durable


def test_a_full_host_is_told(arena: Arena) -> None:
    """A sparse image for which there is no room: who unmounts hears of it, under either engine."""
    lower, disk, merged = arena.lower({"file": File(b"x")}), arena.directory("disk"), arena.directory("merged")
    libc.mount("tmpfs", str(disk), "tmpfs", 0, "size=6m,mode=755")
    try:
        for engine in ("fuse", "kernel"):
            upper = ext(disk / f"{engine}.img", size="32M")
            run(arena, "--engine", engine, "-o", "images=kernel", lower, upper, merged)
            (merged / "big").write_bytes(os.urandom(12 << 20))
            said = run(arena, "umount", merged, code=1)
            assert "written to disk" in said or "was not put in order" in said, said
            if "still mounted" in said:
                arena.place.fuseunion("umount", "--lazy", merged)
            assert loops.left_of(arena.root) == []
            upper.unlink()
    finally:
        libc.umount(str(disk))


# -- the kernel's overlayfs --------------------------------------------------------------------------------------------


def _by_fuseunion(arena: Arena, merged: Path) -> None:
    run(arena, "umount", merged)
    assert loops.of(arena.root) == [], "umount came back before the devices were freed"


def _by_umount8(arena: Arena, merged: Path) -> None:
    subprocess.run(["umount", str(merged)], check=True)
    assert loops.left_of(arena.root) == []


def _lazily(arena: Arena, merged: Path) -> None:
    fd = os.open(merged / "new", os.O_RDONLY)
    run(arena, "umount", "--lazy", merged)
    assert len(loops.of(arena.root)) == 2
    assert os.read(fd, 1) == b"x"
    os.close(fd)
    assert loops.left_of(arena.root) == []


@pytest.mark.parametrize("end", [_by_fuseunion, _by_umount8, _lazily])
def test_overlayfs_over_images(arena: Arena, end: Callable[[Arena, Path], None]) -> None:
    lower, upper = _images(arena)
    merged = arena.directory("merged")
    run(arena, "--engine", "kernel", lower, upper, merged)
    entry = mount_at(merged)
    assert entry is not None and entry.fstype == "overlay"
    (merged / "file").write_text("changed")
    (merged / "new").write_text("x")
    (merged / "gone").unlink()
    done = arena.place.fuseunion("status", "--json", merged)
    (status,) = json.loads(done.stdout)["mounts"]
    assert (status["engine"], status["lowers"], status["upper"]) == ("kernel", [str(lower)], str(upper))
    assert len(status["images"]) == 2
    end(arena, merged)
    fsck(upper)
    assert content(upper, "/upper/file") == b"changed"
    assert names(upper) == {"file", "gone", "new"}
    assert names(upper, "/work") <= {"work"}


def test_overlayfs_over_what_is_called_like_a_loop_device(arena: Arena) -> None:
    """A copy of a machine's /sys: whoever has that device is not waited for."""
    merged, file = arena.directory("merged"), arena.root / "file"
    file.write_bytes(bytes(1 << 20))
    with loops.taken(file) as device:
        lower = build(arena.root / f"copy/sys/block/{Path(device).name}", {"file": File(b"x")})
        run(arena, "--engine", "kernel", lower, ext(arena.root / "image"), merged)
        assert [line.split(": ")[0] for line in _shown_by(arena, merged)] == [str(arena.root / "image")]
        run(arena, "umount", merged)


def test_overlayfs_keeps_the_lock(arena: Arena) -> None:
    """There is no daemon: the loop device holds it."""
    lower, upper = _images(arena)
    merged, other = arena.directory("merged"), arena.directory("other")
    run(arena, "--engine", "kernel", lower, upper, merged)
    for engine in ("fuse", "kernel"):
        said = run(arena, "--engine", engine, lower, upper, other, code=4)
        assert "is in use by another mount" in said and f"at '{merged}'" in said and "/dev/loop" in said
    assert "is being written" in run(arena, "--read-only", upper, other, code=4)
    assert image("resize", upper, "40M").code == 4
    run(arena, "--engine", "kernel", "--read-only", lower, other)  # many readers
    run(arena, "umount", other)
    run(arena, "umount", merged)


def test_overlayfs_in_another_mount_namespace(arena: Arena) -> None:
    """A copy of the mount keeps the images; who unmounts here is told so, and waits for nothing."""
    lower, upper = _images(arena)
    merged = arena.directory("merged")
    run(arena, "--engine", "kernel", lower, upper, merged)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        said = run(arena, "umount", merged, code=4)
        assert "is unmounted here, but" in said and f"{other.pid} cat" in said, said
    assert loops.left_of(arena.root) == []
    fsck(upper)


def test_overlayfs_on_a_full_disk(arena: Arena) -> None:
    """There is no space for a work directory: it is shown read-only, and nothing is left when it ends."""
    lower, _ = _images(arena)
    disk, merged = arena.directory("disk"), arena.directory("merged")
    libc.mount("tmpfs", str(disk), "tmpfs", 0, "size=64k,nr_inodes=3,mode=755")
    try:
        (disk / "upper").mkdir()
        (disk / "upper/kept").touch()
        said = run(arena, "--engine", "kernel", lower, disk / "upper", merged)
        assert "mounted read-only" in said
        assert (merged / "kept").exists() and (merged / "file").exists()
        assert len(loops.of(arena.root)) == 1
        run(arena, "umount", merged)
        assert loops.of(arena.root) == []
    finally:
        libc.umount(str(disk))


def test_overlayfs_with_an_image_and_a_directory(arena: Arena) -> None:
    """Also '/', in which /sys is only the directory below the mount, and an image within a lower."""
    lower = arena.lower({"file": File(b"x"), "more/y": File(b"y")})
    upper, merged = ext(arena.root / "image"), arena.directory("merged")
    run(arena, "--engine", "kernel", lower, upper, merged)
    (merged / "more/y").write_text("changed")
    run(arena, "umount", merged)
    assert names(upper) == {"more"}
    base = squashfs(lower, arena.root / "base")
    run(arena, "--engine", "kernel", "--read-only", f"{base}:/", merged)
    assert (merged / "file").read_text() == "x" and (merged / "etc/passwd").exists()
    assert os.listdir(merged / "sys") == []
    run(arena, "umount", merged)
    run(arena, "--engine", "kernel", base, arena.upper, merged)
    (merged / "more/y").write_text("changed")
    run(arena, "umount", merged)
    assert (arena.upper / "more/y").read_text() == "changed"
    assert [path.name for path in arena.root.iterdir() if "fuseunion" in path.name] == []
    run(arena, "--engine", "kernel", "--ephemeral", base, merged)
    (merged / "more/y").write_text("forgotten")
    run(arena, "umount", merged)
    assert "cannot write to an image with --volatile" in run(
        arena, "--engine", "kernel", "--volatile", lower, upper, merged, code=5
    )


# -- what the kernel does not get --------------------------------------------------------------------------------------


@contextmanager
def _of_a_stranger(arena: Arena, file: Path) -> Iterator[Path]:
    os.chown(file, arena.actor.user.uid, arena.actor.user.gid)
    yield file
    os.chown(file, 0, 0)


@contextmanager
def _writable_for_others(arena: Arena, file: Path) -> Iterator[Path]:
    file.chmod(0o666)
    yield file
    file.chmod(0o644)


@contextmanager
def _in_a_directory_of_a_stranger(arena: Arena, file: Path) -> Iterator[Path]:
    place = arena.directory("theirs/below")
    os.chown(place.parent, arena.actor.user.uid, arena.actor.user.gid)
    yield Path(os.rename(file, place / file.name) or place / file.name)
    os.rename(place / file.name, file)


@contextmanager
def _open_to_write(arena: Arena, file: Path) -> Iterator[Path]:
    """Held since before it was root's: nothing in its owner and mode tells."""
    with open(file, "r+b"):
        yield file


@contextmanager
def _on_a_filesystem_from_elsewhere(arena: Arena, file: Path) -> Iterator[Path]:
    place = arena.directory("stick")
    libc.mount("tmpfs", str(place), "tmpfs", libc.MS_NOSUID, "mode=755")
    try:
        (place / file.name).write_bytes(file.read_bytes())
        yield place / file.name
    finally:
        libc.umount(str(place))


@contextmanager
def _served_by_a_program(arena: Arena, file: Path) -> Iterator[Path]:
    with arena.mount_read_only(arena.lower({file.name: File(file.read_bytes())}), merged="served") as served:
        yield served / file.name


OPTION, ENGINE = ("-o", "images=kernel"), ("--engine", "kernel")


@pytest.mark.parametrize(
    ("made", "says", "words"),
    [
        (_of_a_stranger, "belongs to another user", ENGINE),
        (_writable_for_others, "may be written by other users", OPTION),
        (_in_a_directory_of_a_stranger, "theirs' belongs to another user", OPTION),
        (_open_to_write, "open to write", OPTION),
        (_on_a_filesystem_from_elsewhere, "mounted nosuid", OPTION),
        (_served_by_a_program, "does not know who writes there", ENGINE),
    ],
)
def test_what_others_can_have_in_hand(
    arena: Arena, made: Callable[[Arena, Path], AbstractContextManager[Path]], says: str, words: tuple[str, ...]
) -> None:
    base = squashfs(build(arena.root / "tree", TREE), arena.root / "base.sqfs")
    with made(arena, base) as file:
        said = run(arena, *words, "--read-only", file, arena.directory("merged"), code=5)
        assert says in said and said.count("\n") == 1, said
        with arena.mount_read_only(file) as mount:
            assert loops.of(arena.root) == []
            assert len(mount.programs) == 1
            assert (mount / "file").read_text() == "of the lower"


def test_what_the_kernel_cannot_mount_is_shown_by_a_program(arena: Arena) -> None:
    """A squashfs that does not end at a sector, of which a loop device would show less."""
    tree = build(arena.root / "tree", {"file": File(b"odd")})
    base = squashfs(tree, arena.root / "odd", "-nopad")
    assert base.stat().st_size % 512
    assert "multiple of 512" in run(
        arena, "-o", "images=kernel", "--read-only", base, arena.directory("merged"), code=5
    )
    with arena.mount_read_only(base) as mount:
        assert len(mount.programs) == 1 and (mount / "file").read_text() == "odd"


def test_without_loop_devices(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs; and with them, no program is needed."""
    base, upper = _images(arena)
    monkeypatch.setattr(product_loops, "_CONTROL", str(arena.root / "missing"))
    assert succeed("ls", base).split() == ["dir", "file", "gone", "one", "other", "two"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert image("ls", base).code == 5
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    assert succeed("ls", base).split() == ["dir", "file", "gone", "one", "other", "two"]
    succeed("chown", upper, "--to", "5:6")
    succeed("unpack", upper, arena.root / "out")
    st = (arena.root / "out").stat()
    assert (st.st_uid, st.st_gid) == (5, 6)


def test_a_device_of_somebody_else_is_not_written_beside(arena: Arena) -> None:
    lower, upper = _images(arena)
    merged = arena.directory("merged")
    with loops.taken(upper) as device:
        for words in (("-o", "images=fuse"), ("-o", "images=kernel"), ("--engine", "kernel")):
            assert f"in use by {device}; unmount it" in run(arena, *words, lower, upper, merged, code=4)
        assert f"in use by {device}" in run(arena, "--read-only", upper, merged, code=4)
    with loops.taken(upper, "--read-only"), arena.mount_read_only(upper, lower) as mount:
        assert (mount / "file").read_text() == "of the lower"
    with arena.mount(lower, upper=upper) as mount:
        (mount / "new").write_text("x")


def test_a_damaged_image_is_refused_by_both(arena: Arena) -> None:
    """The kernel does not mount it, and the program that is asked then says what is wrong."""
    lower, upper = _images(arena)
    with open(upper, "r+b") as file:
        file.seek(2048)  # the descriptors of the groups, or the second half of the superblock's block
        file.write(b"\xff" * 6144)
    said = run(arena, lower, upper, arena.directory("merged"), code=3)
    assert "cannot be used" in said and said.count("\n") == 1
    assert loops.of(arena.root) == []
    assert processes.with_token(arena.place.token) == []


def test_the_doctor_says_who_would_show_it(arena: Arena) -> None:
    lower, upper = _images(arena)
    os.chown(lower, arena.actor.user.uid, arena.actor.user.gid)
    done = arena.place.fuseunion("doctor", "--json", lower, upper, arena.directory("merged"))
    says = {finding["name"]: finding["says"] for finding in json.loads(done.stdout)["findings"]}
    assert says[f"lower {lower}"].startswith("squashfs image, shown by a program, not mounted by the kernel: the file ")
    assert says[f"upper {upper}"] == "ext image, mounted by the kernel"


def test_an_image_does_not_say_what_the_kernel_does_at_an_error(arena: Arena) -> None:
    """A superblock may ask for a panic (tune2fs -e)."""
    lower, upper = _images(arena)
    subprocess.run(["tune2fs", "-e", "panic", str(upper)], check=True, capture_output=True)
    for written in (True, False):
        mount = arena.mount(lower, upper=upper) if written else arena.mount_read_only(upper, lower)
        with mount:
            (device,) = [found.split()[0] for found in loops.of(arena.root) if found.endswith(str(upper))]
            options = Path(f"/proc/fs/ext4/{device}/options").read_text().split()
            assert "errors=remount-ro" in options and ("rw" if written else "ro") in options


def test_the_machine_stops(arena: Arena) -> None:
    """A copy of the image while it is mounted is what a power cut leaves: the journal has what was synced."""
    lower, upper = _images(arena)
    after = arena.root / "after.img"
    with arena.mount(lower, upper=upper) as mount:
        with open(mount / "file", "w") as file:
            file.write("synced")
            file.flush()
            os.fsync(file.fileno())
        assert arena.place.fuseunion("sync", mount.merged).returncode == 0
        after.write_bytes(upper.read_bytes())
    assert "e2fsck -f" in run(arena, lower, after, arena.directory("merged"), code=3)
    repair(after)
    with arena.mount(lower, upper=after) as mount:
        assert (mount / "file").read_text() == "synced"
