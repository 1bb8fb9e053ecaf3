"""The stage on which the long scenario runs: as root, and as an ordinary user inside `unshare`."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rootfs.stage import Stage
from tests.support.debian import Debian, fetch_debian, why_not
from tests.support.interpreter import Interpreter
from tests.support.namespace import root_namespace, user_namespace
from tests.support.product import make_launcher
from tests.support.user import User


@pytest.fixture(scope="session")
def debian() -> Debian:
    """The cached Debian base and packages."""
    if why := why_not():
        pytest.skip(why)
    return fetch_debian()


@pytest.fixture(scope="session", params=["root", "user"])
def stage(
    request: pytest.FixtureRequest,
    debian: Debian,
    scratch: Path,
    user: User,
    reachable_interpreter: Interpreter,
) -> Iterator[Stage]:
    """As root, and as an ordinary user with subordinate ids."""
    as_root = request.param == "root"
    directory = scratch / f"rootfs-{request.param}"
    directory.mkdir()
    launcher = make_launcher(directory / "launcher", reachable_interpreter)
    shutil.chown(directory, "root" if as_root else user.name)
    with ExitStack() as stack:
        stack.callback(_remove, directory)
        namespace = stack.enter_context(root_namespace() if as_root else user_namespace(user.name))
        yield Stage(debian, namespace, reachable_interpreter, launcher, directory)


def _remove(directory: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True)
