"""The how-to pages install the program at /usr/local/bin; the tests put it there inside a mount namespace only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.interpreter import Interpreter
from tests.support.namespace import Namespace, root_namespace
from tests.support.product import make_launcher


@pytest.fixture(scope="module")
def programs(scratch: Path, reachable_interpreter: Interpreter) -> Iterator[Path]:
    """A directory with the program under both its names, to lie over /usr/local/bin."""
    directory = scratch / "usr-local-bin"
    directory.mkdir()
    make_launcher(directory / "fuseunion", reachable_interpreter)
    (directory / "fuse-overlayfs").symlink_to("fuseunion")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def as_root(programs: Path) -> Iterator[Namespace]:
    """Root, with the program installed and an empty /srv."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with root_namespace() as namespace:
        namespace.run("mount", "--bind", programs, "/usr/local/bin")
        namespace.run("mount", "-t", "tmpfs", "tmpfs", "/srv")
        yield namespace
