"""How layers become one tree: order, whiteouts and opaque directories in every form on disk.

Rules: overlayfs.rst "Upper and Lower", "whiteouts and opaque directories"; fuse-overlayfs(1); OCI image-spec layer.md.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.layers import Device, Dir, File, Mark, Name, Node, Opacity, Opaque, Symlink, Whiteout


def names(directory: Path) -> list[str]:
    """The names in a directory, in order."""
    return sorted(os.listdir(directory))


def test_topmost_layer_wins(arena: Arena) -> None:
    """Names merge; for one name the topmost layer decides what it is."""
    top = arena.lower({"both": File(b"top"), "dir/top": File(), "file-over-dir": File(b"f"), "dir-over-file/x": File()})
    bottom = arena.lower(
        {"both": File(b"bottom"), "dir/bottom": File(), "file-over-dir/hidden": File(), "dir-over-file": File()}
    )
    with arena.mount(top, bottom) as mount:
        assert names(mount.merged) == ["both", "dir", "dir-over-file", "file-over-dir"]
        assert (mount / "both").read_bytes() == b"top"
        assert names(mount / "dir") == ["bottom", "top"]
        assert (mount / "file-over-dir").read_bytes() == b"f"
        assert names(mount / "dir-over-file") == ["x"]


def test_a_file_or_whiteout_between_two_directories_ends_the_merge(arena: Arena) -> None:
    """What lies below a non-directory never shows again, however the layer above calls the name."""
    top = arena.lower({"over-file/top": File(), "over-whiteout/top": File(), "opaque/top": File()})
    middle = arena.lower({"over-file": File(), "over-whiteout": Whiteout(), "opaque": Opaque(Opacity.USER)})
    bottom = arena.lower({"over-file/old": File(), "over-whiteout/old": File(), "opaque/old": File()})
    with arena.mount(top, middle, bottom) as mount:
        for name in ("over-file", "over-whiteout", "opaque"):
            assert names(mount / name) == ["top"]
            assert not (mount / name / "old").exists()
            (mount / name / "old").mkdir()
            assert names(mount / name / "old") == []


def test_attributes_come_from_the_topmost_directory(arena: Arena) -> None:
    """Only names merge: mode, times and xattrs are those of the topmost directory."""
    top = arena.lower({"d": Dir(mode=0o711, xattrs={"user.from": b"top"}, mtime=1_000_000_000_000_000_000)})
    bottom = arena.lower({"d": Dir(mode=0o755, xattrs={"user.from": b"bottom", "user.more": b"x"}), "d/f": File()})
    with arena.mount(top, bottom) as mount:
        status = (mount / "d").stat()
        assert status.st_mode & 0o7777 == 0o711
        assert status.st_mtime_ns == 1_000_000_000_000_000_000
        assert os.getxattr(mount / "d", "user.from") == b"top"
        assert os.listxattr(mount / "d") == ["user.from"]


def _marks(arena: Arena) -> list[Mark]:
    return [mark for mark in Mark if mark is not Mark.XATTR_TRUSTED or arena.actor.has_devices]


def test_every_form_of_whiteout(arena: Arena) -> None:
    """A whiteout hides its name in whatever form; the name can be used again and stays what it became."""
    marks = _marks(arena)
    description: dict[Name, Node] = {}
    for mark in marks:
        description[f"{mark.name}/gone"] = Whiteout(mark)
        description[f"{mark.name}/dir"] = Whiteout(mark)
        description[f"{mark.name}/top"] = File()
    top = arena.lower(description)
    bottom = arena.lower(
        {f"{mark.name}/{name}": File(b"old") for mark in marks for name in ("gone", "dir/inner", "kept")}
    )
    with arena.mount(top, bottom) as mount:
        for mark in marks:
            directory = mount / mark.name
            assert names(directory) == ["kept", "top"], mark
            for name in ("gone", "dir", "dir/inner", ".wh.gone"):
                assert not os.path.lexists(directory / name), (mark, name)
            (directory / "gone").write_bytes(b"new")
            (directory / "dir").mkdir()
        mount.stop()
        mount.start()
        for mark in marks:
            assert (mount / mark.name / "gone").read_bytes() == b"new"
            assert names(mount / mark.name / "dir") == []
            (mount / mark.name / "gone").unlink()
            (mount / mark.name / "dir").rmdir()
            assert names(mount / mark.name) == ["kept", "top"], mark
        mount.stop()
        mount.start()
        for mark in marks:
            assert names(mount / mark.name) == ["kept", "top"], mark


def test_every_form_of_opaque_directory(arena: Arena) -> None:
    """An opaque directory shows only its own layer and those above it, in whatever form it is marked."""
    forms = [form for form in Opacity if form is not Opacity.TRUSTED or arena.actor.has_devices]
    description: dict[Name, Node] = {}
    for form in forms:
        description[form.name] = Opaque(form)
        description[f"{form.name}/top"] = File()
        description[f"{form.name}/sub/top"] = File()
    top = arena.lower(description)
    bottom = arena.lower({f"{form.name}/{name}": File() for form in forms for name in ("old", "sub/old")})
    with arena.mount(top, bottom) as mount:
        for form in forms:
            assert names(mount / form.name) == ["sub", "top"], form
            assert names(mount / form.name / "sub") == ["top"], form
            assert not (mount / form.name / "old").exists(), form
            assert not any("overlay" in name for name in os.listxattr(mount / form.name)), form


@pytest.mark.parametrize("form", [Opacity.USER, Opacity.FUSE_OVERLAYFS, Opacity.OCI], ids=lambda form: form.name)
@pytest.mark.actors("user")
def test_opaque_upper_of_others(arena: Arena, form: Opacity) -> None:
    """An upper that another program left is read as that program meant it, litter and all."""
    lower = arena.lower({"d/old": File(), "d/sub/old": File(), "gone": File(), "kept": File()})
    upper = arena.directory("upper")
    (upper / "d").mkdir()
    if form is Opacity.OCI:
        (upper / "d" / ".wh..wh..opq").touch()
        (upper / ".wh.gone").touch()
    else:
        os.setxattr(upper / "d", form.value, b"y")
        os.mknod(upper / "gone", 0o020000, 0)
    # fuse-overlayfs 1.x leaves these beside its xattr.
    (upper / "d" / ".wh..wh..opq").touch()
    os.mknod(upper / "d" / ".wh..opq", 0o020000, 0)
    (upper / "d" / "new").touch()
    with arena.mount(lower, upper=upper) as mount:
        assert names(mount.merged) == ["d", "kept"]
        assert names(mount / "d") == ["new"]
        assert not (mount / "d" / "sub").exists()


def test_no_internal_name_shows(arena: Arena) -> None:
    """Whiteout files, opaque marks and the directories of others' bookkeeping stay out of sight."""
    top = arena.lower({".wh.a": File(), "d/.wh..wh..opq": File(), "d/x": File(), "d/.wh..wh..plnk/1": File()})
    bottom = arena.lower({"a": File(), "b": File(), "d/y": File()})
    with arena.mount(top, bottom) as mount:
        assert names(mount.merged) == ["b", "d"]
        assert names(mount / "d") == ["x"]


def test_kinds_of_objects(arena: Arena) -> None:
    """Symlinks, fifos and sockets come through; readdir tells the kind without a stat."""
    lower = arena.lower(
        {
            "link": Symlink("nowhere"),
            "fifo": Device(kind=0o010000),
            "socket": Device(kind=0o140000),
            "dir": Dir(),
            "file": File(),
        }
    )
    with arena.mount_read_only(lower) as mount:
        with os.scandir(mount.merged) as entries:
            kinds = {entry.name: (entry.is_symlink(), entry.is_dir(), entry.is_file()) for entry in entries}
        assert kinds == {
            "link": (True, False, False),
            "fifo": (False, False, False),
            "socket": (False, False, False),
            "dir": (False, True, False),
            "file": (False, False, True),
        }
        assert os.readlink(mount / "link") == "nowhere"
        with pytest.raises(OSError, match="Read-only"):
            (mount / "new").touch()


def test_listing_a_large_directory_while_it_is_emptied(arena: Arena) -> None:
    """A reader that deletes what it reads (`rm -r`) meets every name once."""
    top = arena.lower({f"d/top{number}": File() for number in range(1500)})
    bottom = arena.lower({f"d/bottom{number}": File() for number in range(1500)})
    with arena.mount(top, bottom) as mount:
        seen = []
        with os.scandir(mount / "d") as entries:
            for entry in entries:
                seen.append(entry.name)
                os.unlink(entry.path)
        assert len(seen) == len(set(seen)) == 3000
        assert names(mount / "d") == []
        (mount / "d").rmdir()
        assert names(mount.merged) == []


def test_dot_entries(arena: Arena) -> None:
    """`.` and `..` are listed, as old programs expect."""
    lower = arena.lower({"d/f": File()})
    with arena.mount(lower) as mount:
        listed = subprocess.run(["ls", "-a", "-f", str(mount / "d")], capture_output=True, text=True, check=True)
        assert sorted(listed.stdout.split()) == [".", "..", "f"]


def test_links_of_directories(arena: Arena) -> None:
    """Merged ones show one, the others what they have; with static_nlink all show one (fuse-overlayfs(1))."""
    lower = arena.lower({"pure/a/f": File(), "pure/b/f": File(), "merged/old/f": File(), "file": File()})
    for options, static in ((), False), (("static_nlink",), True):
        with arena.mount(lower, options=options) as mount:
            for name in ("made/a", "made/b", "merged/new"):
                (mount / name).mkdir(parents=True, exist_ok=True)
            if not (mount / "second").exists():
                (mount / "second").hardlink_to(mount / "file")
            expected = {
                "pure": 1 if static else (lower / "pure").stat().st_nlink,
                "made": 1 if static else (arena.upper / "made").stat().st_nlink,
                "merged": 1,
                "file": 2,
            }
            assert {name: (mount / name).stat().st_nlink for name in expected} == expected
            (mount / "gone").mkdir()
            fd = os.open(mount / "gone", os.O_RDONLY)
            (mount / "gone").rmdir()
            assert os.fstat(fd).st_nlink == 0
            os.close(fd)


@pytest.mark.parametrize("way", ["write", "mkdir", "rename", "link"])
def test_a_lower_directory_gets_its_first_name(arena: Arena, way: str) -> None:
    """Names that are not there are known of it without asking: one that is made there has to be seen."""
    with arena.mount(arena.lower({"deep/directory/old": File(), "file": File(b"x")}), options=["timeout=0"]) as mount:
        directory = mount / "deep/directory"
        for name in ("none", "neither", "new"):
            assert not (directory / name).exists()
        if way == "write":
            (directory / "new").write_bytes(b"x")
        elif way == "mkdir":
            (directory / "new").mkdir()
        elif way == "rename":
            (mount / "file").rename(directory / "new")
        else:
            os.link(mount / "file", directory / "new")
        assert (directory / "new").exists() and sorted(os.listdir(directory)) == ["new", "old"]
        assert not (directory / "none").exists()
