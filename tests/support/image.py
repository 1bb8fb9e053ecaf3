"""Container images as files: the layers of a `podman save --format docker-archive`, and what each layer does.

Two layers can say the same in different words: an engine that looks at overlayfs's upper directory lists everything
that was copied up and marks a directory opaque; one that walks two mounts (every engine with a mount program) lists
what differs and whites the old names out one by one. So layers are compared by their effect: `states` applies them one
after the other and gives the tree after each (OCI image-spec layer.md, "Applying Changesets").
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
XATTR = "SCHILY.xattr."
INTERNAL = ("user.overlay.", "user.fuseoverlayfs.")
"""Native overlay lets its own attributes slip into the layer; they are no part of the image."""

KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}


class Entry(NamedTuple):
    """One object of an image."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str
    xattrs: tuple[tuple[str, str], ...]
    mtime: int


State = Mapping[str, Entry]


@dataclass(frozen=True)
class Layer:
    """One layer, as its tar file says it. `links` are the hard links: name to name, both in this layer."""

    entries: Mapping[str, Entry]
    links: Mapping[str, str]
    whiteouts: frozenset[str]
    opaque: frozenset[str]

    def apply(self, below: State) -> dict[str, Entry]:
        """The tree after this layer."""

        def survives(path: str) -> bool:
            parents = _parents(path)
            hidden = path in self.whiteouts or any(
                parent in self.whiteouts
                or parent in self.opaque
                or (parent in self.entries and self.entries[parent].kind != "dir")
                for parent in parents
            )
            return not hidden

        state = {path: entry for path, entry in below.items() if survives(path)}
        state.update(self.entries)
        return state


@dataclass(frozen=True)
class Image:
    """An image: its configuration, and its layers from the base up."""

    config: Mapping[str, Any]
    layers: tuple[Layer, ...]

    def states(self) -> list[dict[str, Entry]]:
        """The tree after each layer."""
        state: dict[str, Entry] = {}
        found = []
        for layer in self.layers:
            state = layer.apply(state)
            found.append(state)
        return found

    def history(self) -> list[tuple[str, bool]]:
        """The commands that made it, and whether each made a layer."""
        return [(step.get("created_by", ""), not step.get("empty_layer", False)) for step in self.config["history"]]


def read_image(archive: Path) -> Image:
    """Read a docker-archive."""
    with tarfile.open(archive) as outer:
        manifest = json.load(_member(outer, "manifest.json"))[0]
        config = json.load(_member(outer, manifest["Config"]))
        layers = []
        for name in manifest["Layers"]:
            with tarfile.open(fileobj=_member(outer, name)) as inner:
                layers.append(_read_layer(inner))
    return Image(config, tuple(layers))


def changes(before: State, after: State) -> set[str]:
    """What `podman diff` prints between two trees: `A /added`, `C /changed`, `D /deleted`.

    A directory counts as changed when something in it did, whatever its time; below a deleted directory nothing is
    listed.
    """

    def same(path: str) -> bool:
        old, new = before[path], after[path]
        return old == new or (old.kind == new.kind == "dir" and old._replace(mtime=0) == new._replace(mtime=0))

    added = {path for path in after if path not in before}
    deleted = {
        path for path in before if path not in after and not (_parent(path) in before and _parent(path) not in after)
    }
    changed = {path for path in after if path in before and not same(path)}
    for path in added | deleted | changed:
        changed |= {parent for parent in _parents(path) if parent in before and parent in after}
    return (
        {f"A /{path}" for path in added}
        | {f"D /{path}" for path in deleted}
        | {f"C /{path}" for path in changed - added}
    )


def _read_layer(tar: tarfile.TarFile) -> Layer:
    entries: dict[str, Entry] = {}
    links: dict[str, str] = {}
    whiteouts, opaque = set(), set()
    for member in tar:
        path = posixpath.normpath(member.name.lstrip("/"))
        parent, name = posixpath.split(path)
        if name == OPAQUE:
            opaque.add(parent)
        elif name.startswith(WHITEOUT):
            whiteouts.add(posixpath.join(parent, name.removeprefix(WHITEOUT)))
        elif member.islnk():
            target = posixpath.normpath(member.linkname.lstrip("/"))
            links[path] = target
            entries[path] = entries[target]
        elif path != ".":
            entries[path] = _entry(tar, member)
    return Layer(entries, links, frozenset(whiteouts), frozenset(opaque))


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    content = member.linkname
    if member.isreg():
        file = tar.extractfile(member)
        assert file is not None
        content = hashlib.sha256(file.read()).hexdigest()
    elif member.isdev():
        content = f"{member.devmajor}:{member.devminor}"
    return Entry(
        kind=KINDS[member.type],
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        size=member.size,
        content=content,
        xattrs=tuple(
            sorted(
                (name.removeprefix(XATTR), value)
                for name, value in member.pax_headers.items()
                if name.startswith(XATTR) and not name.removeprefix(XATTR).startswith(INTERNAL)
            )
        ),
        mtime=int(member.mtime),
    )


def _member(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    assert file is not None, name
    return file


def _parent(path: str) -> str:
    return posixpath.dirname(path)


def _parents(path: str) -> list[str]:
    found = []
    while path := _parent(path):
        found.append(path)
    return found
