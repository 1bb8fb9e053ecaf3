"""podman and skopeo read what export makes, and import reads what they make."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.layers.commands import done, fuseunion
from tests.support.interpreter import Interpreter
from tests.support.layers import File, Mark, Opacity, Opaque, Whiteout, build
from tests.support.mounts import escaped
from tests.support.store import Store
from tests.support.tiny_base import tiny_store
from tests.support.tree import Tree, differences, snapshot
from tests.support.user import User

pytestmark = pytest.mark.root

CONTAINERFILE = """
FROM localhost/tiny
RUN mkdir /opt/made && echo made >/opt/made/file && chown -R app /opt/made && chmod 4711 /opt/made/file
RUN mv /opt/data /opt/moved && rm /opt/moved/one && ln /opt/moved/deep/two /opt/second && ln -s two /opt/moved/link
RUN mkdir /opt/data && echo again >/opt/data/one && rm -r /opt/moved && mkdir /opt/moved && touch /opt/moved/new
"""

UPPER = {
    "opt/data/one": Whiteout(Mark.DEVICE),
    "opt/data/deep": Opaque(Opacity.TRUSTED),
    "opt/data/deep/three": File(b"three\n"),
    "etc/hole": File(b"begin", size=1 << 22),
    "etc/owned": File(b"x", uid=1500, gid=1500, mode=0o640, xattrs={"user.x": b"\0\xff"}),
}

SCRIPT = "ls /opt/data /opt/data/deep; cat /opt/data/deep/three; stat -c '%s %u %a' /etc/hole /etc/owned"
SHOWN = ["/opt/data:", "deep", "/opt/data/deep:", "three", "three", "4194304", "0", "644", "1", "1500", "640"]


@pytest.fixture(scope="module")
def store(scratch: Path, user: User, reachable_interpreter: Interpreter) -> Iterator[Store]:
    """A rootless store with fuseunion as the mount program and a small base image."""
    with tiny_store(scratch / "podman-layers", user, reachable_interpreter) as store:
        yield store


@pytest.fixture
def layers(store: Store, tmp_path: Path) -> tuple[Path, Path]:
    """The base as a lower directory, and an upper over it."""
    tmp_path.chmod(0o755)
    return store.directory.parent / "tiny", build(tmp_path / "upper", UPPER)


def _given(store: Store, path: Path) -> Path:
    """A file in the store's own directory, where its user may read it."""
    target = store.directory / "tmp" / path.name
    shutil.move(path, target)
    target.chmod(0o644)
    return target


def test_load_and_run(store: Store, layers: tuple[Path, Path], tmp_path: Path) -> None:
    base, upper = layers
    made = tmp_path / "image.tar"
    done("export", upper, "--lower", escaped(base), "--format", "oci-archive", "--name", "made:1", "-o", made)
    again = tmp_path / "again.tar"
    done("export", upper, "--lower", escaped(base), "--format", "oci-archive", "--name", "made:1", "-o", again)
    assert made.read_bytes() == again.read_bytes()
    archive = _given(store, made)
    store.podman("load", "--quiet", "--input", archive)
    assert store.podman("run", "--rm", "localhost/made:1", "sh", "-euc", SCRIPT).split() == SHOWN
    copied = store.directory / "tmp/copy.tar"
    store.run("skopeo", "copy", "--insecure-policy", f"oci-archive:{archive}", f"docker-archive:{copied}:made:1")
    done("import", archive, tmp_path / "one")
    done("import", copied, tmp_path / "two")
    one, two = snapshot(tmp_path / "one"), snapshot(tmp_path / "two")
    del one[b"."], two[b"."]  # made by us, now
    assert not differences(one, two)
    done("commit", escaped(base), upper, tmp_path / "expected")
    assert not _differ(snapshot(tmp_path / "expected"), snapshot(tmp_path / "one"))


@pytest.mark.parametrize("name", ["layer.tar", "layer.tar.gz", "layer.tar.zst"])
@pytest.mark.parametrize("sparse", [False, True])
def test_import_of_one_layer(store: Store, layers: tuple[Path, Path], tmp_path: Path, name: str, sparse: bool) -> None:
    """A layer that is a whole root; holes in the form of GNU tar are understood by podman's tar reader too."""
    base, upper = layers
    done("commit", escaped(base), upper, tmp_path / "whole")
    done("export", tmp_path / "whole", *(["--sparse"] if sparse else []), "-o", tmp_path / name)
    store.podman("import", "--quiet", _given(store, tmp_path / name), "localhost/imported")
    assert store.podman("run", "--rm", "localhost/imported", "sh", "-euc", SCRIPT).split() == SHOWN
    store.podman("rmi", "localhost/imported")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_what_podman_saves(store: Store, tmp_path: Path, form: str) -> None:
    """An image of podman's own, unpacked by us and by podman and tar(1)."""
    containerfile = store.write("Containerfile", CONTAINERFILE)
    store.podman(
        "build", "--quiet", "--layers", "--tag=localhost/golden", "--file", containerfile, store.directory / "tmp"
    )
    saved, exported = store.directory / "tmp/saved.tar", store.directory / "tmp/exported.tar"
    saved.unlink(missing_ok=True)
    store.podman("save", "--quiet", "--format", form, "--output", saved, "localhost/golden")
    container = store.podman("create", "localhost/golden", "true").strip()
    store.podman("export", "--output", exported, container)
    store.podman("rm", container)
    done("import", saved, tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    subprocess.run(["tar", "-xpf", exported, "-C", tmp_path / "theirs", "--xattrs"], check=True)
    assert not _differ(snapshot(tmp_path / "theirs"), snapshot(tmp_path / "ours"))
    # One bit of a layer is another: in a file, or in what is compressed.
    data = bytearray(saved.read_bytes())
    data[data.index(b"made\n") if form == "docker-archive" else data.index(b"\x1f\x8b\x08") + 100] ^= 1
    (tmp_path / "damaged.tar").write_bytes(data)
    said = fuseunion("import", tmp_path / "damaged.tar", tmp_path / "damaged")
    assert said.code == 3 and (form == "oci-archive" or "it is not what its digest" in said.err), said
    assert not (tmp_path / "damaged").exists()


def _differ(expected: Tree, got: Tree) -> list[str]:
    """Differences, but for what podman puts into a container, and for times within a second."""
    own = (
        b"run",
        b"etc/hosts",
        b"etc/resolv.conf",
        b"etc/hostname",
        b"etc/mtab",
        b"proc",
        b"sys",
        b"dev",
        b".",
        b"etc",
    )
    fields = ("kind", "mode", "uid", "gid", "size", "content", "rdev", "xattrs", "links")

    def kept(tree: Tree) -> Tree:
        return {path: entry for path, entry in tree.items() if path not in own and not path.startswith(b"run/")}

    return differences(kept(expected), kept(got), fields)


def test_skopeo_and_the_digest(store: Store, layers: tuple[Path, Path], tmp_path: Path) -> None:
    """What is printed as the digest is that of the manifest."""
    base, upper = layers
    told = done("export", upper, "--lower", escaped(base), "--format", "oci-archive", "-o", tmp_path / "image.tar")
    digest = next(line.split()[1] for line in told.splitlines() if line.startswith("digest:"))
    archive = _given(store, tmp_path / "image.tar")
    assert store.run("skopeo", "inspect", "--format", "{{.Digest}}", f"oci-archive:{archive}").stdout.strip() == digest
    assert os.path.getsize(archive) > 1000
