"""Fixtures and rules of the whole test suite.

A test that asks for `arena` gets a directory to mount in, runs once per actor that may run it, and ends by checking
the whole world: no mount, no process, no descriptor is left, and no lower changed. Which actors a test runs as is
said by the marker `actors`; without it, all three.

What needs root is not collected for an ordinary user, and the header of the report says so. Nothing is ever skipped
because FUSE is missing: then the tests fail.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import interpreter, libc, loops, mountinfo, processes
from tests.support.actor import USUAL, Actor, Role
from tests.support.arena import Arena
from tests.support.mounts import Place
from tests.support.user import User, ordinary_user
from tests.support.watchdog import Watchdog

SCRATCH_VARIABLE = "FUSEUNION_TEST_DIR"
STRESS_VARIABLE = "FUSEUNION_STRESS"

MOUNT_TEST_LIMIT = 60.0
"""Seconds after which the daemons of a test are killed, so that a dead-locked mount fails its test and no more."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """For what does not depend on who runs it."""
    parser.addoption("--actor", help="run each test once: as this one, or as the first of its actors (user, root...)")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", "stress: takes minutes; runs with `-m stress` or FUSEUNION_STRESS=1")
    who = "root, user, userns (these by default), lone, denied"
    config.addinivalue_line("markers", f"actors(*names): who runs the test: {who}")
    config.addinivalue_line("markers", "limit(seconds): how long a mount test may take before its daemons are killed")
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        # Tests run side by side (pytest-xdist): a program that copies the mounts it finds (podman, unshare) must not
        # keep those of another worker busy.
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE, "")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what an ordinary user does not run."""
    return None if os.geteuid() == 0 else "not root: the tests that compare with the kernel's overlayfs do not run"


def _roles(metafunc: pytest.Metafunc) -> list[Role]:
    marker = metafunc.definition.get_closest_marker("actors")
    names = marker.args if marker else tuple(role.value for role in USUAL)
    roles = [Role(name) for name in names]
    possible = [role for role in roles if role is not Role.ROOT or os.geteuid() == 0]
    wanted = metafunc.config.getoption("--actor")
    if wanted is None:
        return possible
    return [role for role in possible if role is Role(wanted)] or possible[:1]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run an arena's test once per actor."""
    if "actor" in metafunc.fixturenames:
        roles = _roles(metafunc)
        metafunc.parametrize("actor", roles, ids=[role.value for role in roles], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the stress tests out unless they are asked for, and root's tests when we are not root."""
    asked = "stress" in (config.option.markexpr or "") or os.environ.get(STRESS_VARIABLE)

    def wanted(item: pytest.Item) -> bool:
        if item.get_closest_marker("stress") and not asked:
            return False
        if item.get_closest_marker("root") and os.geteuid() != 0:
            return False
        # A test without a possible actor has an empty parameter set, which pytest would report as skipped.
        return "actor-NOTSET" not in item.name and "NOTSET" not in item.name

    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if wanted(item)]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the body of an arena's test as its actor, then check the lowers."""
    arena = pyfuncitem.funcargs.get("arena")
    if not isinstance(arena, Arena):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    def body() -> None:
        pyfuncitem.obj(**arguments)
        arena.check_lowers()

    if arena.actor.is_native:
        body()
    else:
        arena.actor.run(body)
    return True


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for everything, on a filesystem that overlayfs accepts as upper, open to every actor."""
    path = Path(tempfile.mkdtemp(prefix="fuseunion-test-", dir=os.environ.get(SCRATCH_VARIABLE, "/var/tmp")))
    path.chmod(0o755)
    if os.geteuid() == 0 and not _is_good_for_upper(path):
        libc.mount("tmpfs", str(path), "tmpfs", 0, "mode=755")
    yield path
    for mount in reversed(mountinfo.mounts_under(path)):
        libc.umount(mount.target)
    Arena(path, Actor(Role.USER, ordinary_user()), Place(interpreter.own(), "", path)).remove()


def _is_good_for_upper(path: Path) -> bool:
    for name in ("upper", "work", "lower"):
        (path / name).mkdir()
    data = f"lowerdir={path}/lower,upperdir={path}/upper,workdir={path}/work"
    try:
        libc.mount("overlay", str(path / "lower"), "overlay", 0, data)
        (path / "lower" / "probe").touch()
        libc.umount(str(path / "lower"))
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def user() -> User:
    """The ordinary user."""
    return ordinary_user()


@pytest.fixture(scope="session")
def reachable_interpreter(scratch: Path) -> interpreter.Interpreter:
    """An interpreter that every actor can run."""
    return interpreter.reachable(scratch)


@pytest.fixture(scope="session")
def watchdog() -> Iterator[Watchdog]:
    """Ends what hangs."""
    dog = Watchdog()
    yield dog
    dog.close()


@pytest.fixture
def actor(request: pytest.FixtureRequest, user: User) -> Actor:
    """Who runs the test."""
    return Actor(request.param, user)


@pytest.fixture
def arena(
    request: pytest.FixtureRequest,
    actor: Actor,
    scratch: Path,
    reachable_interpreter: interpreter.Interpreter,
    watchdog: Watchdog,
) -> Iterator[Arena]:
    """A place to mount in, and after the test the check that nothing is left of it."""
    token = uuid.uuid4().hex[:12]
    root = scratch / token
    logs = root / "logs"
    logs.mkdir(parents=True)
    for path in (root, logs):
        actor.own(path)
    chosen = interpreter.own() if actor.role is Role.ROOT else reachable_interpreter
    descriptors_before = frozenset(os.listdir("/proc/self/fd"))
    limit = request.node.get_closest_marker("limit")
    watchdog.arm(token, limit.args[0] if limit else MOUNT_TEST_LIMIT)
    place = Arena(root, actor, Place(chosen, token, logs))
    yield place
    watchdog.disarm()
    left_processes = [processes.command_line(pid) for pid in processes.with_token(token)]
    processes.kill_all(token)
    left_loops = loops.left_of(root)
    left_mounts = mountinfo.mounts_under(root)
    for mount in reversed(mountinfo.mounts_under(root)):
        libc.umount(mount.target, libc.MNT_DETACH)
    # Not the reverse: what an earlier test left to the garbage collector may have gone.
    left_descriptors = sorted(set(os.listdir("/proc/self/fd")) - descriptors_before)
    place.remove()
    assert not left_processes, f"processes left: {left_processes}"
    assert not left_mounts, f"mounts left: {left_mounts}"
    assert not left_loops, f"loop devices left: {left_loops}"
    assert not left_descriptors, f"the test left descriptors open: {left_descriptors}"
