"""docs/howto-podman.md and docs/howto-buildah.md, run by an ordinary user whose store holds the named base image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import Debian
from tests.support.document import blocks
from tests.support.interpreter import Interpreter
from tests.support.namespace import login_namespace
from tests.support.product import make_launcher
from tests.support.store import Store, make_store
from tests.support.user import User

pytestmark = pytest.mark.conformance

IMAGE = "docker.io/library/debian:12"
INSTALLED = Path("/usr/local/bin/fuseunion")


@pytest.fixture(scope="module")
def store(scratch: Path, user: User, reachable_interpreter: Interpreter, debian: Debian) -> Iterator[Store]:
    """A store configured as the page says; the program lies in /usr/local/bin for this user only."""
    programs = scratch / "usr-local-bin"
    programs.mkdir()
    make_launcher(programs / INSTALLED.name, reachable_interpreter)
    with login_namespace(user.name, install=programs) as login:
        store = make_store(login, user.name, scratch / "howto", INSTALLED, {})
        store.podman("import", "--quiet", debian.base, IMAGE)
        yield store
        store.close()


def run_page(store: Store, page: str) -> list[str]:
    """Run the page's commands block by block in the user's directory; returns what each printed."""
    return [store.run("sh", "-euc", commands).stdout for commands in blocks(page, "sh")]


def test_the_configuration_is_the_tested_one(store: Store) -> None:
    first = blocks("howto-podman.md", "toml")[0]
    for line in filter(None, first.splitlines()):
        assert line in (store.directory / "storage.conf").read_text()


def test_podman(store: Store) -> None:
    in_use, build, ids, volume = run_page(store, "howto-podman.md")
    assert str(INSTALLED) in in_use
    assert "fuse.fuseunion" in in_use
    assert "app\n" in build
    assert "A /srv/file" in build
    assert store.login.output("id", "-u").strip() in ids
    assert ids.endswith("root /etc/passwd\n")
    assert volume.split() == ["changed", "original"]


def test_buildah(store: Store) -> None:
    run_page(store, "howto-buildah.md")
    for image in ("product", "by-hand"):
        listing = store.podman("run", "--rm", f"localhost/{image}", "sh", "-c", "ls -d /usr/share/doc 2>&1 || true")
        assert "No such file" in listing
    assert store.podman("run", "--rm", "localhost/product", "cat", "/opt/product/product") == "built\n"
