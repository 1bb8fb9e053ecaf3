"""The layers in a file: one layer, or an image as `podman save`, `docker save` and `skopeo copy` write it.

    docker-archive   manifest.json names the configuration and the layers
    oci-archive      index.json leads to a manifest, that to the layers; each blob is named by its digest

An image is read in any order, so it has to be a file that is not compressed itself. What its digests say of the layers
is checked while they are read.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import stat
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from fuseunion.errors import ExitCode, UserError
from fuseunion.offline.archive.compression import decompressed, is_damage
from fuseunion.offline.archive.tar_reader import DamagedError, Members

STDIN = "-"
_LARGEST_JSON = 1 << 22
_MOST_MEMBERS = 100_000
_PIECE = 1 << 18


class _NotUsableError(Exception):
    """Why an image cannot be read, in a few words."""


class Layer(NamedTuple):
    """One layer in a file.

    Attributes:
        label: how messages name it.
        offset, size: where it is; None for up to the end.
        digest: of it as it lies there; None where nothing says so.
        diff_id: of what it is uncompressed; None where nothing says so.
    """

    label: str
    offset: int = 0
    size: int | None = None
    digest: str | None = None
    diff_id: str | None = None


def layers_in(path: str) -> list[Layer]:
    """The layers of a file, lowest first; of a file that is no image, that file.

    Raises:
        UserError: LAYERS for an image that cannot be used; OSError.
    """
    if path == STDIN or not stat.S_ISREG(os.stat(path).st_mode):
        return [Layer("the standard input" if path == STDIN else path)]
    try:
        with open(path, "rb") as file:
            members = _members(file)
            if "oci-layout" in members and "index.json" in members:
                return _oci(path, file, members)
            if "manifest.json" in members:
                found = _docker(path, file, members)
                if found is not None:
                    return found
    except _NotUsableError as error:
        raise UserError(f"'{path}' is an image that cannot be used: {error}", ExitCode.LAYERS) from None
    return [Layer(path)]


@contextmanager
def opened(path: str, layer: Layer) -> Iterator[BinaryIO]:
    """A layer, uncompressed, to read in the block; its digests are checked at the end of it.

    Raises:
        UserError: LAYERS for one that is not what the image says.
    """
    if path == STDIN:
        yield decompressed(cast(io.BufferedReader, sys.stdin.buffer))
        return
    with open(path, "rb", buffering=0) as file:
        if layer.offset:
            file.seek(layer.offset)
        outside = _Checked(file, layer.size)
        inside = _Checked(decompressed(io.BufferedReader(outside, _PIECE)), None)
        yield cast(BinaryIO, inside)
        for checked, digest in ((inside, layer.diff_id), (outside, layer.digest)):
            if digest is not None and checked.digest() != digest:
                raise UserError(f"'{layer.label}' is damaged: it is not what its digest {digest} says", ExitCode.LAYERS)


class _Checked(io.RawIOBase):
    """Hands on what is read, and keeps its SHA-256.

    Args:
        size: how many bytes there are; None for all.
    """

    def __init__(self, source: Any, size: int | None) -> None:
        self._source = source
        self._rest = size
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        if self._rest is not None:
            size = min(size, self._rest)
        data = cast(bytes, self._source.read(size)) if size else b""
        if self._rest is not None:
            self._rest -= len(data)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """Of everything, what nobody has read yet included; of what is damaged, another one."""
        try:
            while self.read(_PIECE):
                pass
        except Exception as error:
            if not is_damage(error):
                raise
        return f"sha256:{self._hash.hexdigest()}"


# -- images ----------------------------------------------------------------------------------------------------------


def _members(file: BinaryIO) -> dict[str, tarfile.TarInfo]:
    """The members of an archive by name; none for a compressed one, and for what is none."""
    found: dict[str, tarfile.TarInfo] = {}
    try:
        # An image has few members, and begins with one of these; a layer may have millions.
        for member in Members(file):
            name = posixpath.normpath(member.name)
            if (not found and not _begins_image(name)) or len(found) == _MOST_MEMBERS:
                return {}
            found[name] = member
    except DamagedError:
        return {}
    return found


def _begins_image(name: str) -> bool:
    first = name.split("/")[0]
    known = first in ("blobs", "index.json", "oci-layout", "manifest.json", "repositories")
    return known or (len(first.split(".")[0]) == 64 and set(first.split(".")[0]) <= set("0123456789abcdef"))


def _json(file: BinaryIO, members: dict[str, tarfile.TarInfo], name: str) -> Any:
    member = members.get(name)
    if member is None or not member.isreg() or member.size > _LARGEST_JSON:
        raise _NotUsableError(f"'{name}' is missing in it")
    file.seek(member.offset_data)
    try:
        return json.loads(file.read(member.size))
    except (ValueError, RecursionError):
        raise _NotUsableError(f"'{name}' in it is malformed") from None


def _oci(path: str, file: BinaryIO, members: dict[str, tarfile.TarInfo]) -> list[Layer]:
    try:
        manifests = _json(file, members, "index.json")["manifests"]
        manifest = _json(file, members, _blob(_only(manifests)["digest"]))
        config = _json(file, members, _blob(manifest["config"]["digest"]))
        diff_ids = config["rootfs"]["diff_ids"]
        return [
            _layer(path, members, _blob(layer["digest"]), layer["digest"], diff_id)
            for layer, diff_id in zip(manifest["layers"], diff_ids, strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise _NotUsableError("its manifest is malformed") from None


def _docker(path: str, file: BinaryIO, members: dict[str, tarfile.TarInfo]) -> list[Layer] | None:
    """None for a layer that happens to have a file of that name."""
    manifests = _json(file, members, "manifest.json")
    if not isinstance(manifests, list) or not all(isinstance(each, dict) and "Layers" in each for each in manifests):
        return None
    try:
        manifest = _only(manifests)
        diff_ids = _json(file, members, posixpath.normpath(manifest["Config"]))["rootfs"]["diff_ids"]
        return [
            _layer(path, members, posixpath.normpath(name), None, diff_id)
            for name, diff_id in zip(manifest["Layers"], diff_ids, strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _NotUsableError("its manifest is malformed") from None


def _only(manifests: list[Any]) -> Any:
    if len(manifests) != 1:
        raise _NotUsableError(f"it holds {len(manifests)} images; save one alone")
    return manifests[0]


def _blob(digest: str) -> str:
    algorithm, _, number = digest.partition(":")
    if algorithm != "sha256":
        raise _NotUsableError(f"the digest {digest[:100]!r} is not sha256")
    return f"blobs/sha256/{number}"


def _layer(path: str, members: dict[str, tarfile.TarInfo], name: str, digest: str | None, diff_id: str) -> Layer:
    member = members.get(name)
    if member is not None and member.issym():  # docker links a layer that two images have
        member = members.get(posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname)))
    if member is None or not member.isreg() or not isinstance(diff_id, str):
        raise _NotUsableError(f"its layer '{name}' is missing")
    return Layer(f"{path}: {name}", member.offset_data, member.size, digest, diff_id)
