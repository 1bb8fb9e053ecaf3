"""flatten and convert: an upper shows the same before and after, to all who read it, and also when they are killed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from fuseunion.cli.commands.layers.upkeep import check, convert, flatten
from fuseunion.core.ops.attributes import Change
from fuseunion.errors import UserError
from fuseunion.mounting.prepare import default_work_path
from tests.layers import uppers
from tests.layers.uppers import LOWER, OPERATIONS
from tests.support import libc
from tests.support.arena import Arena
from tests.support.crash import before_changes, run_until_change
from tests.support.inprocess import in_process
from tests.support.layers import File, Name, Node, build

View = dict[str, tuple[object, ...]]

_QUICK = settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@contextmanager
def _directory(scratch: Path) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(dir=scratch))
    try:
        yield root
    finally:
        shutil.rmtree(root)


def _run(command: str, upper: Path, lower: Path, *arguments: str) -> None:
    module = flatten if command == "flatten" else convert
    assert module.main([str(upper), "--lower", str(lower), *arguments]) == 0


FORMS: dict[str, tuple[str, ...]] = {
    "flatten": ("flatten",),
    "kernel": ("convert", "--to", "kernel"),
    "userxattr": ("convert", "--to", "kernel", "--userxattr"),
    "fuse-overlayfs": ("convert", "--to", "fuse-overlayfs"),
    "oci": ("convert", "--to", "oci"),
}


@pytest.mark.root
@pytest.mark.parametrize("form", FORMS)
@_QUICK
@given(operations=OPERATIONS)
def test_random_uppers_show_the_same(scratch: Path, form: str, operations: Sequence[tuple[object, ...]]) -> None:
    show_the_same(scratch, form, operations)


def show_the_same(scratch: Path, form: str, operations: Sequence[tuple[object, ...]]) -> None:
    """An upper that was made by some operations, before and after it gets a form."""
    with _directory(scratch) as root:
        lower = build(root / "lower", LOWER)
        upper = uppers.made(root, lower, operations, redirect_dir=True, metacopy=True)
        before = uppers.seen(lower, upper, root / "scratch")
        command, *arguments = FORMS[form]
        _run(command, upper, lower, *arguments)
        assert uppers.seen(lower, upper, root / "scratch") == before
        assert not Path(default_work_path(str(upper))).exists(), "there is nothing to keep"
        _assert_form(upper, form)
        assert check.main([str(upper), "--lower", str(lower)]) in (0, check.CheckCode.LEFT)
        if form in ("flatten", "kernel"):
            assert _through_the_kernel(root, lower, upper) == _shape(before)


def _shape(view: View) -> dict[str, object]:
    """Of each path the type, and the content of a file or the target of a link: what any reader shows alike."""
    return {
        path.lstrip("/"): (facts[0], facts[-1] if facts[0] != stat.S_IFDIR else None) for path, facts in view.items()
    }


def _walked(merged: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in merged.rglob("*"):
        st = path.lstat()
        content: object = None
        if stat.S_ISREG(st.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(st.st_mode):
            content = os.fsencode(os.readlink(path))
        found[str(path.relative_to(merged))] = (stat.S_IFMT(st.st_mode), content)
    return found


def _through_the_kernel(root: Path, lower: Path, upper: Path) -> dict[str, object]:
    merged, work = root / "merged", root / "kernel-work"
    for path in (merged, work):
        path.mkdir()
    libc.mount("overlay", str(merged), "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
    try:
        return _walked(merged)
    finally:
        libc.umount(str(merged))


def _assert_form(upper: Path, form: str) -> None:
    for path in [upper, *upper.rglob("*")]:
        st = path.lstat()
        names = [] if stat.S_ISLNK(st.st_mode) else os.listxattr(path, follow_symlinks=False)
        suffixes = {name.rpartition(".")[2] for name in names if ".overlay." in name}
        assert not suffixes & {"redirect", "metacopy"}, path
        is_device = stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
        if form == "oci":
            assert not suffixes and not is_device, path
        else:
            assert not path.name.startswith(".wh.") or form == "fuse-overlayfs", path
        if form == "kernel":
            assert "user.overlay.opaque" not in names
        if form == "userxattr":
            assert "trusted.overlay.opaque" not in names


@pytest.mark.root
@_QUICK
@given(operations=OPERATIONS)
def test_fuse_overlayfs_shows_a_converted_upper(scratch: Path, operations: Sequence[tuple[object, ...]]) -> None:
    with _directory(scratch) as root:
        lower = build(root / "lower", LOWER)
        upper = uppers.made(root, lower, operations, redirect_dir=True, metacopy=True)
        before = uppers.seen(lower, upper, root / "scratch")
        _run("convert", upper, lower, "--to", "fuse-overlayfs")
        merged, work = root / "merged", root / "fo-work"
        for path in (merged, work):
            path.mkdir()
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["fuse-overlayfs", "-o", options, merged], check=True, capture_output=True)
        try:
            assert _walked(merged) == _shape(before)
        finally:
            subprocess.run(["umount", merged], check=True)


# -- one thing at a time -----------------------------------------------------------------------------------------------

RICH: list[tuple[object, ...]] = [
    ("chmod", "b", 0o640),
    ("rename", "d", "moved"),
    ("write", "moved/a", b"changed"),
    ("write", "t1", b"TWINS"),
    ("unlink", "a"),
    ("remove", "h"),
    ("mkdir", "h"),
    ("create", "h/new", b"new"),
]


@before_changes(11)
@pytest.mark.parametrize("form", ["flatten", "oci", "fuse-overlayfs"])
@pytest.mark.actors("user")
def test_it_is_killed_anywhere(arena: Arena, form: str, every: int) -> None:
    """What is shown is the same, and the same command comes to its end."""
    command, *arguments = FORMS[form]
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, RICH, redirect_dir=True, metacopy=True)
    spare = arena.directory("spare")
    work = Path(default_work_path(str(upper)))
    names = [path.name for path in (upper, work) if path.exists()]
    subprocess.run(["cp", "-a", *(arena.root / name for name in names), spare], check=True)
    before = _but_time_of_b(uppers.seen(lower, upper, arena.root / "scratch"))
    number = len(form) % every
    while not run_until_change(number, lambda: _run(command, upper, lower, *arguments)):
        number += every
        assert _but_time_of_b(uppers.seen(lower, upper, arena.root / "scratch")) == before
        _run(command, upper, lower, *arguments)
        assert _but_time_of_b(uppers.seen(lower, upper, arena.root / "scratch")) == before
        _assert_form(upper, form)
        for path in (upper, work):
            shutil.rmtree(path, ignore_errors=True)
        subprocess.run(["cp", "-a", *(spare / name for name in names), arena.root], check=True)
    assert number > 20


def _but_time_of_b(view: View) -> View:
    """A file that is killed while it gets its data may keep another time of modification (docs/architecture.md)."""
    return view | {"/b": view["/b"][:-2] + view["/b"][-1:]}


@pytest.mark.actors("user")
def test_the_lowers_are_needed(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, [("rename", "d", "moved")], redirect_dir=True)
    with pytest.raises(UserError, match="give the lower directories with --lower"):
        flatten.main([str(upper)])


@pytest.mark.actors("root", "user")
def test_names_of_one_file_become_hard_links(arena: Arena) -> None:
    """An upper with the index used as a lower elsewhere shows true counts."""
    lower = arena.lower(LOWER)
    upper = uppers.made(arena.root, lower, [("write", "t1", b"TWINS")])
    _run("flatten", upper, lower)
    assert not Path(default_work_path(str(upper))).exists()
    assert (upper / "t1").stat().st_ino == (upper / "d/t2").stat().st_ino
    assert (upper / "t1").stat().st_nlink == 2
    with arena.mount_read_only(upper) as mount:
        assert (mount / "t1").stat().st_nlink == 2


OVERRIDE = "user.containers.override_stat"


def _stored(arena: Arena) -> tuple[Path, Path]:
    lower = arena.lower({"file": File(b"x"), "dir/a": File(b"a")})
    upper = arena.directory("upper")
    os.setxattr(upper, OVERRIDE, b"0:0:0755:dir")
    work = Path(default_work_path(str(upper)))
    work.mkdir(mode=0o700)
    with in_process([lower], upper, work) as union:
        union.setattr("file", Change(uid=5, gid=6, mode=0o4751))
        union.setattr("dir/a", Change(uid=7))
        union.create("own", b"own")
        union.mknod("device", stat.S_IFCHR | 0o644, os.makedev(1, 3))
        union.mknod("fifo", stat.S_IFIFO | 0o600)
        union.symlink("nowhere", "link")
        union.setattr("link", Change(uid=8, gid=9))
        union.setxattr("own", b"security.capability", _CAPABILITY)
    return lower, upper


_CAPABILITY = b"\x01\x00\x00\x02" + b"\x00\x20\x00\x00" + b"\0" * 12


@pytest.mark.root
@pytest.mark.actors("root")
def test_stored_owners_become_real(arena: Arena) -> None:
    lower, upper = _stored(arena)
    before = uppers.seen(lower, upper, arena.root / "scratch")
    _run("flatten", upper, lower)
    assert uppers.seen(lower, upper, arena.root / "scratch") == before
    assert OVERRIDE not in os.listxattr(upper)
    st = (upper / "file").stat()
    assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (5, 6, 0o4751)
    assert stat.S_ISCHR((upper / "device").lstat().st_mode)
    assert (upper / "device").lstat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO((upper / "fifo").lstat().st_mode)
    assert ((upper / "link").lstat().st_uid, (upper / "link").lstat().st_gid) == (8, 9)
    assert os.getxattr(upper / "own", "security.capability") == _CAPABILITY
    assert not Path(default_work_path(str(upper))).exists()


@pytest.mark.actors("user")
def test_stored_owners_of_others_stay_where_they_cannot_be_real(arena: Arena) -> None:
    lower, upper = _stored(arena)
    before = uppers.seen(lower, upper, arena.root / "scratch")
    with pytest.raises(UserError, match="can be made real by root alone"):
        _run("flatten", upper, lower)
    assert uppers.seen(lower, upper, arena.root / "scratch") == before
    _run("convert", upper, lower, "--to", "fuse-overlayfs")
    assert uppers.seen(lower, upper, arena.root / "scratch") == before


@pytest.mark.actors("root", "user")
def test_wh_files_and_attributes_become_devices(arena: Arena) -> None:
    description: dict[Name, Node] = {"a": File(), "b": File(), "c/x": File(), "d/y": File(), "e/z": File()}
    lower = arena.lower(description)
    upper = arena.directory("upper")
    (upper / ".wh.a").touch()
    (upper / "b").touch()
    os.setxattr(upper / "b", "user.overlay.whiteout", b"y")
    (upper / "c").mkdir()
    (upper / "c/.wh..wh..opq").touch()
    (upper / "d").mkdir()
    os.setxattr(upper / "d", "user.fuseoverlayfs.opaque", b"y")
    (upper / "e").mkdir()
    (upper / ".wh.e").touch()
    before = uppers.seen(lower, upper, arena.root / "scratch")
    assert set(before) == {"/c", "/d", "/e"}
    _run("flatten", upper, lower)
    assert uppers.seen(lower, upper, arena.root / "scratch") == before
    for name in ("a", "b"):
        assert stat.S_ISCHR((upper / name).lstat().st_mode)
    for name in ("c", "d", "e"):
        assert os.getxattr(upper / name, "user.overlay.opaque") == b"y"
    assert not list(upper.rglob(".wh.*"))
    _run("convert", upper, lower, "--to", "oci")
    assert uppers.seen(lower, upper, arena.root / "scratch") == before
    assert {path.name for path in upper.rglob(".wh.*")} == {".wh.a", ".wh.b", ".wh..wh..opq"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--to", "tar"], "expected kernel, fuse-overlayfs or oci"),
        ([], "say which form with --to"),
        (["--to", "oci", "--userxattr"], "--userxattr goes with --to kernel"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert.main([str(tmp_path), *arguments])
