"""Containers in user namespaces of their own: ids are shown shifted, and lie on disk as the image has them."""

from __future__ import annotations

import pytest

from tests.conformance.workshop import BASE, Workshop
from tests.support.store import Store

pytestmark = pytest.mark.conformance

LOOK = "stat -c '%n %u:%g %a' /etc/passwd /etc/shadow /usr/bin/passwd /var/mail"
MAPS = {
    "keep-id": ("--userns=keep-id",),
    "uidmap": ("--uidmap=0:1:5000", "--gidmap=0:1:5000"),
    "uidmap-two-ranges": ("--uidmap=0:1:100", "--uidmap=100:2000:4000", "--gidmap=0:1:5000"),
}


@pytest.fixture(params=list(MAPS.values()), ids=list(MAPS))
def maps(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options that ask for a user namespace."""
    options: tuple[str, ...] = request.param
    return options


def test_owners_are_the_image_s(native: Store, store: Store, maps: tuple[str, ...]) -> None:
    assert store.podman("run", "--rm", *maps, BASE, "sh", "-c", LOOK) == native.podman(
        "run", "--rm", BASE, "sh", "-c", LOOK
    )


def test_what_is_made_is_stored_unshifted(workshop: Workshop, store: Store, maps: tuple[str, ...]) -> None:
    script = """
        mkdir /made
        cd /made
        touch a b c
        chown 7:8 a
        chown games:mail b
        chmod 4711 b
        chown daemon /etc/shells
    """
    store.podman("run", "--replace", "--name=made", "--user=0", *maps, BASE, "sh", "-euc", script)
    store.podman("commit", "--quiet", "made", "localhost/made")
    store.podman("rm", "made")
    state = workshop.save(store, "localhost/made").states()[-1]
    owners = {path: (state[path].uid, state[path].gid) for path in ("made/a", "made/b", "made/c", "etc/shells")}
    assert owners == {"made/a": (7, 8), "made/b": (5, 8), "made/c": (0, 0), "etc/shells": (1, 0)}
    assert state["made/b"].mode == 0o4711


def test_keep_id_is_the_caller(store: Store) -> None:
    uid = store.login.output("id", "-u").strip()
    made = store.podman("run", "--rm", "--userns=keep-id", BASE, "sh", "-c", "id -u; touch /tmp/x; stat -c %u /tmp/x")
    assert made.split() == [uid, uid]


def test_lower_owners_on_disk_do_not_change(store: Store) -> None:
    """Nothing in the image's layer belongs to another id after a shifted container has changed owners."""
    layer = store.podman("image", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", BASE).strip()
    owners = ("podman", "unshare", "find", layer, "-printf", "%U:%G %P\\n")
    before = store.run(*owners).stdout
    store.podman("run", "--rm", "--uidmap=0:1:5000", BASE, "chown", "-R", "games:games", "/etc", "/var/lib")
    assert store.run(*owners).stdout == before
