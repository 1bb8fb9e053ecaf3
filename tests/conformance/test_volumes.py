"""Directories and images as volumes with an overlay: `-v DIR:/x:O` and `--mount type=image`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.workshop import BASE
from tests.support.store import Store

pytestmark = pytest.mark.conformance


@pytest.fixture
def source(store: Store) -> Path:
    """A directory of the user."""
    directory = store.directory / "source"
    store.run(
        "sh",
        "-euc",
        f"rm -rf {directory}; mkdir -p {directory}/sub; echo old >{directory}/sub/file; echo x >{directory}/gone",
    )
    return directory


def test_overlay_volume(store: Store, source: Path) -> None:
    script = """
        echo new >/x/sub/file
        rm /x/gone
        touch /x/made
        mv /x/sub /x/moved
        cat /x/moved/file
        ls /x
        grep ' /x ' /proc/mounts
    """
    output = store.podman("run", "--rm", f"--volume={source}:/x:O", BASE, "sh", "-euc", script)
    lines = output.splitlines()
    assert lines[:3] == ["new", "made", "moved"]
    assert "fuse" in lines[3]
    assert store.run("sh", "-c", f"cat {source}/sub/file {source}/gone; ls {source}").stdout.split() == [
        "old",
        "x",
        "gone",
        "sub",
    ]


def test_an_image_as_a_volume(store: Store) -> None:
    script = "cat /img/etc/os-release; touch /img/etc/new 2>&1 || echo refused"
    output = store.podman("run", "--rm", f"--mount=type=image,source={BASE},destination=/img", BASE, "sh", "-c", script)
    assert output.startswith("PRETTY_NAME")
    assert output.endswith("refused\n")


def test_a_writable_image_as_a_volume(store: Store) -> None:
    mount = f"--mount=type=image,source={BASE},destination=/img,rw=true"
    output = store.podman(
        "run",
        "--rm",
        mount,
        BASE,
        "sh",
        "-euc",
        "echo y >>/img/etc/issue; rm -r /img/usr/share/doc; tail -1 /img/etc/issue",
    )
    assert output == "y\n"
    assert store.podman("run", "--rm", BASE, "ls", "-d", "/usr/share/doc") == "/usr/share/doc\n"


def test_a_root_directory_with_overlay(store: Store) -> None:
    """`--rootfs DIR:O`: a container over a plain directory, which stays as it is."""
    root = store.directory / "rootfs"
    store.run("mkdir", root)
    name = store.podman("create", BASE, "true").strip()
    store.podman("export", "--output", store.directory / "root.tar", name)
    store.podman("rm", name)
    store.run("podman", "unshare", "tar", "-C", root, "-xf", store.directory / "root.tar")
    output = store.podman(
        "run", "--rm", "--rootfs", f"{root}:O", "sh", "-c", "echo changed >/etc/issue; cat /etc/issue"
    )
    assert output == "changed\n"
    assert "changed" not in store.run("cat", root / "etc/issue").stdout
    store.run("podman", "unshare", "rm", "-rf", root)
