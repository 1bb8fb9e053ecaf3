"""buildah's own commands: a container from scratch, filled by hand, mounted, committed."""

from __future__ import annotations

import pytest

from tests.conformance.workshop import BASE, Workshop
from tests.support.store import Store

pytestmark = pytest.mark.conformance


def test_from_scratch(workshop: Workshop, store: Store) -> None:
    assert workshop.debian is not None
    container = store.buildah("from", "scratch").strip()
    store.buildah("add", "--quiet", container, workshop.debian.base, "/")
    store.buildah(
        "run", container, "--", "sh", "-euc", "rm -r /usr/share/doc; useradd -m app; mv /usr/share/perl5 /opt/perl5"
    )
    store.buildah("config", "--user=app", "--cmd=id -un", container)
    store.buildah("commit", "--quiet", "--rm", container, "localhost/scratch")
    assert store.podman("run", "--rm", "localhost/scratch") == "app\n"
    assert store.podman("run", "--rm", "localhost/scratch", "ls", "-d", "/opt/perl5") == "/opt/perl5\n"


def test_mount_and_change_from_outside(store: Store) -> None:
    """`buildah mount` inside `buildah unshare`, as build scripts do."""
    script = f"""
        container=$(buildah from {BASE})
        root=$(buildah mount $container)
        echo outside >$root/etc/outside
        chown 33:33 $root/etc/outside
        rm -r $root/usr/share/doc
        buildah umount $container >/dev/null
        buildah commit --quiet --rm $container localhost/outside >/dev/null
    """
    store.run("buildah", "unshare", "sh", "-euc", script)
    look = "cat /etc/outside; stat -c %U /etc/outside; test ! -e /usr/share/doc"
    assert store.podman("run", "--rm", "localhost/outside", "sh", "-euc", look) == "outside\nwww-data\n"
