"""A container image in one file: layers, a configuration and a manifest (OCI image specification, image-layout.md).

What `podman load` and `skopeo copy oci-archive:` read. Each blob is named by its digest; index.json leads to the
manifest, that to the rest.
"""

from __future__ import annotations

import json
import os
import platform
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from fuseunion.offline.archive.output import Measured
from fuseunion.offline.archive.tar_writer import Member, TarWriter

_PIECE = 1 << 20
_TYPE = "application/vnd.oci.image."
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm", "i686": "386", "i386": "386"}
"""What images call machines that Linux calls otherwise (Go's GOARCH)."""

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LayerBlob(NamedTuple):
    """A layer that has been written to a file.

    Attributes:
        file: holds the blob.
        digest, size: of the blob.
        diff_id: the digest of the layer as it is uncompressed.
    """

    file: BinaryIO
    digest: str
    size: int
    diff_id: str


def write_image(write: Callable[[bytes], object], layers: list[LayerBlob], name: str, mtime_ns: int) -> str:
    """Write an image.

    Args:
        write: takes the bytes of the archive.
        layers: lowest first; each compressed by gzip.
        name: NAME:TAG.
        mtime_ns: of the files in the archive.

    Returns:
        The digest of the manifest.
    """
    machine = platform.machine()
    config = _json({
        "architecture": _GO_NAMES.get(machine, machine),
        "os": "linux",
        "config": {"Env": [_PATH]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    })  # fmt: skip
    manifest = _json({
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}manifest.v1+json",
        "config": _descriptor("config.v1+json", config),
        "layers": [
            {"mediaType": f"{_TYPE}layer.v1.tar+gzip", "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    })  # fmt: skip
    named = _descriptor("manifest.v1+json", manifest) | {"annotations": {"org.opencontainers.image.ref.name": name}}
    tar = TarWriter(write)

    def put(path: str, size: int, data: Iterator[bytes]) -> None:
        tar.add(Member(os.fsencode(path), tarfile.REGTYPE, 0o644, mtime_ns=mtime_ns, size=size), data)

    for directory in ("blobs", "blobs/sha256"):
        tar.add(Member(os.fsencode(directory), tarfile.DIRTYPE, 0o755, mtime_ns=mtime_ns))
    seen = set()
    for layer in layers:
        if layer.digest not in seen:  # two layers may be equal
            seen.add(layer.digest)
            put(_blob(layer.digest), layer.size, _pieces(layer.file))
    for content in (config, manifest):
        put(_blob(_digest(content)), len(content), iter((content,)))
    for path, content in (
        ("index.json", _json({"schemaVersion": 2, "manifests": [named]})),
        ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
    ):
        put(path, len(content), iter((content,)))
    tar.finish()
    return _digest(manifest)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(kind: str, content: bytes) -> dict[str, object]:
    return {"mediaType": f"{_TYPE}{kind}", "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    measured = Measured(lambda data: None)
    measured.write(content)
    return measured.digest


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece
