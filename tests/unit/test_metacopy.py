"""metacopy=on: what changes no data copies none; who looks, and who writes afterwards, cannot tell."""

from __future__ import annotations

import errno
import os
import random
import stat
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.file import File
from fuseunion.linux import syscalls
from tests.support import libc
from tests.support.inprocess import InProcess, in_process
from tests.support.mounts import KernelMount

ROOT = os.geteuid() == 0
PREFIX = "trusted.overlay." if ROOT else "user.overlay."
MARK = PREFIX + "metacopy"
OPTIONS = ("metacopy=on", "redirect_dir=on", "index=off")
SIZE = 300_000
DATA = bytes(range(256)) * (SIZE // 256 + 1)
CHANGES = {
    "chmod": Change(mode=0o600),
    "utime": Change(mtime_ns=10**9, atime_ns=10**9),
    "touch": Change(touch=True),
    **({"chown": Change(uid=7, gid=8)} if ROOT else {}),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    if ROOT and os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("root believes nothing that lies on a filesystem mounted nosuid (the last test here)")
    for name in ("top/d", "low/d", "upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("low/big", "low/d/big", "low/d/other", "top/d/top"):
        (tmp_path / name).write_bytes(DATA[:SIZE])
        (tmp_path / name).chmod(0o644)
        os.setxattr(tmp_path / name, "user.kept", name.encode())
    return tmp_path


def _opened(base: Path, *, metacopy: bool = True, redirect_dir: bool = False) -> AbstractContextManager[InProcess]:
    lowers = [base / "top", base / "low"]
    return in_process(lowers, base / "upper", base / "work", metacopy=metacopy, redirect_dir=redirect_dir)


def _kernel(base: Path) -> KernelMount:
    return KernelMount([base / "top", base / "low"], base / "upper", base / "merged", options=OPTIONS)


def _is_hollow(path: Path) -> bool:
    marked = MARK in os.listxattr(path)
    assert not marked or path.stat().st_blocks <= 16, "data was copied"
    return marked


@pytest.mark.parametrize("change", CHANGES)
def test_no_data_is_copied(base: Path, change: str) -> None:
    """The upper gets a file without blocks; all that is seen is what a copy-up with data shows."""
    with _opened(base) as union:
        before = union.find("/d/big").ino
        blocks = union.union.stat(union.find("/d/big"))[0].st_blocks
        union.setattr("/d/big", CHANGES[change])
        assert _is_hollow(base / "upper/d/big")
        union.setattr("/d/big", Change(mode=0o640))
        assert _is_hollow(base / "upper/d/big")
        shown = union.tree()["/d/big"]
        assert (union.find("/d/big").ino, union.read("/d/big")) == (before, DATA[:SIZE])
        assert union.union.stat(union.find("/d/big"))[0].st_blocks == blocks
    for metacopy in (True, False) if ROOT or change != "chown" else (True,):
        with _opened(base, metacopy=metacopy) as union:
            assert union.tree()["/d/big"] == shown
            assert union.find("/d/big").ino == before
            assert union.union.stat(union.find("/d/big"))[0].st_blocks == blocks
    (base / "plain").mkdir()
    with in_process([base / "top", base / "low"], base / "plain", base / "work") as union:
        union.setattr("/d/big", CHANGES[change])
        union.setattr("/d/big", Change(mode=0o640))
        assert union.tree()["/d/big"] == shown


def test_what_is_copied_whole_all_the_same(base: Path) -> None:
    """Nothing to copy; set-id bits; several names; and what is not asked for."""
    (base / "low/empty").touch()
    os.link(base / "low/big", base / "low/big2")
    with _opened(base) as union:
        union.setattr("/empty", Change(mode=0o600))
        union.setattr("/big", Change(mode=0o600))
        union.setattr("/d/big", Change(mode=0o4755))
        assert union.read("/big2") == DATA[:SIZE]
    with _opened(base, metacopy=False) as union:
        union.setattr("/d/other", Change(mode=0o600))
    for name in ("empty", "big", "d/big", "d/other"):
        assert not _is_hollow(base / "upper" / name)
    assert (base / "upper/d/big").read_bytes() == DATA[:SIZE]


@pytest.mark.parametrize("metacopy", [True, False])
@pytest.mark.parametrize(
    "how", ["write", "setxattr", "link", "rename", "shorter", "empty", "longer", "set-id", "moved"]
)
def test_the_data_comes_when_it_is_needed(base: Path, how: str, *, metacopy: bool) -> None:
    """And nothing else is another; a handle that was open reads what was written."""
    with _opened(base) as union:
        union.setattr("/d/big", Change(mode=0o440, mtime_ns=5 * 10**9))
    expected, place = DATA[:SIZE], "/d/big"
    with _opened(base, metacopy=metacopy) as union:
        ino = union.find("/d/big").ino
        file = union.find("/d/big")
        assert isinstance(file, File)
        handle = union.union.open(file, os.O_RDONLY)
        match how:
            case "write":
                union.write("/d/big", b"new", 5)
                expected = DATA[:5] + b"new" + DATA[8:SIZE]
            case "setxattr":
                union.setxattr("/d/big", b"user.more", b"x")
            case "link":
                union.link("/d/big", "/second")
            case "rename":
                union.rename("/d/big", "/second")
                place = "/second"
            case "set-id":
                union.setattr("/d/big", Change(mode=0o6750))
            case "moved":
                union.rename("/d", "/e")
                place = "/e/big"
            case _:
                size = {"shorter": 1000, "empty": 0, "longer": SIZE + 5000}[how]
                union.setattr("/d/big", Change(size=size))
                expected = (DATA[:SIZE] + bytes(5000))[:size]
        assert os.pread(handle.fd, 2 * SIZE, 0) == expected == union.read(place)
        st = union.union.stat(union.find(place))[0]
        if how not in ("write", "shorter", "empty", "longer"):
            assert st.st_mtime_ns == 5 * 10**9
        else:
            assert st.st_mtime_ns > 10**18
        assert stat.S_IMODE(st.st_mode) == (0o6750 if how == "set-id" else 0o440)
        assert union.union.getxattr(union.find(place), b"user.kept") == b"low/d/big"
        union.union.release_file(handle)
        shown = union.tree()
    path = base / f"upper{place}"
    assert not _is_hollow(path) and path.read_bytes() == expected
    with _opened(base, metacopy=False) as union:
        assert union.tree() == shown and union.find(place).ino == ino
        union.forget()
        assert union.union.state.table.size == 1


def test_a_file_without_a_name_gets_its_data_too(base: Path) -> None:
    """Deleted while it is open, then written; and read by who opens it anew through its descriptor."""
    with _opened(base) as union:
        union.setattr("/d/big", Change(mode=0o600))
        file = union.find("/d/big")
        assert isinstance(file, File)
        handle = union.union.open(file, os.O_RDWR)
        union.unlink("/d/big")
        again = union.union.open(file, os.O_RDONLY)
        assert os.pread(again.fd, SIZE, 0) == DATA[:SIZE]
        assert union.copy(file)
        union.union.write(handle, b"new", 0)
        assert os.pread(again.fd, SIZE, 0) == b"new" + DATA[3:SIZE]
        assert union.union.stat(file)[1] == 0
        for one in (handle, again):
            union.union.release_file(one)
        union.forget()
        assert union.union.state.table.size == 1
    assert os.listdir(base / "upper/d") == ["big"] and (base / "upper/d/big").is_char_device()


def test_data_that_was_exchanged(base: Path) -> None:
    """Another file in the place of the data is not read under the old one's name; who looks again finds it."""
    with _opened(base) as union:
        union.setattr("/d/big", Change(mode=0o640))
        file = union.find("/d/big")
        assert isinstance(file, File)
        (base / "low/d/big").rename(base / "low/d/aside")
        (base / "low/d/big").write_bytes(b"another")
        with pytest.raises(OSError, match="Stale"):
            union.union.open(file, os.O_RDONLY)
        assert union.read("/d/big") == b"another"


def test_a_full_disk_leaves_the_file_as_it_was(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with _opened(base) as union:
        union.setattr("/d/big", Change(mode=0o640))
        before = union.tree()
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            union.write("/d/big", b"new")
        assert union.tree() == before and _is_hollow(base / "upper/d/big")
        monkeypatch.undo()
        union.write("/d/big", b"new")
        assert union.read("/d/big") == b"new" + DATA[3:SIZE]


@pytest.mark.parametrize("copied", [False, True])
def test_who_has_it_open_can_rely_on_fsync(base: Path, monkeypatch: pytest.MonkeyPatch, *, copied: bool) -> None:
    """fsync(2) goes to the data, so the attributes are on disk before that."""
    synced: list[os.stat_result] = []
    with _opened(base) as union:
        if copied:
            union.setattr("/d/big", Change(mode=0o600))
        file = union.find("/d/big")
        assert isinstance(file, File)
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd)))
        union.setattr("/d/other", Change(mode=0o640))
        assert not synced
        handle = union.union.open(file, os.O_RDONLY)
        union.setattr("/d/big", Change(mode=0o640))
        union.union.release_file(handle)
    assert [(st.st_ino, stat.S_IMODE(st.st_mode)) for st in synced] == [((base / "upper/d/big").stat().st_ino, 0o640)]


def test_with_redirects(base: Path) -> None:
    """A directory that is renamed by a redirect takes its files without data along."""
    with _opened(base, redirect_dir=True) as union:
        union.setattr("/d/big", Change(mode=0o640))
        union.rename("/d", "/e")
        assert union.read("/e/big") == DATA[:SIZE]
    assert _is_hollow(base / "upper/e/big")
    with _opened(base, redirect_dir=True) as union:
        assert union.read("/e/big") == DATA[:SIZE]
        union.write("/e/big", b"x")
        assert union.read("/e/big") == b"x" + DATA[1:SIZE]


# -- the kernel's overlayfs -------------------------------------------------------------------------------------------


def _seen(root: Path) -> dict[str, tuple[object, ...]]:
    seen = {}
    for path in sorted(root.rglob("*")):
        if os.path.lexists(path) and path.is_file():
            st = path.stat()
            facts = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_nlink, path.read_bytes())
            seen[f"/{path.relative_to(root)}"] = facts
    return seen


def _seen_by_us(union: InProcess) -> dict[str, tuple[object, ...]]:
    seen = {}
    for path in union.tree():
        inode = union.find(path)
        if isinstance(inode, File):
            st, nlink = union.union.stat(inode)
            seen[path] = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, nlink, union.read(path))
    return seen


@pytest.mark.skipif(not ROOT, reason="mounts overlayfs")
def test_the_kernel_reads_what_we_wrote(base: Path) -> None:
    with _opened(base, redirect_dir=True) as union:
        for path in ("/big", "/d/big", "/d/other", "/d/top"):
            union.setattr(path, Change(mode=0o640, uid=5))
        union.write("/d/other", b"filled")
        union.rename("/d", "/e")
        expected = _seen_by_us(union)
    assert _is_hollow(base / "upper/e/top") and not _is_hollow(base / "upper/e/other")
    with _kernel(base) as kernel:
        assert _seen(kernel.merged) == expected
        with open(kernel / "e/big", "r+b") as file:
            file.write(b"by the kernel")
    with _opened(base) as union:
        assert union.read("/e/big") == b"by the kernel" + DATA[13:SIZE]


@pytest.mark.skipif(not ROOT, reason="mounts overlayfs")
@pytest.mark.parametrize("as_lower", [False, True])
def test_we_read_what_the_kernel_wrote(base: Path, *, as_lower: bool) -> None:
    """In the upper, and once that is a lower: files that were renamed, moved and linked; a directory that was moved."""
    with _kernel(base) as kernel:
        (kernel / "big").chmod(0o600)
        (kernel / "big").rename(kernel / "d/moved")
        (kernel / "d/big").rename(kernel / "d/renamed")
        os.chown(kernel / "d/other", 5, 6)
        os.link(kernel / "d/other", kernel / "linked")
        (kernel / "d/top").chmod(0o4711)
        (kernel / "d").rename(kernel / "e")
        expected = _seen(kernel.merged)
    marked = [path for path in (base / "upper").rglob("*") if path.is_file() and _is_hollow(path)]
    assert len(marked) == 5
    if as_lower:
        os.rename(base / "upper", base / "layer")
        (base / "upper").mkdir()
        lowers = [base / "layer", base / "top", base / "low"]
    else:
        lowers = [base / "top", base / "low"]
    with in_process(lowers, base / "upper", base / "work") as union:
        assert _seen_by_us(union) == expected
        for path in ("/e/moved", "/e/renamed", "/linked", "/e/top"):
            union.write(path, b"new", 7)
            assert union.read(path) == DATA[:7] + b"new" + DATA[10:SIZE]
        assert union.read("/e/other") == union.read("/linked")
        assert stat.S_IMODE(union.union.stat(union.find("/e/top"))[0].st_mode) == 0o4711
        expected = _seen_by_us(union)
    with in_process(lowers, base / "upper", base / "work") as union:
        assert _seen_by_us(union) == expected


@pytest.mark.parametrize("seed", range(12))
def test_at_random(base: Path, seed: int) -> None:
    """chmod, utime, write, truncate, rename, unlink, link, by us and, as root, by the kernel in turn, as in a plain
    directory."""
    rng = random.Random(seed)
    model = {path: [DATA[:SIZE], 0o644] for path in ("/big", "/d/big", "/d/other", "/d/top")}
    hollow = 0

    def change(do: InProcess | Path) -> None:
        path = rng.choice(sorted(model))
        what = (
            "chmod" if not hollow else rng.choice(["chmod", "chmod", "utime", "write", "truncate", "rename", "unlink"])
        )
        size, mode, new = rng.randrange(SIZE + 999), rng.choice([0o600, 0o644, 0o755]), f"/d/{rng.randrange(6)}"
        ours, there = isinstance(do, InProcess), Path(str(do)) / path[1:]
        if what == "chmod":
            do.setattr(path, Change(mode=mode)) if isinstance(do, InProcess) else there.chmod(mode)
            model[path][1] = mode
        elif what == "utime":
            do.setattr(path, Change(mtime_ns=size)) if isinstance(do, InProcess) else os.utime(there, ns=(size, size))
        elif what == "write":
            if isinstance(do, InProcess):
                do.write(path, b"w", 3)
            else:
                fd = os.open(there, os.O_WRONLY)
                os.pwrite(fd, b"w", 3)
                os.close(fd)
            data = model[path][0]
            assert isinstance(data, bytes)
            model[path][0] = data.ljust(4, b"\0")[:3] + b"w" + data[4:]
        elif what == "truncate":
            do.setattr(path, Change(size=size)) if isinstance(do, InProcess) else os.truncate(there, size)
            data = model[path][0]
            assert isinstance(data, bytes)
            model[path][0] = data[:size].ljust(size, b"\0")
        elif what == "rename":
            do.rename(path, new) if ours and isinstance(do, InProcess) else there.rename(Path(str(do)) / new[1:])
            model[new] = model.pop(path)
        elif len(model) > 1:
            do.unlink(path) if isinstance(do, InProcess) else there.unlink()
            del model[path]

    def expected() -> dict[str, tuple[object, ...]]:
        return {path: (data, mode) for path, (data, mode) in model.items()}

    for number in range(6):
        if number % 2 and ROOT:
            with _kernel(base) as kernel:
                for _ in range(3):
                    change(kernel.merged)
                seen = _seen(kernel.merged)
        else:
            with _opened(base, metacopy=number != 4) as union:
                for _ in range(3):
                    change(union)
                seen = _seen_by_us(union)
        assert {path: (facts[-1], stat.S_IMODE(facts[0])) for path, facts in seen.items()} == expected(), seed  # type: ignore[call-overload]
        hollow += sum(_is_hollow(path) for path in (base / "upper").rglob("*") if path.is_file())
    with _opened(base) as union:
        assert {p: (f[-1], stat.S_IMODE(f[0])) for p, f in _seen_by_us(union).items()} == expected()  # type: ignore[call-overload]
    assert hollow


# -- what is not believed ---------------------------------------------------------------------------------------------


def _mark(path: Path, prefix: str, redirect: bytes | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(SIZE)
    os.setxattr(path, f"{prefix}overlay.metacopy", b"")
    if redirect is not None:
        os.setxattr(path, f"{prefix}overlay.redirect", redirect)


def _answer(base: Path, path: str, *, metacopy: bool) -> int | None:
    with _opened(base, metacopy=metacopy) as union:
        assert path[1:].rpartition("/")[2] in os.listdir(base / "upper" / path[1:].rpartition("/")[0])
        try:
            assert union.read(path) == DATA[:SIZE]
        except OSError as error:
            return error.errno
    return None


@pytest.mark.parametrize("metacopy", [False, True])
def test_a_mark_without_data(base: Path, *, metacopy: bool) -> None:
    """EIO, as in overlayfs: nothing below, a whiteout, a directory, a link."""
    (base / "low/dir").mkdir()
    (base / "low/link").symlink_to("big")
    os.mknod(base / "low/white", stat.S_IFCHR, 0)
    for name in ("nothing", "dir", "link", "white"):
        _mark(base / "upper" / name, PREFIX.removesuffix("overlay."))
        assert _answer(base, f"/{name}", metacopy=metacopy) == errno.EIO
    _mark(base / "upper/far", PREFIX.removesuffix("overlay."), b"/d/../../etc/passwd")
    assert _answer(base, "/far", metacopy=metacopy) == errno.EINVAL
    _mark(base / "upper/good", PREFIX.removesuffix("overlay."), b"/d/big")
    assert _answer(base, "/good", metacopy=metacopy) is None


def test_data_that_says_it_is_a_whiteout(base: Path) -> None:
    """It is none, as in overlayfs: only what is empty can be."""
    os.setxattr(base / "top/d/top", PREFIX + "whiteout", b"garbage")
    os.setxattr(base / "low/d/other", PREFIX + "whiteout", b"y")
    for _ in range(2):
        with _opened(base) as union:
            for name in ("/d/top", "/d/other"):
                union.setattr(name, Change(mode=0o600))
                assert union.read(name) == DATA[:SIZE]
    assert _is_hollow(base / "upper/d/top") and _is_hollow(base / "upper/d/other")
    if ROOT:
        with _kernel(base) as kernel:
            assert (kernel / "d/top").read_bytes() == (kernel / "d/other").read_bytes() == DATA[:SIZE]


@pytest.mark.skipif(not ROOT, reason="what root does not believe")
@pytest.mark.parametrize("metacopy", [False, True])
def test_root_does_not_believe_what_anybody_may_write(base: Path, *, metacopy: bool) -> None:
    """user. marks, and user. redirects beside a mark of root's."""
    (base / "low/secret").write_bytes(b"secret")
    _mark(base / "upper/big", "user.")
    assert _answer(base, "/big", metacopy=metacopy) == errno.EPERM
    _mark(base / "upper/d/big", "trusted.")
    os.setxattr(base / "upper/d/big", "user.overlay.redirect", b"/secret")
    assert _answer(base, "/d/big", metacopy=metacopy) is None


@pytest.mark.skipif(not ROOT, reason="mounts")
def test_what_came_from_elsewhere_is_believed_when_it_is_asked_for(base: Path) -> None:
    """A filesystem that is mounted nosuid may be somebody else's."""
    (base / "pen").mkdir()
    libc.mount("tmpfs", str(base / "pen"), "tmpfs", syscalls.MS_NOSUID)
    try:
        for name in ("upper", "work"):
            (base / name).rmdir()
            (base / "pen" / name).mkdir()
            (base / name).symlink_to(base / "pen" / name)
        _mark(base / "upper/big", "trusted.")
        assert _answer(base, "/big", metacopy=False) == errno.EPERM
        assert _answer(base, "/big", metacopy=True) is None
    finally:
        libc.umount(str(base / "pen"))
