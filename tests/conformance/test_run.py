"""Containers on the mount program: what runs, what is written, what a diff and a commit make of it."""

from __future__ import annotations

import re
import time

import pytest

from tests.conformance.workshop import BASE, Workshop
from tests.support.product import substitute
from tests.support.store import Store

pytestmark = pytest.mark.conformance

CHANGES = """
echo new >/etc/new
echo more >>/etc/bash.bashrc
rm /etc/issue
rm -r /usr/share/doc
mv /usr/share/perl5 /usr/share/perl
chown games /etc/hosts.allow 2>/dev/null || chown games /etc/passwd
chmod 600 /etc/shells
touch -d 2001-02-03 /etc/profile
ln /usr/bin/env /usr/bin/env2
mkfifo /var/queue
mkdir /var/empty && chmod 1777 /var/empty
cat /etc/fstab /etc/os-release >/dev/null
"""


def test_the_root_is_ours(store: Store) -> None:
    mounts = store.podman("run", "--rm", BASE, "cat", "/proc/self/mounts")
    root = mounts.splitlines()[0].split()
    expected = "fuse.fuse-overlayfs" if substitute() else "fuse.fuseunion"
    assert root[1:3] == ["/", expected]


def test_podman_info_shows_the_version(store: Store) -> None:
    info = store.podman("info", "--format", "json")
    assert re.search(r'"Executable": ".*/bin/fuse', info)
    assert re.search(r'"Version": ".*\d+\.\d+', info)


def test_nothing_keeps_podman_waiting(store: Store) -> None:
    """podman waits until the last holder of the mount program's stderr is gone."""
    store.podman("run", "--rm", BASE, "true")
    begin = time.monotonic()
    store.podman("run", "--rm", BASE, "true")
    assert time.monotonic() - begin < 5


@pytest.fixture(scope="module")
def changed(native: Store, store: Store) -> tuple[Store, Store]:
    """Both stores with a stopped container `changed`."""
    for each in (native, store):
        each.podman("rm", "--force", "--ignore", "changed")
        each.podman("run", "--name", "changed", BASE, "sh", "-euc", CHANGES)
    return native, store


def test_diff_of_a_container(changed: tuple[Store, Store]) -> None:
    """The same names as native overlay gives, which also lists what was copied up without a change."""
    expected, got = (set(store.podman("diff", "changed").splitlines()) for store in changed)
    assert {line for line in got if line[0] == "A"} == {line for line in expected if line[0] == "A"}
    assert {line for line in got if line[0] == "D"} >= {line for line in expected if line[0] == "D"}
    assert {line for line in got if line[0] == "C"} <= {line for line in expected if line[0] == "C"}
    for path in ("/etc/bash.bashrc", "/etc/passwd", "/etc/shells", "/etc/profile"):
        assert f"C {path}" in got


def test_commit(changed: tuple[Store, Store], workshop: Workshop) -> None:
    """The committed image holds the changes: its tree is the native one's."""
    states = []
    for store in changed:
        store.podman("commit", "--quiet", "changed", "localhost/committed")
        states.append(workshop.save(store, "localhost/committed").states()[-1])
    timeless = [{path: entry._replace(mtime=0) for path, entry in state.items()} for state in states]
    assert timeless[1] == timeless[0]
    assert states[1]["etc/profile"].mtime == states[0]["etc/profile"].mtime


def test_the_committed_image_runs_again(changed: tuple[Store, Store]) -> None:
    _, store = changed
    store.podman("commit", "--quiet", "changed", "localhost/again")
    check = "cat /etc/new; ls /usr/share/perl | head -1; test ! -e /etc/issue; test ! -e /usr/share/perl5"
    assert store.podman("run", "--rm", "localhost/again", "sh", "-euc", check).startswith("new\n")


def test_exec_start_and_stop(store: Store) -> None:
    store.podman("run", "--detach", "--name", "server", BASE, "sleep", "1000")
    store.podman("exec", "server", "sh", "-c", "echo kept >/srv/file")
    store.podman("stop", "--time=0", "server")
    store.podman("start", "server")
    assert store.podman("exec", "server", "cat", "/srv/file") == "kept\n"
    store.podman("cp", "server:/srv/file", store.directory / "copied")
    assert store.login.output("cat", store.directory / "copied") == "kept\n"
    store.podman("rm", "--force", "--time=0", "server")


def test_twelve_containers_at_once(store: Store) -> None:
    names = [f"many{number}" for number in range(12)]
    for name in names:
        store.podman("run", "--detach", "--name", name, BASE, "sh", "-c", f"echo {name} >/etc/name; exec sleep 1000")
    for name in names:
        assert store.podman("exec", name, "cat", "/etc/name") == f"{name}\n"
    store.podman("rm", "--force", "--time=0", *names)


def test_save_and_load(store: Store) -> None:
    archive = store.directory / "base.tar"
    store.podman("save", "--quiet", "--format=oci-archive", "--output", archive, BASE)
    store.podman("tag", BASE, "localhost/kept")
    loaded = store.podman("load", "--quiet", "--input", archive)
    assert BASE in loaded
    assert store.podman("run", "--rm", BASE, "cat", "/etc/os-release").startswith("PRETTY_NAME")
