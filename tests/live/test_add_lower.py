"""`fuseunion add-lower`: what is shown is what a new mount with that list of lowers shows, and what is open goes on."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fuseunion.cli.commands.live.lowers import add_lower
from fuseunion.engines.fuse.asking.reaching import reach
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.runtime.conversation import RefusedError
from tests.differential import recipes
from tests.differential.generator import Generator
from tests.differential.operations import Call, Operation, World
from tests.live.traffic import UNCHANGED, traffic
from tests.support import libc
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Mark, Node, Opacity, Opaque, Symlink, Whiteout, build
from tests.support.mounts import FuseunionMount, KernelMount
from tests.support.tree import assert_same, inode_faults, look, snapshot

WIRE = pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])

SEEDS = range(int(os.environ.get("FUSEUNION_SEEDS", "3")))


def add(arena: Arena, mount: FuseunionMount, lower: Path) -> None:
    done = arena.place.fuseunion("add-lower", mount.merged, lower)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def refused(arena: Arena, *arguments: str | Path) -> tuple[int, str]:
    """The exit code and the line of a command that fails."""
    done = arena.place.fuseunion("add-lower", *arguments)
    assert done.stdout == "" and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.returncode, done.stderr


def on_disk(upper: Path) -> dict[bytes, object]:
    """What is in an upper, but for the mark that says over which lowers it lies."""
    tree = snapshot(upper)
    root = tree.pop(b".")
    marks = tuple(pair for pair in root.xattrs if not pair[0].endswith("fuseunion.lowers"))
    return {**tree, b".": root._replace(xattrs=marks, ctime=0)}


OLD = {
    "same": File(b"same"),
    "replaced": File(b"old"),
    "kept": File(b"kept"),
    "hidden": File(b"hidden"),
    "d/f": File(b"d/f"),
    "d/gone": File(b"gone"),
    "d/deep/f": File(b"deep"),
    "d/deep/er/f": File(b"deeper"),
    "opaque/f": File(b"under it"),
    "u/f": File(b"u/f"),
    "u/sub/f": File(b"u/sub/f"),
    "to file/a/f": File(b"a"),
    "to directory": File(b"file"),
    "link": Symlink("a"),
    "empty": Dir(),
    "closed": Dir(mode=0o755),
    "cut/f": File(b"cut"),
}


def new(prefix: str) -> dict[str | bytes, Node]:
    """What comes on top of `OLD`."""
    return {
        "replaced": File(b"new"),
        "kept": File(b"nobody sees it"),
        "hidden": Whiteout(Mark.WH_FILE),
        "d": Dir(mode=0o750),
        "d/f": File(b"new d/f", mode=0o600),
        "d/gone": Whiteout(),
        "d/deep/er/g": File(b"another"),
        "d/added": File(b"+"),
        "opaque": Opaque(Opacity.TRUSTED if prefix == "trusted.overlay." else Opacity.USER),
        "opaque/g": File(b"over it"),
        "u/f": File(b"new u/f"),
        "u/mine": File(b"nobody sees it either"),
        "u/added/deep": File(b"+"),
        "to file": File(b"no directory"),
        "to directory/x": File(b"x"),
        "link": Symlink("b"),
        "empty/added": File(b"+"),
        "made/below": File(b"below what was made"),
        "cut": File(b"a file below a directory of the upper"),
        "added directory/f": File(b"+"),
    }


@WIRE
@pytest.mark.actors("root", "user")
def test_each_change(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden, replaced, merged, opaque, of another type; below what is the upper's; and what nobody knew of."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    old, above = arena.lower(OLD), arena.lower(new(arena.actor.xattr_prefix))
    with arena.mount(old, arguments=["--volatile"]) as mount:
        for name in ("d/added", "u/added", "empty/added", "added directory", "to directory/x", "opaque/g", "nothing"):
            assert not (mount / name).exists()
        (mount / "u/mine").write_bytes(b"mine")
        (mount / "kept").write_bytes(b"changed here")
        (mount / "made").mkdir()
        (mount / "cut/mine").write_bytes(b"mine")
        (mount / "u/sub/f").unlink()
        before = look(mount.merged)
        stays = ("same", "kept", "d", "d/deep", "d/deep/f", "opaque", "u", "u/mine", "u/sub", "made", "cut", "empty")
        numbers = {name: (mount / name).stat().st_ino for name in stays}
        kept = [os.open(mount / name, os.O_PATH) for name in numbers]  # so that the kernel forgets none
        upper = on_disk(arena.upper)
        add(arena, mount, above)
        assert on_disk(arena.upper) == upper, "nothing is written"
        now = look(mount.merged)
        expected = before | {
            "replaced": b"new",
            "d/f": b"new d/f",
            "d/deep/er/g": b"another",
            "d/added": b"+",
            "opaque/g": b"over it",
            "u/f": b"new u/f",
            "u/added": b"/",
            "u/added/deep": b"+",
            "to file": b"no directory",
            "to directory": b"/",
            "to directory/x": b"x",
            "link": b"b",
            "empty/added": b"+",
            "made/below": b"below what was made",
            "added directory": b"/",
            "added directory/f": b"+",
        }
        for name in ("hidden", "d/gone", "opaque/f", "to file/a", "to file/a/f", "cut/f"):
            del expected[name]
        assert now == expected
        assert now["kept"] == b"changed here" and now["u/mine"] == b"mine" and now["cut/mine"] == b"mine"
        assert stat.S_IMODE((mount / "d").stat().st_mode) == 0o750, "attributes of the topmost lower"
        assert {name: (mount / name).stat().st_ino for name in numbers} == numbers
        for fd in kept:
            os.close(fd)
        shown = snapshot(mount.merged)
        assert not inode_faults(mount.merged)
        said = arena.place.fuseunion("status", mount.merged).stdout
        assert said.index(f" {above}\n") < said.index(f" {old}\n"), "status lists it on top"
        said = arena.place.fuseunion("which", mount.merged, "replaced").stdout
        assert f"{above}/replaced" in said and f"{old}/replaced" in said
    with arena.mount(above, old, arguments=["--volatile"]) as mount:
        assert_same(shown, snapshot(mount.merged), "as a new mount shows it")
        assert "last mounted over" not in mount.log(), "the upper remembers what was added"
        assert look(mount.merged) == expected


@WIRE
@pytest.mark.actors("root", "user")
def test_what_is_open(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, maps, listings and working directories go on with what they were opened with."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    old = arena.lower(
        {"f": File(b"a" * 10000), "d/f": File(b"d"), "gone/s/f": File(b"g"), "w": File(b"w"), "h/f": File()}
    )
    above = arena.lower({"f": File(b"new"), "d/f": Whiteout(), "d/g": File(b"g"), "gone": File(b"x"), "w": File(b"W")})
    with arena.mount(old) as mount, ExitStack() as stack:
        file = stack.enter_context((mount / "f").open("rb", buffering=0))
        unread = stack.enter_context((mount / "gone/s/f").open("rb", buffering=0))
        written = stack.enter_context((mount / "w").open("r+b", buffering=0))
        later = stack.enter_context((mount / "w").open("r+b", buffering=0))
        shown = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        directory = os.open(mount / "d", os.O_RDONLY | os.O_DIRECTORY)
        gone = os.open(mount / "gone/s", os.O_RDONLY | os.O_DIRECTORY)
        listing = stack.enter_context(os.scandir(mount / "h"))
        assert file.read(3) == b"aaa" == shown[:3]
        written.write(b"1")
        add(arena, mount, above)
        assert (mount / "f").read_bytes() == b"new" and (mount / "gone").read_bytes() == b"x"
        assert file.read(3) == b"aaa" and os.pread(file.fileno(), 3, 9000) == b"aaa" and shown[9000:9003] == b"aaa"
        assert unread.read() == b"g" and os.fstat(unread.fileno()).st_nlink == 0
        assert os.fstat(file.fileno()).st_nlink == 0 and os.fstat(file.fileno()).st_size == 10000
        later.write(b"22")
        assert os.pread(written.fileno(), 9, 0) == b"22"
        assert (mount / "w").read_bytes() == b"22", "it was the upper's before"
        assert sorted(os.listdir(directory)) == ["g"] and os.stat("g", dir_fd=directory).st_size == 1
        assert os.listdir(gone) == [] and os.fstat(gone).st_nlink == 0
        with pytest.raises(OSError) as refusal:
            os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=gone))
        assert refusal.value.errno == errno.ENOENT
        assert [entry.name for entry in listing] == ["f"]
        shown.close()
        os.close(directory)
        os.close(gone)
        with (mount / "f").open("ab") as changed:
            changed.write(b"+")
        assert (arena.upper / "f").read_bytes() == b"new+" and file.read(3) == b"aaa"


@WIRE
@pytest.mark.actors("root", "user")
def test_a_file_without_a_name_is_written(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened a file of a lower for writing, and writes once it is hidden, writes to what nobody else sees."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    old, above = arena.lower({"f": File(b"old")}), arena.lower({"f": File(b"new")})
    with arena.mount(old) as mount, (mount / "f").open("r+b", buffering=0) as file:
        add(arena, mount, above)
        file.write(b"X")
        assert os.pread(file.fileno(), 9, 0) == b"Xld"
        assert (mount / "f").read_bytes() == b"new" and list(arena.upper.iterdir()) == []


@pytest.mark.actors("root", "user")
def test_deep_stacks_links_and_reading_alone(arena: Arena) -> None:
    """What is remembered of many lowers is forgotten; names of one file stay one; mounts without an upper too."""
    lowers = [arena.lower({f"only{number}": File(b"x"), "d/all": File(b"%d" % number)}) for number in range(5)]
    linked = arena.lower({"links/one": File(b"1"), "links/other": File(b"o")})
    os.link(linked / "links/one", linked / "links/two")
    above = arena.lower(
        {"d/all": File(b"new"), "d/added": File(b"+"), "links/two": File(b"another"), "only3": Whiteout()}
    )
    os.link(linked / "links/one", above / "links/three")  # one object in two layers
    for lower in (linked, above):
        arena.guard(lower)
    with arena.mount(*lowers, linked, arguments=["--volatile"]) as mount:
        look(mount.merged)
        assert not (mount / "d/added").exists()
        add(arena, mount, above)
        now = look(mount.merged)
        assert now["d/all"] == b"new" and now["d/added"] == b"+" and "only3" not in now and now["only4"] == b"x"
        assert [now[f"links/{name}"] for name in ("one", "two", "three")] == [b"1", b"another", b"1"]
        assert (mount / "links/one").stat().st_ino == (mount / "links/three").stat().st_ino
        with (mount / "links/three").open("ab") as file:
            file.write(b"+")
        assert (mount / "links/one").read_bytes() == b"1+" and (linked / "links/one").read_bytes() == b"1"
        now = look(mount.merged)
    with arena.mount(above, *lowers, linked, arguments=["--volatile"]) as mount:
        assert look(mount.merged) == now
        assert (mount / "links/one").stat().st_ino == (mount / "links/three").stat().st_ino
    with arena.mount_read_only(*lowers) as mount:
        look(mount.merged)
        assert not (mount / "links").exists()
        add(arena, mount, above)
        shown = look(mount.merged)
        assert "only3" not in shown and shown["only4"] == b"x" and shown["d/added"] == b"+" and shown["d/all"] == b"new"
    with arena.mount_read_only(above, *lowers) as mount:
        assert look(mount.merged) == shown


@WIRE
@pytest.mark.actors("root", "user")
def test_while_it_is_used(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that look up, list, write and rename in the same directories are not held up, and lose nothing."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    old = arena.lower({f"d{n % 5}/f{n}": File(UNCHANGED) for n in range(200)})
    additions = [arena.lower({f"d{n}/more{n}": File(b"m"), f"d4/gone{n}": Whiteout()}) for n in range(4)]
    with arena.mount(old, arguments=["--volatile"]) as mount:
        with traffic(mount, 200):
            for number, above in enumerate(additions):
                assert not (mount / f"d{number}/more{number}").exists()
                add(arena, mount, above)
                assert (mount / f"d{number}/more{number}").read_bytes() == b"m"
        written = sorted(arena.upper.glob("d*/f*"))
        assert written
        for path in written:
            assert path.read_bytes().strip(b"y") == UNCHANGED
        now = look(mount.merged)
    with arena.mount(*reversed(additions), old, arguments=["--volatile"]) as mount:
        assert look(mount.merged) == now


class Asked:
    """A conversation in which a lower is added by hand."""

    def __init__(self, mount: FuseunionMount) -> None:
        found = reach(str(mount.merged))
        assert found is not None and found[1] is not None
        self.conversation = found[1]

    def begin(self, lower: Path) -> dict[str, set[str]]:
        """Get ready; returns the names that are to be looked up again, by directory."""
        fd = os.open(lower, os.O_RDONLY | os.O_DIRECTORY)
        self.conversation.send("add-lower", fd, path=str(lower))
        os.close(fd)
        return self.names()

    def names(self) -> dict[str, set[str]]:
        """The names, until there are no more."""
        found: dict[str, set[str]] = {}
        while True:
            (record,) = self.conversation.receive() or ({},)
            if not {"ready", "done"}.isdisjoint(record):
                return found
            for name in record.get("name", ()):
                found.setdefault(record["directory"][0], set()).add(name)

    def go_on(self) -> dict[str, set[str]]:
        """Add it; returns the names that are still to be looked up again."""
        self.conversation.send("add-lower-now")
        return self.names()

    def close(self) -> None:
        """Stop, wherever it is."""
        self.conversation.__exit__(None, None, None)


def look_up(*paths: Path) -> None:
    """Have names looked up, whatever the kernel remembers of them."""
    for path in paths:
        with pytest.raises(OSError) as failure:
            os.link("/proc/self/status", path)
        assert failure.value.errno in (errno.EXDEV, errno.EEXIST)


@WIRE
@pytest.mark.actors("root", "user")
def test_step_by_step(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops half-way leaves the mount as it was; a name that is remembered is not made to lead elsewhere."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    old = arena.lower({"f": File(b"old"), "g": File(b"g"), "d/f": File(b"f"), "d/e/f": File(b"e"), "same": File()})
    above = arena.lower({"f": File(b"new"), "g": Whiteout(), "d": File(b"a file"), "added": File(b"+")})
    with arena.mount(old) as mount, ExitStack() as stack:
        before = look(mount.merged)
        assert not (mount / "added").exists()
        for _ in range(2):
            asked = Asked(mount)
            assert asked.begin(above) == {"": {"f", "g", "d", "added"}}
            asked.close()
            assert look(mount.merged) == before and not (mount / "added").exists()
        asked = Asked(mount)
        stack.callback(asked.close)
        asked.begin(above)
        other = Asked(mount)
        stack.callback(other.close)
        with pytest.raises(RefusedError, match="another lower is being added"):
            other.begin(above)
        assert asked.go_on() == {"": {"f", "g", "d", "added"}}, "the kernel remembers them"
        look_up(mount / "f", mount / "g", mount / "added")
        assert asked.go_on() == {"": {"d"}}
        assert (mount / "f").read_bytes() == b"old" and (mount / "d/f").read_bytes() == b"f"
        look_up(mount / "d")
        assert asked.go_on() == {}, "it is done"
        assert look(mount.merged) == {"f": b"new", "d": b"a file", "added": b"+", "same": b""}
        with pytest.raises(RefusedError, match="nothing is being added"):
            asked.go_on()


@pytest.mark.actors("root", "user")
def test_killed_while_adding(arena: Arena) -> None:
    """Whatever the moment, the upper is as it was, and mounts with and without the new lower."""
    old, above = arena.lower({"f": File(b"x"), "d/f": File(b"x")}), arena.lower({"f": File(b"y"), "d/f": File(b"y")})

    def begun(mount: FuseunionMount) -> None:
        asked = Asked(mount)
        asked.begin(above)
        asked.close()

    for kill_after in (begun, lambda mount: add(arena, mount, above)):
        mount = arena.mount(old, arguments=["--volatile"])
        mount.start()
        (mount / "d/mine").write_bytes(b"mine")
        look(mount.merged)
        upper = on_disk(arena.upper)
        kill_after(mount)
        mount.kill()
        assert on_disk(arena.upper) == upper
        for lowers, shown in (((old,), b"x"), ((above, old), b"y")):
            with arena.mount(*lowers, arguments=["--volatile"], tolerated="last mounted") as mount:
                assert ("last mounted over" in mount.log()) == (kill_after is not begun or lowers != (old,))
                assert look(mount.merged) == {"f": shown, "d": b"/", "d/f": shown, "d/mine": b"mine"}


@pytest.mark.actors("root", "user")
def test_refusals(arena: Arena) -> None:
    """One line, an exit code, and nothing has changed."""
    old, above = arena.lower({"f": File(b"old"), "d/f": File(b"f")}), arena.lower({"f": File(b"new")})
    image = arena.root / "image"
    image.write_bytes(b"no directory")
    with arena.mount(old) as mount:
        before = look(mount.merged)
        inside = arena.directory("upper/inside")
        for arguments, code, said in (
            ((), 2, "add-lower MERGED DIR"),
            ((mount.merged,), 2, "add-lower MERGED DIR"),
            ((old, above), 3, "nothing of yours is mounted"),
            ((mount.merged, arena.root / "none"), 3, "does not exist"),
            ((mount.merged, image), 3, "is a file"),
            ((mount.merged, old), 3, "in the mount already"),
            ((mount.merged, arena.upper), 3, "upper directory"),
            ((mount.merged, inside), 3, "lies inside"),
            ((mount.merged, arena.root), 3, "lie"),
            ((mount.merged, mount / "d"), 3, "lie in one another"),
            ((mount.merged, mount.merged), 3, "lie in one another"),
        ):
            assert (found := refused(arena, *arguments))[0] == code and said in found[1], (arguments, found)
        inside.rmdir()
        with arena.mount(above, upper=arena.root / "other upper", merged="other") as other:
            code, line = refused(arena, mount.merged, other.merged)
            assert code == 3 and "FUSE" in line
        assert look(mount.merged) == before
        add(arena, mount, above)
        assert refused(arena, mount.merged, above)[0] == 3
    with arena.mount(old, arguments=["--read-only"]) as mount:
        code, line = refused(arena, mount.merged, above)
        assert code == 3 and "read-only" in line
    if arena.actor.role.value == "root":
        with arena.mount(old) as mount:
            arena.directory("upper/d")
            libc.mount("tmpfs", str(mount / "d"), "tmpfs")
            code, line = refused(arena, mount.merged, above)
            assert code == 4 and f"'{mount / 'd'}' is mounted in" in line
            libc.umount(str(mount / "d"))


@pytest.mark.actors("root")
def test_other_filesystems(arena: Arena) -> None:
    """One that is counted below the upper's is refused where that would change numbers; else it is added."""
    old = arena.lower({"f": File(b"old"), "d/f": File(b"f")})
    tmpfs = arena.directory("tmpfs")
    libc.mount("tmpfs", str(tmpfs), "tmpfs")
    third = arena.directory("third")
    libc.mount("tmpfs", str(third), "tmpfs")
    try:
        elsewhere = build(tmpfs / "above", {"f": File(b"new"), "g": File(b"g")})
        with arena.mount(old) as mount:
            numbers = [(mount / name).stat().st_ino for name in ("d", "d/f")]
            (mount / "mine").write_bytes(b"mine")
            mine = (mount / "mine").stat().st_ino
            add(arena, mount, elsewhere)
            assert (mount / "f").read_bytes() == b"new"
            (mount / "g").chmod(0o600)
            shown = {name: (mount / name).stat().st_ino for name in ("f", "g", "mine", "d/f")}
            assert [(mount / name).stat().st_ino for name in ("d", "d/f")] == numbers and shown["mine"] == mine
            assert not inode_faults(mount.merged)
        with arena.mount(elsewhere, old) as mount:
            assert {name: (mount / name).stat().st_ino for name in shown} == shown
        with arena.mount(old, upper=third / "upper", work=third / "work") as mount:
            before = look(mount.merged)
            code, line = refused(arena, mount.merged, elsewhere)
            assert code == 3 and "filesystem of its own" in line
            assert look(mount.merged) == before
            beside = build(third / "above", {"f": File(b"third")})
            add(arena, mount, beside)
            assert (mount / "f").read_bytes() == b"third"
    finally:
        libc.umount(str(tmpfs), libc.MNT_DETACH)
        libc.umount(str(third), libc.MNT_DETACH)


def test_only_who_mounted() -> None:
    """Nobody's command gives a daemon of another user a directory."""

    class Another:
        daemon_uid = os.geteuid() + 1

    with pytest.raises(UserError, match="mounted by another user") as refusal:
        add_lower.refuse_another_user(Another(), "merged")
    assert refusal.value.exit_code is ExitCode.UNAVAILABLE


@pytest.mark.actors("root")
@pytest.mark.parametrize("engine", ["kernel", "ranch"])
def test_other_engines(arena: Arena, engine: str) -> None:
    """One line says that they cannot, and what to do."""
    old, above = arena.lower({"f": File(b"old")}), arena.lower({"f": File(b"new")})
    merged = arena.directory("merged")
    assert arena.place.fuseunion("--engine", engine, old, arena.upper, merged).returncode == 0
    code, line = refused(arena, merged, above)
    assert code == 5 and f"the {engine} engine" in line and "unmount, and mount again with it" in line
    assert arena.place.fuseunion("umount", merged).returncode == 0


DRAWN_BEFORE, DRAWN_AFTER = 40, 40


def drawn(generator: Generator, count: int, *, opens: bool) -> Iterator[Operation]:
    """Operations, drawn while they are done."""
    for _ in range(count):
        operation = generator.draw()
        with_slot = operation.call.name.startswith("FD_") or operation.call in (Call.OPEN, Call.CLOSE)
        if operation.call not in (Call.REMOUNT, Call.STATVFS) and (opens or not with_slot):
            yield operation


def contents(world: World) -> dict[int, object]:
    """What can be read through the open files."""
    found: dict[int, object] = {}
    for slot, fd in world.slots.items():
        try:
            found[slot] = os.pread(fd, 1 << 20, 0)
        except OSError as error:
            found[slot] = error.errno
    return found


@pytest.mark.actors("root")
@pytest.mark.limit(120)
@pytest.mark.parametrize("seed", SEEDS)
def test_as_the_kernel_and_a_new_mount(arena: Arena, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random layers and changes: the view is that of overlayfs with that upper; later changes are as in a new mount."""
    monkeypatch.setenv("FUSEUNION_WIRE", "0" if seed % 2 else "compare")
    number = seed
    while len(layers := recipes.layers(number, hard_links=False)) < 2:
        number += 1000
    above, *lowers = [arena.lower(layer, f"layer{index}") for index, layer in enumerate(layers)]
    store = arena.directory("store")
    since = time.time_ns() - 1_000_000_000

    def mounted(name: str, *layers: Path) -> FuseunionMount:
        return FuseunionMount(
            arena.place, layers, arena.root / name / "upper", arena.directory(f"{name} merged"),
            ["allow_other"], work=arena.root / name / "work",
        )  # fmt: skip

    with mounted("store", *lowers) as mount:
        world = World(os.fsencode(mount.merged))
        generator = Generator(seed, world.root)
        for operation in drawn(generator, DRAWN_BEFORE, opens=True):
            world.perform(operation)
        before = contents(world)
        add(arena, mount, above)
        assert contents(world) == before
        subprocess.run(["cp", "-a", store, arena.root / "kernel"], check=True)
        subprocess.run(["cp", "-a", store, arena.root / "fresh"], check=True)
        shutil.rmtree(arena.root / "kernel/work")
        now = snapshot(mount.merged)
        with KernelMount(
            [above, *lowers],
            arena.root / "kernel/upper",
            arena.directory("kernel merged"),
            arena.directory("kernel/work"),
        ) as kernel:
            assert_same(snapshot(kernel.merged), now, f"seed {seed}: overlayfs over the same layers", since=since)
        assert not inode_faults(mount.merged)
        with mounted("fresh", above, *lowers) as fresh:
            other = World(os.fsencode(fresh.merged))
            assert_same(snapshot(fresh.merged), now, f"seed {seed}: a new mount", since=since)
            for operation in drawn(generator, DRAWN_AFTER, opens=False):
                assert world.perform(operation) == other.perform(operation), (seed, operation)
            assert_same(snapshot(fresh.merged), snapshot(mount.merged), f"seed {seed}: later changes", since=since)
        world.close_all()
        now = snapshot(mount.merged)
    with mounted("store", above, *lowers) as mount:
        again = snapshot(mount.merged)
        assert_same(now, again, f"seed {seed}: mounted again")
        # A copy whose original the new lower hides (an opaque directory) has nothing that vouches for its number.
        changed = [path for path, entry in again.items() if entry.kind != "dir" and entry.ino != now[path].ino]
        own = [os.lstat(os.fsencode(store / "upper") + b"/" + path).st_ino for path in changed]
        assert [again[path].ino for path in changed] == own, f"seed {seed}: numbers of {changed}"
