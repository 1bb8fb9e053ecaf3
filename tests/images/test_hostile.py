"""Headers in which anything may be wrong: one line at most, nothing read elsewhere or without end, no traceback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseunion.errors import ExitCode, UserError
from fuseunion.images import ext as ext_state
from fuseunion.images import recognise
from fuseunion.images.layers import stack
from fuseunion.images.tools import programs
from fuseunion.images.tools.opened import Access, inside, open_image
from tests.images.commands import image
from tests.images.sifs import EXT, OVERLAY, PRIMARY, ROW, SQUASHFS, TABLE, Entry, Layout
from tests.support.arena import Arena

MOST_READ = 4096 * ROW
"""Bytes: the largest table of a SIF."""

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def _squashfs(directory: Path) -> bytes:
    (directory / "tree").mkdir()
    (directory / "tree/file").write_text("x")
    command = ["mksquashfs", str(directory / "tree"), str(directory / "squashfs"), "-quiet", "-no-progress"]
    subprocess.run(command, check=True, capture_output=True)
    return (directory / "squashfs").read_bytes()


def _ext(directory: Path) -> bytes:
    for name in ("upper", "work"):
        (directory / "layout" / name).mkdir(parents=True)
    file = directory / "ext"
    subprocess.run(["truncate", "-s", "1M", str(file)], check=True)
    subprocess.run(["mkfs.ext3", "-q", "-F", "-d", str(directory / "layout"), str(file)], check=True)
    return file.read_bytes()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole image of each kind."""
    directory = tmp_path_factory.mktemp("images")
    squashfs, ext = _squashfs(directory), _ext(directory)
    parts = [
        Entry(content=squashfs, filesystem=SQUASHFS, use=PRIMARY),
        Entry(content=ext, filesystem=EXT, use=OVERLAY),
    ]
    return {"squashfs": squashfs, "ext": ext, "sif": Layout(parts).bytes()}


HEADS = {
    "squashfs": range(96),
    "ext": range(1024, 1024 + 512),
    "sif": [
        *range(128),
        *range(TABLE, TABLE + 73),
        *range(TABLE + ROW, TABLE + ROW + 73),
        *range(TABLE + 201, TABLE + 212),
    ],
}
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from((1, 2, 4, 8)), st.sampled_from(NUMBERS)), max_size=4
)
"""Where in the head, as a part of it, how many bytes, and what."""


def _changed(whole: bytes, kind: str, changes: list[tuple[float, int, int]], cut: float) -> bytes:
    data = bytearray(whole)
    places = HEADS[kind]
    for part, size, number in changes:
        at = places[int(part * len(places))]
        data[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(data[: int(len(data) * cut)])


def _uses(path: Path) -> list[Callable[[], object]]:
    """Everything that looks into a header."""

    def look(writable: bool) -> None:
        def none_is_made(mounted: object) -> None:
            raise AssertionError("nothing is mounted to look")

        found = stack.open_image(str(path), "lower directory", none_is_made, writable=writable)
        try:
            found.look_at(writable=writable)
        finally:
            os.close(found.fd)

    def info() -> None:
        for options in ([], ["--json"]):
            done = image("info", *options, path)
            assert done.code in (ExitCode.OK, ExitCode.LAYERS), done
            assert done.err.count("\n") == (done.code != ExitCode.OK) and "Traceback" not in done.err, done

    def opened() -> None:
        with ExitStack() as closing:
            found = open_image(closing, str(path), Access.READ)
            found.require_ext()
            recognise.check_whole(found.path, recognise.Kind.EXT, found.fd, found.offset, found.size)
            ext_state.state_of(found.fd, found.offset)

    return [lambda: look(False), lambda: look(True), info, opened]


@pytest.mark.parametrize("kind", HEADS)
@settings(max_examples=150, deadline=None)
@given(changes=CHANGES, cut=st.sampled_from((1.0, 1.0, 1.0, 0.9, 0.5, 0.01, 0.0)))
def test_there_is_one_line_at_most(
    images: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    changes: list[tuple[float, int, int]],
    cut: float,
) -> None:
    path = tmp_path_factory.getbasetemp() / f"hostile-{kind}"
    path.write_bytes(_changed(images[kind], kind, changes, cut))
    pread, read = os.pread, [0]

    def bounded(fd: int, size: int, offset: int) -> bytes:
        assert 0 <= offset < 1 << 63 and size >= 0
        read[0] += size
        assert read[0] <= 2 * MOST_READ, "too much is read"
        return pread(fd, size, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", bounded)
        # What debugfs says is parsed; that it may be given anything is its own affair, and bounded in time.
        patch.setattr(programs, "run", _no_program)
        for use in _uses(path):
            read[0] = 0
            refused = _refused(use)
            assert refused is None or refused.exit_code in (ExitCode.LAYERS, ExitCode.BUSY), refused


def _refused(use: Callable[[], object]) -> UserError | None:
    """The one line with which something is refused; None where it is not."""
    try:
        use()
    except UserError as refused:
        told = refused
    else:
        return None
    assert "\n" not in told.message
    return told


def _no_program(*arguments: object, **more: object) -> tuple[int, str]:
    raise UserError("there is none", ExitCode.UNAVAILABLE)


def _list(path: Path) -> None:
    with ExitStack() as closing:
        closing.enter_context(suppress(OSError))  # what is in it cannot be read
        os.listdir(closing.enter_context(inside(open_image(closing, str(path), Access.READ))))


@pytest.mark.mount
@pytest.mark.actors("user")
@pytest.mark.parametrize("kind", HEADS)
def test_the_programs_are_contained(arena: Arena, images: dict[str, bytes], kind: str) -> None:
    """squashfuse, fuse2fs and debugfs get to see what our own looks let pass."""
    path = arena.root / "image"
    passed = 0
    for seed in range(40):
        at, size, number = seed / 40, (1, 2, 4, 8)[seed % 4], NUMBERS[seed * 5 % len(NUMBERS)]
        path.write_bytes(_changed(images[kind], kind, [(at, size, number)], 1.0))
        before = path.read_bytes()
        passed += _refused(partial(_list, path)) is None
        done = image("info", path)
        assert done.code in (ExitCode.OK, ExitCode.LAYERS) and done.err.count("\n") == (done.code != ExitCode.OK), done
        assert path.read_bytes() == before
    assert 0 < passed < 40
