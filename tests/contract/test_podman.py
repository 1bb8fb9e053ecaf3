"""podman and buildah, briefly: a small image built, run, compared with its parent and committed.

The long form, on a Debian root and against native overlay, is tests/conformance.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interpreter import Interpreter
from tests.support.processes import command_line
from tests.support.store import Store
from tests.support.tiny_base import tiny_store
from tests.support.user import User
from tests.support.waiting import wait_until

CONTAINERFILE = """
FROM localhost/tiny
RUN mkdir /opt/made && echo made >/opt/made/file && chown -R app /opt/made
RUN mv /opt/data /opt/moved && rm /opt/moved/one
RUN mkdir /opt/data && echo again >/opt/data/one
USER app
"""


@pytest.fixture(scope="module")
def store(scratch: Path, user: User, reachable_interpreter: Interpreter) -> Iterator[Store]:
    """A rootless store with fuseunion as the mount program and a small base image."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to prepare the namespace in which rootless podman works")
    if shutil.which("podman") is None:
        pytest.skip("podman is missing: run scripts/setup-conformance")
    with tiny_store(scratch / "podman", user, reachable_interpreter) as store:
        yield store


def test_build_and_run(store: Store) -> None:
    containerfile = store.write("Containerfile", CONTAINERFILE)
    store.podman("build", "--quiet", "--tag=localhost/small", "--file", containerfile, store.directory / "tmp")
    script = "cat /opt/made/file /opt/data/one /opt/moved/deep/two; ls /opt/data /opt/moved; stat -c %u /opt/made"
    output = store.podman("run", "--rm", "localhost/small", "sh", "-euc", script)
    assert output.split() == ["made", "again", "two", "/opt/data:", "one", "/opt/moved:", "deep", "1500"]


def test_diff_and_commit(store: Store) -> None:
    script = "echo x >>/etc/passwd; rm -r /opt/data/deep; touch /new; mv /opt/data /opt/other"
    store.podman("run", "--name=changed", "localhost/tiny", "sh", "-euc", script)
    lines = set(store.podman("diff", "changed").splitlines())
    assert {line for line in lines if not line.startswith(("A /run", "A /etc/", "C /etc", "C /run"))} == {
        "A /new",
        "A /opt/other",
        "A /opt/other/one",
        "C /opt",
        "D /opt/data",
    }
    assert "C /etc/passwd" in lines
    store.podman("commit", "--quiet", "changed", "localhost/committed")
    assert store.podman("run", "--rm", "localhost/committed", "ls", "/opt", "/opt/other").split() == [
        "/opt:",
        "other",
        "/opt/other:",
        "one",
    ]


def test_buildah_from_scratch(store: Store) -> None:
    store.write("made", "by hand\n")
    container = store.buildah("from", "scratch").strip()
    store.buildah("copy", "--quiet", container, store.directory / "made", "/made")
    store.buildah("commit", "--quiet", "--rm", container, "localhost/by-hand")
    assert store.podman("image", "exists", "localhost/by-hand") == ""


def test_the_containers_own_ids(store: Store) -> None:
    output = store.podman("run", "--rm", "--userns=keep-id", "localhost/tiny", "stat", "-c", "%u", "/etc/passwd")
    assert output == "0\n"


def _kill_daemons(store: Store) -> int:
    """Kill whoever serves a mount of this store, as the kernel does when memory is short; returns how many."""
    layers = f"lowerdir={store.directory}"
    found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if layers in str(command_line(pid))]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in found), "the daemons' end")
    return len(found)


def test_a_container_whose_daemon_was_killed_starts_again(store: Store) -> None:
    """podman itself stumbles over the dead mount, and says so; the remedy is the one of docs/howto-podman.md."""
    store.podman("create", "--name=dead", "localhost/tiny", "sh", "-c", "echo x >>/opt/count; cat /opt/count")
    store.podman("unshare", "podman", "mount", "dead")
    assert _kill_daemons(store) == 1
    assert "transport endpoint is not connected" in store.run("podman", "start", "--attach", "dead", check=False).stderr
    store.podman("unshare", "podman", "umount", "--force", "dead")
    assert store.podman("start", "--attach", "dead") == "x\n"
    assert store.podman("start", "--attach", "dead") == "x\nx\n", "nothing was lost"
