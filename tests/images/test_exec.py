"""Images in `fuseunion exec`: each arrangement of LOWER, UPPER and --overlay, and what is found when one comes back."""

from __future__ import annotations

import os
import pty
import select
import stat
from pathlib import Path

import pytest

from tests.exec.stage import SINGLE, Stage, tree
from tests.images.commands import succeed
from tests.images.conftest import content, ext, fsck, names, squashfs
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.interpreter import Interpreter
from tests.support.layers import Dir, File, Symlink, build

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user", "lone")]


def _base(stage: Stage) -> Path:
    root = stage.arena.root
    return squashfs(build(root / "tree", tree()), root / "base.sqfs", "-all-root")


def _layer(stage: Stage, name: str, text: str) -> Path:
    root = stage.arena.root
    described = {f"data/{name}": File(text.encode()), "data/top": File(text.encode())}
    return squashfs(build(root / f"tree-{name}", described), root / name)


def test_one_comes_back_and_finds_it(stage: Stage) -> None:
    base, image = _base(stage), ext(stage.arena.root / "my.img")
    stage.shell([base, image], "echo kept > /data/new; rm /data/file; chown 0:0 /data/new; ln /data/new /data/second")
    fsck(image)
    assert stage.shell([base, image], "ls /data; cat /data/second; stat -c %u /data/new /") == [
        "new",
        "second",
        "kept",
        "0",
        "0",
    ]
    fsck(image)
    assert content(image, "/upper/data/new") == b"kept\n"
    assert names(image, "/upper/data") == {"new", "second", "file"}


def test_overlays_in_the_order_of_apptainer(stage: Stage) -> None:
    base, image = _base(stage), ext(stage.arena.root / "my.img")
    one, two = _layer(stage, "one", "1"), _layer(stage, "two", "2")
    over = ["--overlay", image, "--overlay", one, "--overlay", two]
    assert stage.shell([*over, base], "cat /data/top; echo mine > /data/mine; ls /data") == [
        "2file",
        "mine",
        "one",
        "top",
        "two",
    ]
    over = ["--overlay", one, "--overlay", f"{image}:ro"]
    assert stage.shell([*over, base], "cat /data/mine; echo x > /data/forgotten; ls /data") == [
        "mine",
        "file",
        "forgotten",
        "mine",
        "one",
        "top",
    ]
    fsck(image)
    assert names(image, "/upper/data") == {"mine"}


def test_a_directory_is_an_overlay_as_apptainer_lays_it_out(stage: Stage) -> None:
    base, directory = _base(stage), stage.arena.directory("overlay")
    stage.shell(["--overlay", directory, base], "echo kept > /data/new")
    assert (directory / "upper/data/new").read_text() == "kept\n"
    assert set(os.listdir(directory)) == {"upper", "work"}
    assert stage.shell(["--overlay", f"{directory}:ro", base], "cat /data/new") == ["kept"]


@pytest.mark.actors("user")
def test_mistakes(stage: Stage) -> None:
    base, image = _base(stage), ext(stage.arena.root / "my.img")
    other, directory = ext(stage.arena.root / "other.img"), stage.arena.directory("empty")
    (stage.arena.root / "text").write_text("text")
    os.mkfifo(stage.arena.root / "fifo")
    cases = [
        (["--overlay", image, "--overlay", other], "would both be written"),
        (["--overlay", image, base, other], "would both be written"),
        (["--overlay", f"{base}:rw"], "cannot be written"),
        (["--overlay", f"{directory}:ro"], "no directory 'upper'"),
        (["--overlay", stage.arena.root / "text"], "neither a directory nor an image"),
        (["--overlay", stage.arena.root / "fifo"], "cannot be opened"),
        (["--overlay", stage.arena.root / "missing"], "cannot be opened"),
        (["--overlay", image, "--writable-tmpfs"], "forgets what is changed"),
        (["--overlay", image, "--read-only"], "contradict"),
    ]
    for words, said in cases:
        arguments = words if base in words else [*words, base]
        code, output, errors = stage.run(*arguments, "--", "true")
        assert code in (2, 3) and said in errors and errors.count("\n") == 1, (words, code, output, errors)


@pytest.mark.actors("root")
def test_a_user_with_one_id_and_an_image_of_that_id(stage: Stage, reachable_interpreter: Interpreter) -> None:
    root = stage.arena.root
    base, image = _base(stage), ext(root / "my.img", tree=_owned(root / "layout", SINGLE))
    for path in (root, image):
        os.chown(path, SINGLE, SINGLE)
    single = Stage(stage.arena, reachable_interpreter, (SINGLE, SINGLE))
    for expected in ("", "kept"):
        assert single.shell([base, image], "cat /data/new 2>/dev/null || :; echo kept > /data/new") == [
            *filter(None, [expected])
        ]
        fsck(image)
    used = ext(root / "used.img", tree=_owned(root / "other", SINGLE, "upper/file"))
    os.chown(used, SINGLE, SINGLE)
    code, _, errors = single.run(base, used, "--", "true")
    assert code == 3 and "--to root" in errors and errors.count("\n") == 1, errors


def _owned(layout: Path, owner: int, *files: str) -> Path:
    (layout / "upper").mkdir(parents=True)
    (layout / "work").mkdir()
    for name in files:
        (layout / name).touch()
    for path in (layout, *layout.rglob("*")):
        os.chown(path, owner, owner)
    return layout


# -- whose it is -------------------------------------------------------------------------------------------------------


@pytest.mark.actors("root", "user")
def test_whose_the_upper_is_is_said_where_it_matters(stage: Stage) -> None:
    """In exec one is root: of what is root's a person is told that, of somebody else's a line says how to change it."""
    root = stage.arena.root
    base, image = _base(stage), ext(root / "my.img", tree=_owned_by_me(root / "layout"))
    succeed("chown", image, "--to", "root")
    assert stage.shell([base, image], "echo new > /data/new; stat -c %u / /data/new") == ["0", "0"]
    succeed("chown", image, "--to", "7:7")
    code, output, errors = stage.run(base, image, "--", "stat", "-c", "%u", "/data/new")
    says = f"what is in '{image}' belongs to user 7; to make it root's: fuseunion image chown '{image}' --to root"
    assert (code, output, errors) == (0, "7\n", f"fuseunion: {says}\n")
    succeed("chown", image, "--to", "root")
    assert stage.shell([base, image], "cat /data/new") == ["new"]
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with stage.start(base, image, "--", "true", stderr=theirs) as process:
        assert process.wait(timeout=50) == 0
    said = os.read(ours, 4096).decode() if select.select([ours], [], [], 0)[0] else ""
    told = f"fuseunion: what is in '{image}' belongs to root, who you are here, as with --fakeroot\r\n"
    assert said == ("" if stage.arena.actor.role is Role.ROOT else told)
    os.close(ours)
    os.close(theirs)
    fsck(image)


def test_directories_that_were_made_with_the_image_are_roots(stage: Stage) -> None:
    base, image = _base(stage), stage.arena.root / "my.img"
    made = ["--create-dir", "opt/project/data", "--create-dir", "srv/more"]
    succeed("create", "--size", "16M", "--sparse", *made, image)
    script = """
        stat -c %u / /opt/project/data; echo x >/opt/project/data/file
        mkdir /opt/project/x; chown 7:7 /opt/project/x 2>&1
    """
    stage.shell([base, image], script)
    found = stage.shell([base, image], "stat -c %u / /opt/project/data /srv/more; stat -c %u /opt/project/x")
    assert found[:3] == ["0", "0", "0"] and found[3] in ("0", "7")
    fsck(image)


@pytest.mark.actors("user")
def test_whose_the_upper_is_in_a_mount(arena: Arena) -> None:
    lower = arena.lower({"file": File(b"x")})
    image = ext(arena.root / "my.img", tree=_owned_by_me(arena.root / "layout"))
    how = f"to make it yours: fuseunion image chown '{image}' --to me\n"
    said = {"root": "root; in fuseunion exec you are root and may change it; ", "7:7": "another user (7); "}
    for owner, words in said.items():
        succeed("chown", image, "--to", owner)
        with arena.mount(lower, upper=image, tolerated="belongs to") as mount:
            assert mount.log().endswith(f"what is in '{image}' belongs to {words}{how}")
            with pytest.raises(PermissionError):
                (mount / "new").write_text("x")
    succeed("chown", image, "--to", "me")
    with arena.mount(lower, upper=image) as mount:
        (mount / "new").write_text("x")


def test_an_image_that_lies_in_the_lower(stage: Stage, arena: Arena) -> None:
    """As with LOWER `/`: the tree shows it, and nobody reads what is in it but through the union."""
    lower = build(arena.root / "lower", {**tree(), "data/home": Dir()})
    image = ext(arena.root / "my.img").rename(lower / "data/home/my.img")
    closed = "! cat my.img 2>/dev/null; ! chmod 600 my.img 2>/dev/null; ! echo x 2>/dev/null >>my.img"
    assert stage.shell([lower, image], f"cd /data/home; {closed}; echo kept >new; ls") == ["my.img", "new"]
    fsck(image)
    read_only = ["--read-only", lower, image]
    assert stage.shell(read_only, "cd /data/home; ! cat my.img 2>/dev/null; cat new") == ["kept"]
    moved = "! mv my.img other 2>/dev/null; ! mv /data/home /data/away 2>/dev/null; rm my.img; ls /data . "
    assert stage.shell([lower, image], f"cd /data/home; {moved}") == [".:", "new", "", "/data:", "file", "home"]
    assert stage.shell([lower, image], "cd /data/home; echo another >my.img; cat my.img") == ["another"]
    fsck(image)
    assert content(image, "/upper/data/home/my.img") == b"another\n"
    assert os.listdir(lower / "data/home") == ["my.img"]


@pytest.mark.actors("user")
def test_one_is_oneself_in_place(stage: Stage) -> None:
    """--here: nobody is root, and the programs that show images can mount all the same."""
    arena = stage.arena
    lower = arena.lower({"file": File(b"of the lower\n")})
    below, image = squashfs(lower, arena.root / "base.sqfs"), arena.root / "my.img"
    succeed("create", "--size", "16M", "--sparse", image)
    place = arena.directory("place")
    for words, at in (((lower, image), lower), (("--at", place, below, image), place)):
        script = f"cat {at}/file; echo kept >>{at}/new; stat -c %u {at}/new; cat {at}/new"
        done = stage.arena.place.fuseunion("exec", "--here", *words, "--", "sh", "-euc", script)
        kept = ["kept"] * (1 if at == lower else 2)
        assert (done.stdout.split("\n")[:-1], done.returncode) == (["of the lower", str(os.geteuid()), *kept], 0), done
        fsck(image)
    succeed("chown", image, "--to", "root")
    done = stage.arena.place.fuseunion("exec", "--here", lower, image, "--", "true")
    assert done.returncode == 3 and done.stderr == (
        f"fuseunion: what is in '{image}' belongs to a user who has no number here; give it to me with: "
        f"fuseunion image chown '{image}' --to me\n"
    )


@pytest.mark.actors("root", "user")
def test_stored_owners_in_an_image(arena: Arena) -> None:
    """They are in attributes, and those of links are real: nothing of them is beside the image."""
    lower = arena.lower({"file": File(b"x"), "link": Symlink("file")})
    image = arena.root / "my.img"
    succeed("create", "--size", "16M", "--sparse", image)
    for number in range(2):
        with arena.mount(lower, upper=image, arguments=["--fakeroot"]) as mount:
            if number == 0:
                (mount / "new").symlink_to("file")
                (mount / "directory").mkdir(0o1777)
                if os.geteuid() == 0:
                    for name in ("file", "new", "link", "directory"):
                        os.chown(mount / name, 33, 44, follow_symlinks=False)
                (mount / "file").chmod(0o4750)
            assert stat.S_IMODE((mount / "file").stat().st_mode) == 0o4750
            owner = (33, 44) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
            for name in ("file", "new", "link", "directory"):
                st = os.lstat(mount / name)
                assert (st.st_uid, st.st_gid) == owner, name
        fsck(image)
    assert succeed("ls", "-l", image, "upper/file").startswith("-rwxr-x---"), "no set-user-ID program of anybody"
    assert names(image, "/work") <= {"work", "links"}
    succeed("check", image)
    succeed("chown", image, "--to", "root")
    assert succeed("ls", "-l", image, "upper/file").split()[2:4] == ["0", "0"], "the real owner too"
    with arena.mount(lower, upper=image, arguments=["--fakeroot"], tolerated="belongs to") as mount:
        assert (os.lstat(mount / "file").st_uid, os.lstat(mount / "new").st_uid) == (0, 0)


def _owned_by_me(layout: Path) -> Path:
    for path in ("upper", "work"):
        (layout / path).mkdir(parents=True)
    (layout / "upper/used").write_text("x")
    return layout
