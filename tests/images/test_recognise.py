"""The kind of an image is told by its content, whatever its name, and nothing but a regular file is opened."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.recognise import Kind, check_whole, kind_of, kind_of_head, open_file


def _squashfs(path: Path) -> bytes:
    (path / "tree").mkdir()
    (path / "tree" / "file").write_text("x")
    made = path / "made"
    subprocess.run(["mksquashfs", path / "tree", made, "-quiet", "-no-progress"], check=True, capture_output=True)
    return made.read_bytes()


def _ext(path: Path, size: int = 1 << 20) -> bytes:
    made = path / "made"
    made.write_bytes(bytes(size))
    subprocess.run(["mkfs.ext4", "-q", "-F", made], check=True, capture_output=True)
    return made.read_bytes()


def _tar(form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        archive.addfile(tarfile.TarInfo("file"))
    return buffer.getvalue()


def _sif() -> bytes:
    return b"#!/usr/bin/env run-singularity\n".ljust(32, b"\0") + b"SIF_MAGIC\0" + b"01\0" + bytes(4096)


@contextmanager
def _file(path: Path, data: bytes) -> Iterator[int]:
    path.write_bytes(data)
    fd = open_file(str(path))
    yield fd
    os.close(fd)


def test_each_kind(tmp_path: Path) -> None:
    made = {
        "a": (_squashfs(tmp_path), Kind.SQUASHFS),
        "b.tar": (_ext(tmp_path), Kind.EXT),
        "c.img": (_sif(), Kind.SIF),
        "d.sqfs": (_tar(), Kind.TAR),
        "e": (_tar(tarfile.GNU_FORMAT), Kind.TAR),
        "f": (gzip.compress(_tar()), Kind.TAR),
        "g": (bz2.compress(_tar()), Kind.TAR),
        "h": (lzma.compress(_tar()), Kind.TAR),
        "i.ext4": (b"text", None),
        "j.sif": (b"", None),
    }
    for name, (data, kind) in made.items():
        with _file(tmp_path / name, data) as fd:
            assert kind_of(fd) is kind, name


def test_an_image_that_begins_somewhere_within(tmp_path: Path) -> None:
    data = _squashfs(tmp_path)
    with _file(tmp_path / "image", bytes(8192) + data) as fd:
        assert kind_of(fd) is None
        assert kind_of(fd, 8192) is Kind.SQUASHFS
        for offset in (-1, 1 << 40, 1 << 62, 1 << 63, 1 << 80):
            assert kind_of(fd, offset) is None


def test_an_image_in_an_archive_is_an_archive() -> None:
    head = bytearray(_tar()[:2048].ljust(2048, b"\0"))
    head[1080:1082] = b"\x53\xef"
    assert kind_of_head(bytes(head)) is Kind.TAR


def test_links_of_the_user_are_followed(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(_sif())
    (tmp_path / "link").symlink_to("image")
    fd = open_file(str(tmp_path / "link"))
    assert kind_of(fd) is Kind.SIF
    os.close(fd)


def test_only_a_regular_file_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(NotADirectoryError):
                open_file(str(path))
    with pytest.raises(IsADirectoryError):
        open_file(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        open_file(str(tmp_path / "missing"))


def test_whole_images_pass(tmp_path: Path) -> None:
    for data, kind in ((_squashfs(tmp_path), Kind.SQUASHFS), (_ext(tmp_path), Kind.EXT)):
        with _file(tmp_path / "image", data) as fd:
            check_whole("image", kind, fd)
        with _file(tmp_path / "image", bytes(4096) + data + bytes(4096)) as fd:
            check_whole("image", kind, fd, 4096, len(data))


def _with(data: bytes, offset: int, form: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


def test_what_is_cut_short_or_forged_is_refused(tmp_path: Path) -> None:
    squashfs, ext = _squashfs(tmp_path), _ext(tmp_path)
    cases = [
        (Kind.SQUASHFS, squashfs[:100], "cut short"),
        (Kind.SQUASHFS, squashfs[:50], "damaged"),
        (Kind.SQUASHFS, _with(squashfs, 40, "<Q", 2**64 - 1), "cut short"),
        (Kind.SQUASHFS, _with(squashfs, 28, "<H", 3), "version 3"),
        (Kind.EXT, ext[: len(ext) // 2], "cut short"),
        (Kind.EXT, ext[:1500], "damaged"),
        (Kind.EXT, _with(ext, 1024 + 4, "<I", 2**32 - 1), "cut short"),
        (Kind.EXT, _with(ext, 1024 + 24, "<I", 2**31), "damaged"),
    ]
    for kind, data, said in cases:
        with _file(tmp_path / "image", data) as fd, pytest.raises(UserError, match=said) as refused:
            check_whole("image", kind, fd)
        assert refused.value.exit_code is ExitCode.LAYERS
        assert "\n" not in refused.value.message


def test_a_partition_ends_where_it_is_said_to_end(tmp_path: Path) -> None:
    data = _squashfs(tmp_path)
    with _file(tmp_path / "image", data), pytest.raises(UserError, match="cut short"):
        fd = open_file(str(tmp_path / "image"))
        try:
            check_whole("image", Kind.SQUASHFS, fd, 0, 64)
        finally:
            os.close(fd)
