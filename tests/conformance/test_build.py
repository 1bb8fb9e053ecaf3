"""A realistic image, built layer by layer: the same on fuseunion as on native rootless overlay."""

from __future__ import annotations

import pytest

from tests.conformance.images import (
    assert_nothing_superfluous,
    assert_same_build,
    assert_same_links,
    expected_changes,
)
from tests.conformance.workshop import APP, Workshop
from tests.support.store import Store

pytestmark = pytest.mark.conformance

PODMAN = ("podman", "build")
BUILDAH = ("buildah", "bud", "--layers=false")


@pytest.mark.parametrize("program", [PODMAN, BUILDAH], ids=["podman", "buildah"])
def test_the_image_is_the_same(workshop: Workshop, native: Store, store: Store, program: tuple[str, ...]) -> None:
    expected, got = workshop.build(native, *program), workshop.build(store, *program)
    assert_same_build(expected, got)
    assert_same_links(expected, got)


@pytest.mark.parametrize("program", [PODMAN, BUILDAH], ids=["podman", "buildah"])
def test_layers_hold_what_changed_and_nothing_else(workshop: Workshop, store: Store, program: tuple[str, ...]) -> None:
    assert_nothing_superfluous(workshop.build(store, *program))


def test_diff_of_the_image(workshop: Workshop, native: Store, store: Store) -> None:
    expected = expected_changes(workshop.build(native, *PODMAN))
    workshop.build(store, *PODMAN)
    assert set(store.podman("diff", f"{APP}-podman").splitlines()) == expected


def test_the_image_runs(workshop: Workshop, store: Store) -> None:
    workshop.build(store, *PODMAN)
    assert store.podman("run", "--rm", f"{APP}-podman") == "hello from the image\n"
    assert "cap_net_bind_service=ep" in store.podman("run", "--rm", f"{APP}-podman", "getcap", "/usr/local/bin/server")
