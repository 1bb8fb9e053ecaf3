"""`fuseunion export`: the same bytes for the same tree, and an archive that others understand."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests.layers.commands import done, fuseunion
from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Link, Mark, Opacity, Opaque, Symlink, Whiteout, build
from tests.support.mounts import escaped
from tests.support.tree import assert_same, snapshot

NAMES = [
    ".wh.gone",
    ".wh.gone-too",
    "d",
    "d/.wh..wh..opq",
    "d/f",
    "fifo",
    "link",
    "long/" + "n" * 200,
    "long",
    "set-id",
    "twin",
    "twin2",
    "\udcff",
]


def _upper(arena: Arena) -> Path:
    root = os.geteuid() == 0
    return build(
        arena.upper,
        {
            "gone": Whiteout(Mark.DEVICE if root else Mark.XATTR_USER),
            "gone-too": Whiteout(Mark.WH_FILE),
            "d": Opaque(Opacity.TRUSTED if root else Opacity.USER, mode=0o750),
            "d/f": File(b"f" * 1000, xattrs={"user.binary": bytes(range(256))}),
            "fifo": Device(stat.S_IFIFO),
            "link": Symlink("../somewhere"),
            "long/" + "n" * 200: File(b"x"),
            "set-id": File(b"x", mode=0o4711),
            "twin": File(b"twin", size=1 << 20),
            "twin2": Link("twin"),
            b"\xff": File(b"name"),
        },
    )


def _names(archive: Path | bytes) -> list[str]:
    source = io.BytesIO(archive) if isinstance(archive, bytes) else None
    with tarfile.open(None if source else archive, fileobj=source) as tar:  # type: ignore[call-overload]
        return [member.name for member in tar]


@pytest.mark.actors("root", "user")
def test_the_same_bytes(arena: Arena) -> None:
    upper, root = _upper(arena), arena.root
    said = done("export", upper, "-o", root / "one.tar")
    data = (root / "one.tar").read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert f"digest:  {digest}\ndiff-id: {digest}\n" in said
    subprocess.run(["cp", "-a", upper, root / "copy"], check=True)
    for number, suffix in enumerate(("", ".gz", ".zst")):
        target = root / f"copy{number}.tar{suffix}"
        facts = json.loads(done("export", root / "copy", "-o", target, "--json"))
        written = target.read_bytes()
        unpacked = {"": bytes, ".gz": gzip.decompress}.get(suffix) or (
            lambda packed: zstandard.ZstdDecompressor().decompressobj().decompress(packed)
        )
        assert unpacked(written) == data
        assert facts == {
            "digest": f"sha256:{hashlib.sha256(written).hexdigest()}",
            "diff_id": digest,
            "size": len(written),
        }
        done("export", root / "copy", "-o", root / f"again{suffix}")
        assert (root / f"again{suffix}").read_bytes() == written
    assert sorted(_names(data)) == sorted(NAMES)
    # In the order of the names, directories first.
    assert _names(data) == ["d", "d/.wh..wh..opq", "d/f", "fifo", ".wh.gone", ".wh.gone-too", *NAMES[6:6],
                            "link", "long", "long/" + "n" * 200, "set-id", "twin", "twin2", "\udcff"]  # fmt: skip
    assert sorted(path.name for path in root.iterdir() if "fuseunion" in path.name) == []


@pytest.mark.actors("root", "user")
def test_gnu_tar_makes_the_same_tree(arena: Arena) -> None:
    """What tar(1) unpacks is the upper, but for the marks; with holes, and with the overlay form, those too."""
    upper, root = _upper(arena), arena.root
    for number, arguments in enumerate((["--sparse"], ["--format", "overlay"], ["--format", "overlay", "--sparse"])):
        done("export", upper, *arguments, "-o", root / "x.tar")
        target = arena.directory(f"unpacked{number}")
        subprocess.run(
            ["tar", "-xpf", root / "x.tar", "-C", target, "--xattrs", "--xattrs-include=*"],
            check=True,
            stderr=None if os.geteuid() == 0 else subprocess.DEVNULL,  # trusted.* is for root
        )
        if "--sparse" in arguments:
            assert (target / "twin").stat().st_blocks == (upper / "twin").stat().st_blocks
        assert (target / "twin").stat().st_ino == (target / "twin2").stat().st_ino
    lower = arena.lower({"gone": File(b"x"), "gone-too": File(b"x"), "d/below": File(b"x"), "kept": File(b"k")})
    with arena.mount(lower) as mount:
        expected = snapshot(mount.merged)
    with arena.mount(lower, upper=root / "unpacked1") as mount:
        assert_same(expected, snapshot(mount.merged), "unpacked by tar")


@pytest.mark.actors("root")
def test_times_and_owners(arena: Arena) -> None:
    build(arena.upper, {"a": File(b"a", uid=100_005, gid=100_006), "d": Dir(uid=100_000, gid=100_000)})
    maps = ["--uid-map", "100000:0:1000", "--gid-map", "100000:0:1000"]
    target = arena.root / "x.tar"
    done("export", arena.upper, "-o", target, *maps, "--mtime", "2026-01-31T12:00:00Z")
    with tarfile.open(target) as tar:
        assert [(each.name, each.uid, each.gid, each.mtime) for each in tar] == [
            ("a", 5, 6, 1769860800),
            ("d", 0, 0, 1769860800),
        ]
    done("import", "--upper", *maps, target, arena.root / "again")
    assert (arena.root / "again/a").stat().st_uid == 100_005
    said = fuseunion("export", arena.upper, "-o", target, "--uid-map", "100000:0:3")
    assert said.code == 3 and "the uid 100005 of 'a' is not covered by --uid-map" in said.err
    assert (arena.root / "x.tar").stat().st_size, "what was there stays"


@pytest.mark.actors("root", "user")
def test_stored_ownership(arena: Arena) -> None:
    """Owners, modes and devices that are stored beside the files are those of the archive, and come back."""
    lower = arena.lower({"x": File(b"x")})
    with arena.mount(lower, arguments=["--fakeroot"]) as mount:
        (mount / "tool").write_bytes(b"tool")
        (mount / "gone").touch()
        (mount / "x").unlink()
        os.symlink("tool", mount / "link")
        if os.geteuid() == 0:
            os.mknod(mount / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    archive = arena.root / "x.tar"
    done("export", arena.upper, "-o", archive)
    assert not [path for path in arena.root.iterdir() if path.name.startswith(".") and not any(path.iterdir())]
    with tarfile.open(archive) as tar:
        members = {each.name: each for each in tar}
    assert not [key for member in members.values() for key in member.pax_headers if "override" in key]
    if os.geteuid() == 0:
        assert members["null"].ischr() and members["null"].devminor == 3
    done("import", "--upper", "--fakeroot", archive, arena.root / "again")
    done("export", arena.root / "again", "-o", arena.root / "again.tar")
    assert (arena.root / "again.tar").read_bytes() == archive.read_bytes()


@pytest.mark.actors("user")
def test_closed_files(arena: Arena) -> None:
    """What its owner closed is read all the same, and stays closed."""
    build(arena.upper, {"d/secret": File(b"x", mode=0), "d": Dir(mode=0), "e": Dir(mode=0o500), "e/f": File(b"f")})
    done("export", arena.upper, "-o", arena.root / "x.tar")
    assert _names(arena.root / "x.tar") == ["d", "d/secret", "e", "e/f"]
    assert stat.S_IMODE((arena.upper / "d").stat().st_mode) == 0
    done("import", arena.root / "x.tar", arena.root / "again")
    assert stat.S_IMODE((arena.root / "again/d").stat().st_mode) == 0
    for path in ("upper/d", "again/d"):
        (arena.root / path).chmod(0o700)
    assert stat.S_IMODE((arena.root / "again/d/secret").stat().st_mode) == 0


@pytest.mark.actors("root", "user")
def test_what_has_its_data_below(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"data"), "d/x": File(b"x")})
    with arena.mount(lower, options=["metacopy=on", "redirect_dir=on"]) as mount:
        os.chmod(mount / "f", 0o600)
        os.rename(mount / "d", mount / "e")
    target = arena.root / "x.tar"
    said = fuseunion("export", arena.upper, "-o", target)
    assert said.code == 3 and "--lower" in said.err and not target.exists()
    done("export", arena.upper, "--lower", escaped(lower), "-o", target)
    with tarfile.open(target) as tar:
        assert {each.name: each.size for each in tar} == {
            ".wh.d": 0,
            "e": 0,
            "e/.wh..wh..opq": 0,
            "e/x": 1,
            "f": 4,
        }


@pytest.mark.actors("root", "user")
def test_hard_links_of_a_lower(arena: Arena) -> None:
    """A name that nobody has looked up since the file was changed under another one is in the layer too."""
    lower = arena.lower({"d/one": File(b"old"), "two": Link("d/one"), "e/three": Link("d/one")})
    with arena.mount(lower) as mount:
        (mount / "two").write_bytes(b"new")
    index = arena.root / ".upper.fuseunion-work/links"
    (index / "dirty").touch()  # as a mount leaves it that was killed
    before = snapshot(index)
    done("export", arena.upper, "-o", arena.root / "x.tar")
    done("diff", arena.upper)
    assert_same(before, snapshot(index), "the index, by a command that does not know the lowers")
    (index / "dirty").unlink()
    said = fuseunion("import", "--add", arena.root / "x.tar", arena.upper)
    assert said.code == 3 and "has a hard-link index" in said.err
    (arena.root / ".upper.fuseunion-unfinished").unlink()
    said = fuseunion("export", arena.upper, "--lower", escaped(lower), "-o", arena.root / "x.tar")
    assert (said.code, said.err) == (0, "")
    done("import", "--upper", arena.root / "x.tar", arena.root / "again")
    with arena.mount(lower, upper=arena.root / "again") as mount:
        assert [(mount / name).read_bytes() for name in ("two", "d/one", "e/three")] == [b"new"] * 3
        assert (mount / "two").stat().st_nlink == 3


@pytest.mark.actors("user")
def test_refusals(arena: Arena) -> None:
    lower, upper = arena.lower({"a": File(b"a")}), arena.upper
    target = arena.root / "x.tar"
    with arena.mount(lower):
        for command in (
            ["export", upper, "-o", target],
            ["commit", escaped(lower), upper, arena.root / "new"],
            ["apply", upper, lower],
            ["import", "--add", target, upper],
        ):
            said = fuseunion(*command)
            assert (said.code, len(said.err.splitlines())) == (3 if command[0] == "import" else 4, 1), said
    with arena.mount(arena.lower({"a": File(b"a")}), upper=arena.root / "other", merged="second"):
        for command in (["apply", upper, arena.root / "lower1"], ["import", "--add", "-", arena.root / "lower1"]):
            said = fuseunion(*command)
            assert said.code == 4 and "is shown by the mount at" in said.err
    assert not target.exists() and not (arena.root / "new").exists()


@pytest.mark.actors("user")
def test_an_upper_beside_which_nothing_can_be_made(arena: Arena) -> None:
    """It is read as it lies there, unless somebody has it mounted."""
    lower, inside = arena.lower({"a": File(b"a")}), arena.directory("inside")
    upper = build(inside / "upper", {"f": File(b"x")})
    target = arena.root / "x.tar"
    with arena.mount(lower, upper=upper, work=arena.directory("work")):
        inside.chmod(0o500)
        said = fuseunion("export", upper, "-o", target)
        assert said.code == 4 and "in use by another live fuseunion mount" in said.err
        assert done("diff", upper) == "P f  (file, 1 B)\n"
        inside.chmod(0o700)
    inside.chmod(0o500)
    done("export", upper, "-o", target)
    assert _names(target) == ["f"]
    inside.chmod(0o700)


@pytest.mark.actors("user")
def test_what_an_archive_cannot_hold(arena: Arena) -> None:
    build(arena.upper, {"socket": Device(stat.S_IFSOCK), "f": File(b"x", xattrs={"user.overlay.overlay.opaque": b"y"})})
    said = fuseunion("export", arena.upper, "-o", arena.root / "x.tar")
    assert said.code == 0
    assert said.err.splitlines() == [
        "fuseunion: warning: 'f': the attribute user.overlay.opaque is left out: the archive has no place for it",
        "fuseunion: warning: 'socket': a socket is left out: the archive has no place for it",
    ]
    assert _names(arena.root / "x.tar") == ["f"]


@pytest.mark.actors("root", "user")
def test_marks_that_cannot_be_understood(arena: Arena) -> None:
    """One line names the object; nothing is left of an archive."""
    prefix = arena.actor.xattr_prefix
    lower = arena.lower({"d/x": File(b"x")})
    build(arena.upper, {"d": Dir(xattrs={f"{prefix}redirect": b"../../etc"}), "f": File(b"")})
    for command in (
        ["export", arena.upper, "--lower", escaped(lower), "-o", arena.root / "x.tar"],
        ["commit", escaped(lower), arena.upper, arena.root / "new"],
        ["diff", arena.upper, "--lower", escaped(lower)],
    ):
        said = fuseunion(*command)
        assert (said.code, said.out) == (3, "") and f"the marks on '{arena.upper}/d'" in said.err
        assert len(said.err.splitlines()) == 1
    assert sorted(path.name for path in arena.root.iterdir()) == ["logs", "lower0", "upper"]


@pytest.mark.actors("user")
@pytest.mark.parametrize("chosen", ["oci", "oci-archive"])
def test_half_an_archive_is_a_failure(arena: Arena, chosen: str) -> None:
    """Whoever reads it may have died; nobody has read enough of it."""
    _upper(arena)
    ours, theirs = os.pipe()
    os.close(ours)
    said = subprocess.run(
        arena.place.interpreter.command("export", "--format", chosen, str(arena.upper)),
        env=arena.place.environment(),
        cwd="/",
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert said.returncode == 1
    assert said.stderr == "fuseunion: the standard output was closed before the archive was complete\n"
