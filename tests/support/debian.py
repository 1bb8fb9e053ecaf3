"""The cached Debian base and packages that scripts/rootfs fetches."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.interpreter import PROJECT
from tests.support.namespace import Namespace


@dataclass(frozen=True, slots=True)
class Debian:
    """What scripts/rootfs fetched."""

    directory: Path

    @property
    def base(self) -> Path:
        """The tar file of a minbase."""
        return self.directory / "base.tar"

    @property
    def packages(self) -> Path:
        """The directory of .deb files, which is a repository for apt-get."""
        return self.directory / "debs"


def why_not() -> str:
    """Why the long tests cannot run here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root, to make users, namespaces and a debootstrap"
    if shutil.which("debootstrap", path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
        return "debootstrap is missing: run scripts/setup-conformance"
    return ""


def fetch_debian() -> Debian:
    """Run scripts/rootfs (quick when the cache is there)."""
    done = subprocess.run([PROJECT / "scripts/rootfs"], check=True, stdout=subprocess.PIPE, text=True)
    return Debian(Path(done.stdout.split()[-1]))


def unpack(debian: Debian, namespace: Namespace, directory: Path) -> Path:
    """Unpack the base into a new directory, with the owners as the namespace has them."""
    namespace.run("mkdir", directory)
    namespace.run("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", directory, "-xpf", debian.base)
    return directory
