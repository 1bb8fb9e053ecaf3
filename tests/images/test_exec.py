"""Images in `fuseunion exec`: each arrangement of LOWER, UPPER and --overlay, and what is found when one comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.exec.stage import SINGLE, Stage, tree
from tests.images.conftest import content, ext, fsck, names, squashfs
from tests.support.interpreter import Interpreter
from tests.support.layers import File, build

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
