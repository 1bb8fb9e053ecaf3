"""Options of storage.conf that reach a mount program: force_mask and mountopt."""

from __future__ import annotations

import pytest

from tests.conformance.images import assert_same_build
from tests.conformance.workshop import APP, BASE, Workshop
from tests.support.store import Driver, Store

pytestmark = pytest.mark.conformance

# Without the set-id and sticky bits, which podman 4.3 loses when it unpacks a layer under force_mask.
LOOK = "stat -c '%n %u:%g %a %F' /etc/passwd /etc/shadow /usr/bin/env /srv /bin; id -u games"


@pytest.fixture(scope="module")
def masked(workshop: Workshop) -> Store:
    """A store with force_mask: every real file is private to the user, owners and modes are kept in attributes."""
    return workshop.store(Driver.FUSEUNION, "masked", {"force_mask": "700"})


def test_force_mask_shows_the_real_owners(native: Store, masked: Store) -> None:
    expected = native.podman("run", "--rm", BASE, "sh", "-c", LOOK)
    assert masked.podman("run", "--rm", BASE, "sh", "-c", LOOK) == expected


def test_force_mask_keeps_files_private(masked: Store) -> None:
    masked.podman(
        "run", "--name=private", BASE, "sh", "-euc", "echo x >/srv/open; chmod 666 /srv/open; chown games /srv/open"
    )
    upper = masked.podman("container", "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "private").strip()
    shown = masked.run("podman", "unshare", "stat", "-c", "%u", f"{upper}/srv/open").stdout.strip()
    stored = masked.run(
        "podman", "unshare", "getfattr", "--only-values", "-n", "user.containers.override_stat", f"{upper}/srv/open"
    )
    assert shown == "0"
    assert stored.stdout.startswith("5:0:")
    masked.podman("rm", "private")


def test_force_mask_builds_the_same_image(workshop: Workshop, native: Store, masked: Store) -> None:
    assert_same_build(
        workshop.build(native, "podman", "build"), workshop.build(masked, "podman", "build"), force_mask=True
    )
    # Only root gets past a root directory of mode 0700 (images.OUT_OF_REACH).
    assert masked.podman("run", "--rm", "--user=root", f"{APP}-podman") == "hello from the image\n"


def test_mountopt(workshop: Workshop) -> None:
    """The usual words of storage.conf; metacopy=on and the generic ones never reach the program."""
    store = workshop.store(Driver.FUSEUNION, "mountopt", {"mountopt": "nodev,metacopy=on,noacl,fsync=0"})
    assert store.podman("run", "--rm", BASE, "cat", "/etc/debian_version").startswith("12")
