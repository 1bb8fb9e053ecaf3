"""Stores of an ordinary user with every way of mounting, and the image that each of them built."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conformance.workshop import CONTEXT, Workshop
from tests.support.debian import Debian, fetch_debian, why_not
from tests.support.interpreter import Interpreter
from tests.support.namespace import login_namespace
from tests.support.product import make_launcher
from tests.support.store import Driver, Store
from tests.support.user import User


@pytest.fixture(scope="session")
def debian() -> Debian:
    """The cached Debian base and packages."""
    if why := why_not():
        pytest.skip(why)
    return fetch_debian()


@pytest.fixture(scope="session")
def bare_workshop(scratch: Path, user: User, reachable_interpreter: Interpreter) -> Iterator[Workshop]:
    """Where stores are made; without anything from the network."""
    if shutil.which("podman") is None:
        pytest.skip("podman is missing: run scripts/setup-conformance")
    directory = scratch / "workshop"
    directory.mkdir()
    shutil.copytree(CONTEXT, directory / "context")
    programs = directory / "bin"
    programs.mkdir()
    launcher = make_launcher(programs / "fuseunion", reachable_interpreter)
    (programs / "fuse-overlayfs").symlink_to(launcher)
    with ExitStack() as stack:
        login = stack.enter_context(login_namespace(user.name))
        workshop = Workshop(login, user.name, directory, launcher, None)
        stack.callback(workshop.close)
        yield workshop


@pytest.fixture(scope="session")
def workshop(bare_workshop: Workshop, debian: Debian) -> Workshop:
    """Where stores are made, with the Debian base at hand."""
    bare_workshop.debian = debian
    return bare_workshop


@pytest.fixture(scope="session")
def native(workshop: Workshop) -> Store:
    """The yardstick: native rootless overlay."""
    return workshop.store(Driver.NATIVE)


@pytest.fixture(scope="session", params=[Driver.FUSEUNION, Driver.ALIAS], ids=lambda driver: driver.name.lower())
def driver(request: pytest.FixtureRequest) -> Driver:
    """The two names under which the program is called."""
    assert isinstance(request.param, Driver)
    return request.param


@pytest.fixture(scope="session")
def store(workshop: Workshop, driver: Driver) -> Store:
    """A store whose mount program is fuseunion."""
    return workshop.store(driver)
