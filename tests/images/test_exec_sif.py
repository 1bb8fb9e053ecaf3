"""A SIF in `fuseunion exec`: what it runs in, and with an embedded overlay what is changed as well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exec.stage import Stage, tree
from tests.images.commands import info, succeed
from tests.images.conftest import ext, squashfs
from tests.images.sifs import EXT, OVERLAY, PRIMARY, SIGNATURE, SQUASHFS, Entry, Layout
from tests.support.layers import File, build

pytestmark = [pytest.mark.mount, pytest.mark.actors("root", "user", "lone")]


def _root(stage: Stage) -> Entry:
    directory = stage.arena.root
    image = squashfs(build(directory / "tree", tree()), directory / "base.sqfs", "-all-root")
    return Entry(content=image.read_bytes(), filesystem=SQUASHFS, use=PRIMARY)


def _squashfs_overlay(stage: Stage, name: str) -> Entry:
    described = {f"data/{name}": File(name.encode()), "data/top": File(name.encode())}
    file = squashfs(build(stage.arena.root / name, described), stage.arena.root / f"{name}.sqfs", "-all-root")
    return Entry(content=file.read_bytes(), filesystem=SQUASHFS, use=OVERLAY)


def _sif(stage: Stage, *entries: Entry) -> Path:
    return Layout([_root(stage), *entries]).write(stage.arena.root / "app.sif")


def test_its_overlay_is_the_upper(stage: Stage) -> None:
    """As LOWER and UPPER at once, and as --overlay over itself or over another tree."""
    file = _sif(stage, _squashfs_overlay(stage, "one"))
    succeed("create", "--size", "16M", file)
    assert stage.shell([file, file], "cat /data/top; echo kept >/data/new; rm /data/one; chown 0:0 /data/new") == [
        "one"
    ]
    assert stage.shell(["--overlay", file, file], "cat /data/new; ls /data; echo more >>/data/new") == [
        "kept",
        "file",
        "new",
        "top",
    ]
    other = squashfs(build(stage.arena.root / "other", tree()), stage.arena.root / "other.sqfs", "-all-root")
    code, output, errors = stage.run(
        "--overlay", file, other, "--", "sh", "-euc", "cat /data/new; ls /data; echo x >/data/third"
    )
    assert (code, output) == (0, "kept\nmore\nfile\nnew\n") and "over other lower directories" in errors, errors
    assert stage.shell([file], "cat /data/third; echo forgotten >/data/fourth; ls /data") == [
        "x",
        "file",
        "fourth",
        "new",
        "third",
        "top",
    ]
    assert "is clean" in succeed("check", file)
    assert succeed("ls", file, "upper/data").split() == ["new", "one", "third"]
    assert info(file)["filesystems"][-1]["owner_of_upper"] == [0, 0]


def test_its_overlays_lie_in_their_order(stage: Stage) -> None:
    layout = stage.arena.root / "layout"
    over = ext(stage.arena.root / "over", tree=build(layout, {"upper/data/top": File(b"ext"), "work/x": File(b"")}))
    file = _sif(
        stage,
        _squashfs_overlay(stage, "one"),
        _squashfs_overlay(stage, "two"),
        Entry(content=over.read_bytes(), filesystem=EXT, use=OVERLAY),
        _squashfs_overlay(stage, "three"),
        Entry(content=over.read_bytes(), filesystem=EXT, use=OVERLAY, group=2),
        Entry(SIGNATURE, b"-----BEGIN"),
    )
    before = file.read_bytes()
    assert stage.shell(["--read-only", file], "cat /data/top; echo; ls /data") == [
        "three",
        "file",
        "one",
        "three",
        "top",
        "two",
    ]
    assert file.read_bytes() == before


@pytest.mark.actors("root", "user")
def test_what_belongs_to_others(stage: Stage) -> None:
    file = _sif(stage)
    succeed("create", "--size", "16M", "--fakeroot", file)
    assert stage.shell([file, file], "echo kept >/data/new; stat -c %u / /data/new") == ["0", "0"]
    succeed("chown", file, "--to", "7:7")
    code, output, errors = stage.run(file, file, "--", "cat", "/data/new")
    assert (code, output, errors.count("\n")) == (0, "kept\n", 1), errors
    assert errors.endswith(f"fuseunion image chown '{file}' --to root\n")
    succeed("chown", file, "--to", "root")
    assert stage.shell(["--overlay", file, file], "cat /data/new") == ["kept"]
