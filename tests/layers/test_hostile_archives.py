"""Archives that somebody made to do harm: nothing outside the directory is touched, and nothing of them stays."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest
import zstandard

from tests.layers.commands import done, fuseunion
from tests.support.arena import Arena
from tests.support.layers import File, Link, Symlink, build
from tests.support.tree import snapshot, xattrs

Member = tuple[str, bytes, str]
"""Name, type, and the target of a link or the content."""

FILE, DIR, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def info(name: str, kind: bytes = FILE, target: str = "", **pax: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.mode = kind, 0o755 if kind == DIR else 0o644
    data = target.encode() if kind == FILE else b""
    member.size = len(data)
    if kind in (LINK, HARD):
        member.linkname = target
    member.uid, member.gid = os.geteuid(), os.getegid()
    member.pax_headers = pax
    return member, data


def archive(path: Path, members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return path


REFUSED: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "dot-dot": [info("../outside/secret", target="x")],
    "dot-dot inside": [info("d/../../outside/secret", target="x")],
    "over a link": [info("d", LINK, "../outside"), info("d/secret", target="x")],
    "over an absolute link": [info("d", LINK, "/etc"), info("d/secret", target="x")],
    "over a link to a link": [info("e", LINK, "../outside"), info("d", LINK, "e"), info("d/secret", target="x")],
    "hard link out": [info("d", HARD, "../outside/secret")],
    "hard link to the machine": [info("d", HARD, "/etc/passwd")],
    "hard link over a link": [info("d", LINK, "../outside"), info("x", HARD, "d/secret")],
    "hard link to a directory": [info("d", DIR), info("x", HARD, "d")],
    "whiteout of dot-dot": [info("d", DIR), info("d/.wh...", target="")],
    "whiteout of a whiteout": [info(".wh..wh.x/y", target="z"), info(".wh..wh.", target=""), info("..", DIR)],
    "a directory that is a mark": [info(".wh.x", DIR), info(".wh.x/y", target="x")],
    "unknown type": [info("x", b"Z")],
    "root that is a file": [info(".", FILE, "x")],
    "impossible owner": [(lambda pair: (setattr(pair[0], "uid", 1 << 40), pair)[1])(info("x", FILE, "y"))],
}


@pytest.mark.actors("root", "user")
def test_refused_and_undone(arena: Arena) -> None:
    outside = arena.directory("outside")
    (outside / "secret").write_text("secret")
    before = snapshot(outside)
    for name, members in REFUSED.items():
        source = archive(arena.root / "a.tar", [info("first", target="content"), *members])
        for arguments in ([], ["--upper"]):
            said = fuseunion("import", *arguments, source, arena.root / "made")
            assert said.code == 3 and len(said.err.splitlines()) == 1, (name, said)
            assert snapshot(outside) == before, name
            assert sorted(path.name for path in arena.root.iterdir()) == ["a.tar", "logs", "outside"], name


@pytest.mark.actors("root", "user")
def test_what_is_there_already_is_not_undone(arena: Arena) -> None:
    """A directory that was not empty keeps what came, and says so."""
    made = arena.directory("made")
    (made / "mine").touch()
    source = archive(arena.root / "a.tar", [info("first", target="x"), info("../x", target="x")])
    assert "is not empty" in fuseunion("import", source, made).err
    said = fuseunion("import", "--add", source, made)
    assert said.code == 3 and "is incomplete now" in said.err
    assert sorted(path.name for path in made.iterdir()) == ["first", "mine"]
    for command in (["import", "--add", source, made], ["diff", made], ["export", made, "-o", arena.root / "x.tar"]):
        said = fuseunion(*command)
        assert said.code == 3 and "is incomplete: what filled it was cut off" in said.err
    (arena.root / ".made.fuseunion-unfinished").unlink()
    assert fuseunion("diff", made).code == 0


def _cut(data: bytes) -> bytes:
    return data[:1300] if data.startswith(b"a\0") else data[: len(data) // 2]


def _damaged(data: bytes) -> bytes:
    """Without the checksum of the second header."""
    return data[:1024] + b"x" * 512 + data[1536:]


def _without_end(data: bytes) -> bytes:
    return data.rstrip(b"\0")[: 512 * (len(data.rstrip(b"\0")) // 512)]


@pytest.mark.parametrize("harm", [_cut, _damaged, _without_end], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("compressed", ["", ".gz", ".zst"])
@pytest.mark.actors("user")
def test_damaged(arena: Arena, harm: Callable[[bytes], bytes], compressed: str) -> None:
    source = archive(arena.root / "a.tar", [info("a", target="x" * 512), info("b", target="y" * 512)])
    data = harm(source.read_bytes())
    if compressed == ".gz":
        data = gzip.compress(data)
    elif compressed == ".zst":
        data = zstandard.compress(data)
    source.write_bytes(data)
    said = fuseunion("import", source, arena.root / "made")
    assert said.code == 3 and not (arena.root / "made").exists(), said


@pytest.mark.parametrize("compressed", [".gz", ".zst"])
@pytest.mark.actors("user")
def test_a_compressed_stream_that_is_cut_off(arena: Arena, compressed: str) -> None:
    upper = arena.directory("upper")
    (upper / "x").write_bytes(os.urandom(1 << 16))
    source = arena.root / f"a.tar{compressed}"
    done("export", upper, "-o", source)
    source.write_bytes(_cut(source.read_bytes()))
    said = fuseunion("import", source, arena.root / "made")
    assert said.code == 3 and not (arena.root / "made").exists(), said


@pytest.mark.actors("user")
def test_bombs(arena: Arena) -> None:
    """What a few bytes stand for is not made, where there is a limit."""
    zeros = arena.root / "zeros.tar.gz"
    with gzip.open(zeros, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        member, _ = info("zeros")
        member.size = 1 << 26
        tar.addfile(member, io.BytesIO(bytes(1 << 26)))
    many = archive(arena.root / "many.tar", [info(f"f{number}") for number in range(50)])
    made = arena.root / "made"
    said = fuseunion("import", "--limit", "1m", zeros, made)
    assert said.code == 3 and "--limit" in said.err and not made.exists()
    said = fuseunion("import", "--max-entries", "20", many, made)
    assert said.code == 3 and "--max-entries 20" in said.err and not made.exists()
    done("import", "--limit", "64m", zeros, made)
    assert (made / "zeros").stat().st_blocks == 0


@pytest.mark.parametrize(
    "pax",
    [
        {"SCHILY.xattr.user.x": "1" * (1 << 21)},
        {"comment": "1" * 100_000},
        {"size": "-5"},
        {"mtime": "nan"},
        {"mtime": "1e999"},
        {"GNU.sparse.map": "0,5,3,9", "GNU.sparse.size": "4"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "4", "size": "-5"},
    ],
    ids=lambda pax: next(iter(pax)),
)
@pytest.mark.actors("user")
def test_headers_that_are_none(arena: Arena, pax: dict[str, str]) -> None:
    source = archive(arena.root / "a.tar", [info("a", target="x" * 600, **pax)])
    said = fuseunion("import", source, arena.root / "made")
    assert said.code == 3 and not (arena.root / "made").exists(), said


@pytest.mark.actors("user")
def test_a_sparse_file_has_no_more_than_its_member(arena: Arena) -> None:
    """Else what follows it in the archive would be its data."""
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a", "GNU.sparse.realsize": "9000"}
    for size, code in ((3, 0), (600, 3)):
        member = info("GNUSparseFile.0/a", target=f"1\n7000\n{size}\n".ljust(512, "\0") + "abc", **pax)
        said = fuseunion("import", archive(arena.root / "a.tar", [member, info("b")]), arena.root / f"made{size}")
        assert said.code == code, said
    assert (arena.root / "made3/a").read_bytes() == bytes(7000) + b"abc" + bytes(1997)
    assert "impossible holes" in said.err and not (arena.root / "made600").exists()


@pytest.mark.actors("user")
def test_attributes_that_cannot_be(arena: Arena) -> None:
    """Names and values that Linux has none of are left out, and told."""
    values = {"": "v", "user.": "v", "nonsense": "v", f"user.{'a' * 300}": "v", "user.b": "v" * 70_000}
    pax = {f"SCHILY.xattr.{name}": value for name, value in values.items()} | {"SCHILY.xattr.user.good": "v"}
    source = archive(arena.root / "a.tar", [info("x", target="y", **pax)])
    said = fuseunion("import", source, arena.root / "made")
    assert said.code == 0 and said.out == "imported 1 entry of 1 layer\n"
    assert all(f"the attribute {name} could not be kept" in said.err for name in values if name != "")
    assert os.listxattr(arena.root / "made/x") == ["user.good"]


@pytest.mark.actors("root", "user")
def test_marks_mean_nothing(arena: Arena) -> None:
    """Attributes and devices that are marks of overlays are a user's, or left out; .wh. files alone hide."""
    marks = {
        f"SCHILY.xattr.{prefix}.overlay.{name}": value
        for prefix in ("user", "trusted")
        for name, value in (("opaque", "y"), ("redirect", "/secret"), ("metacopy", ""), ("whiteout", "y"))
    }
    stored = {
        "SCHILY.xattr.user.containers.override_stat": "0:0:0104755",
        "SCHILY.xattr.user.fuseoverlayfs.opaque": "y",
    }
    device, _ = info("gone", tarfile.CHRTYPE)
    members = [info(".", DIR, **stored), info("d", DIR, **marks), info("f", FILE, "", **marks), (device, b"")]
    source = archive(arena.root / "a.tar", members)
    said = fuseunion("import", "--upper", source, arena.upper)
    assert said.code == 0 and "'gone' is a device" in said.err
    lower = arena.lower({"d/below": _file(), "f": _file(), "gone": _file(), "secret/x": _file()})
    for path in (arena.upper, arena.upper / "d", arena.upper / "f"):
        names = [name for name, _ in xattrs(os.fsencode(path))]
        assert not {f"{prefix}.overlay.{mark}" for prefix in ("user", "trusted") for mark in ("opaque", "redirect")} & {
            *names
        }
        assert "user.fuseoverlayfs.opaque" not in names and (
            path != arena.upper or "user.containers.override_stat" not in names
        )
    with arena.mount(lower) as mount:
        assert sorted(os.listdir(mount.merged)) == ["d", "f", "gone", "secret"]
        assert os.listdir(mount / "d") == ["below"]
        assert (mount / "f").stat().st_size == 0
        assert os.getxattr(mount / "d", "user.overlay.opaque") == b"y"


def _file() -> File:
    return File(b"lower")


def _fuzz(root: Path, rounds: int, seed: int) -> None:
    random = Random(seed)
    upper = build(
        root / "upper",
        {
            "d/f": File(b"f" * 700, xattrs={"user.x": b"\0\xff"}),
            "d/" + "n" * 150: File(b"x", size=1 << 20),
            "link": Symlink("d/f"),
            "hard": Link("d/f"),
            ".wh.gone": File(b""),
        },
    )
    made = []
    for arguments in ([], ["--sparse"]):
        done("export", upper, *arguments, "-o", root / "a.tar")
        made.append((root / "a.tar").read_bytes())
    done("export", upper, "--format", "oci-archive", "-o", root / "a.tar")
    made.append((root / "a.tar").read_bytes())
    before = snapshot(root / "upper")
    for _ in range(rounds):
        data = bytearray(random.choice(made))
        for _ in range(random.randint(1, 8)):
            at = random.randrange(len(data))
            match random.randrange(4):
                case 0:
                    data[at] = random.randrange(256)
                case 1:
                    del data[at : at + random.choice((1, 512, 5000))]
                case 2:
                    data[at:at] = data[: random.choice((1, 512, 1024))]
                case 3:
                    block = at - at % 512
                    data[block + 156 : block + 157] = random.choice((b"0", b"1", b"2", b"5", b"x", b"g", b"L", b"S"))
                    _fix_checksum(data, block)
            data = data or bytearray(1)
        (root / "a.tar").write_bytes(data)
        said = fuseunion("import", root / "a.tar", root / "made")
        assert said.code in (0, 1, 3), said
        assert (root / "made").exists() == (said.code == 0)
        if said.code == 0:
            remove_tree(root / "made")
    assert snapshot(root / "upper") == before
    assert sorted(path.name for path in root.iterdir()) == ["a.tar", "upper"]


def _fix_checksum(data: bytearray, block: int) -> None:
    header = bytes(data[block : block + 512])
    total = sum(header[:148]) + sum(header[156:]) + 8 * 32
    data[block + 148 : block + 156] = b"%06o\0 " % total


def remove_tree(path: Path) -> None:
    subprocess.run(["rm", "-rf", path], check=True)


def test_damaged_at_random() -> None:
    """Whatever the bytes are: done, or refused and undone, with one line."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        _fuzz(Path(root), 60, seed=1)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(2, 12))
def test_damaged_at_random_for_long(seed: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as root:
        _fuzz(Path(root), 1000, seed)
