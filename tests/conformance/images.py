"""How two builds of one Containerfile differ: tree, history, and what each layer changed.

The time of a directory alone is no change for an engine that walks two mounts (containers/storage
pkg/archive/changes_unix.go, statDifferent), so a directory's time is compared where both layers hold the directory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping

from tests.conformance.workshop import Built
from tests.support.image import KINDS, Entry, State, changes

SHOWN = 40
UNREPORTED = {"/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc", "/run", "/sys"}
"""Where podman itself mounts things: `podman diff` never prints them (podman libpod/diff.go)."""


OUT_OF_REACH = "var/cache/apt/archives/partial"
"""With force_mask podman 4.3 stores mode 0700 for the root directory, and fuse-overlayfs shows it so too. Then the user
of apt cannot reach its directory, and leaves its time alone."""


def assert_same_build(expected: Built, got: Built, *, force_mask: bool = False) -> None:
    """The two images have the same history, and the same tree after each layer.

    Args:
        force_mask: leave out what that setting of podman loses; see `_masked`.
    """
    assert got.image.history() == expected.image.history()
    since = min(expected.started, got.started)
    assert len(got.image.layers) == len(expected.image.layers)
    for number, (wanted, seen) in enumerate(zip(expected.image.states(), got.image.states(), strict=True)):
        pair = [_timeless(state, since) for state in (wanted, seen)]
        lines = _differences(*map(_masked, pair) if force_mask else pair)
        shown = "\n  ".join(lines[:SHOWN])
        assert not lines, f"after layer {number}, {len(lines)} differences:\n  {shown}"
    for number, (ours, theirs) in enumerate(zip(got.image.layers, expected.image.layers, strict=True)):
        both = ours.entries.keys() & theirs.entries.keys()
        times = {path: (min(theirs.entries[path].mtime, since), min(ours.entries[path].mtime, since)) for path in both}
        wrong = {path: pair for path, pair in times.items() if pair[0] != pair[1]}
        if force_mask:
            wrong.pop(OUT_OF_REACH, None)
        assert not wrong, f"times in layer {number} (expected, got): {wrong}"


def assert_same_links(expected: Built, got: Built) -> None:
    """Names of one file within a layer are hard links in the layer."""
    for number, (wanted, seen) in enumerate(zip(expected.image.layers, got.image.layers, strict=True)):
        # Native overlay's layer also holds what was copied up only to be linked; a walking engine cannot see that.
        reachable = {name: target for name, target in wanted.links.items() if {name, target} <= seen.entries.keys()}
        groups = _groups(reachable), _groups(seen.links)
        assert groups[0] == groups[1], f"hard links of layer {number}"


def assert_nothing_superfluous(built: Built) -> None:
    """No layer repeats an object, other than a directory, that the layers below have already."""
    below: dict[str, Entry] = {}
    for number, layer in enumerate(built.image.layers):
        repeated = [path for path, entry in layer.entries.items() if entry.kind != "dir" and below.get(path) == entry]
        # A name of a hard-link group comes along with the others.
        repeated = [path for path in repeated if path not in layer.links and path not in layer.links.values()]
        assert repeated == [], f"layer {number} repeats what is below it"
        unknown = [path for path in layer.whiteouts if path not in below]
        assert unknown == [], f"layer {number} whites out what is not there"
        below = layer.apply(below)


def expected_changes(built: Built) -> set[str]:
    """What `podman diff` must print for the image: its last layer against the one below."""
    states = built.image.states()
    return {line for line in changes(states[-2], states[-1]) if line[2:] not in UNREPORTED}


def _timeless(state: State, since: int) -> State:
    """Times after `since` are those of the build, which are never the same twice; see above for directories."""
    return {
        path: entry._replace(mtime=0 if entry.kind == "dir" else min(entry.mtime, since))
        for path, entry in state.items()
    }


def _masked(state: State) -> State:
    """Without set-id and sticky bits, which podman 4.3 does not write into the stored owner (containers/storage
    archive.go, "%o" of the permissions), and without the owners of symbolic links: an xattr cannot hold them, and a
    layer that is read as a lower has no work directory with a database (docs/ownership.md)."""
    masked = {path: entry._replace(mode=entry.mode & 0o777) for path, entry in state.items()}
    return {
        path: entry._replace(uid=0, gid=0) if entry.kind == KINDS[tarfile.SYMTYPE] else entry
        for path, entry in masked.items()
    }


def _groups(links: Mapping[str, str]) -> set[frozenset[str]]:
    groups: dict[str, set[str]] = {}
    for name, target in links.items():
        groups.setdefault(target, {target}).add(name)
    return {frozenset(names) for names in groups.values()}


def _differences(expected: Mapping[str, Entry], got: Mapping[str, Entry]) -> list[str]:
    lines = []
    for path in sorted(expected.keys() | got.keys()):
        if path not in got:
            lines.append(f"{path}: missing ({expected[path].kind})")
        elif path not in expected:
            lines.append(f"{path}: should not be there ({got[path].kind})")
        else:
            lines += [
                f"{path}: {name}: expected {wanted!r}, got {seen!r}"
                for name, wanted, seen in zip(Entry._fields, expected[path], got[path], strict=True)
                if wanted != seen
            ]
    return lines
