"""Every single system call of every operation fails once: the caller gets the errno, and nothing else happened.

The twin of test_crash.py, on the same operations (stage.py), as root and as an ordinary user. After each failed call:

* the caller got that errno, and the merged tree is as before; or the failure was tolerated, and the tree is as after
* no inode is held that nobody asked for, no descriptor, and nothing is left in the work directory
* what the union says is what the next mount says

And every call from one on fails: what was begun cannot be taken back then, but the last of these has to hold.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fuseunion.core.tree.directory import Directory
from tests.conftest import STRESS_VARIABLE
from tests.model.stage import OPERATIONS, WITH_STORE, Stored, make_layers, opened, restore, save
from tests.support.actor import Actor, Role
from tests.support.faults import failing, failing_from
from tests.support.inprocess import InProcess
from tests.support.user import User

ERRNOS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EMFILE, errno.ENOMEM)

# One error for each call in `make test`, another for each operation, and all of them in `make stress`.
WITH_ALL = bool(os.environ.get(STRESS_VARIABLE))

ROOTS_OWN = {"chown of a lower symbolic link", "chown of an upper file"}
"""An ordinary user owns one id."""

CASES = [
    *((name, Stored.NOT, Role.ROOT) for name in OPERATIONS),
    *((name, Stored.NOT, Role.USER) for name in OPERATIONS if name not in ROOTS_OWN),
    *((name, stored, Role.ROOT) for stored in (Stored.ATTRIBUTE, Stored.DATABASE) for name in WITH_STORE),
]


def _comparable(union: InProcess) -> dict[str, tuple[object, ...]]:
    """The tree without what differs from run to run: numbers of what is made anew, times of what is changed."""
    tree = union.tree(numbers=True)
    return {path: tuple(f for f in facts if not isinstance(f, int) or f < 1 << 20) for path, facts in tree.items()}


def _state(union: InProcess) -> dict[str, tuple[object, ...]]:
    """The tree with times of modification. Without numbers: the layers are copies, whose origin marks are not true."""
    return union.tree()


def _seen(union: InProcess, names: Iterable[str]) -> dict[str, tuple[object, ...] | None]:
    """The tree without times and counts of links, and what else of some names is found though it is not listed.

    A second name that could not be removed from work counts until the next mount.
    """
    tree = union.tree()
    seen: dict[str, tuple[object, ...] | None] = {name: (*facts[:5], *facts[7:]) for name, facts in tree.items()}
    return seen | {name: None for name in names if name not in tree and _is_found(union, name)}


def _is_found(union: InProcess, name: str) -> bool:
    parent = os.path.dirname(name)
    try:
        return (parent == "/" or isinstance(union.find(parent), Directory)) and bool(union.find(name))
    except FileNotFoundError:
        return False


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class _Case:
    """One operation in which call after call fails."""

    def __init__(self, name: str, stored: Stored, layers: Path, saved: Path) -> None:
        self.operation = OPERATIONS[name]
        self.stored = stored
        self.layers = layers
        self.saved = saved
        self.seed = sorted(OPERATIONS).index(name)

    def run(self, *, known: bool = False) -> None:
        """Let each call fail once, until there are no more.

        Args:
            known: the kernel knows the whole tree when the operation begins.
        """
        restore(self.layers, self.saved)
        with opened(self.layers, self.stored) as union:
            before = _comparable(union)
            self.operation(union)
            after = _comparable(union)
        number = 0
        while all(self._one(number, code, before, after, known) for code in self._errnos(number)):
            number += 1
        assert number > 3, "the operation made no calls"

    def _errnos(self, number: int) -> tuple[int, ...]:
        return ERRNOS if WITH_ALL else (ERRNOS[(number + self.seed) % len(ERRNOS)],)

    def run_known(self) -> None:
        """As `run`, but the kernel knows the whole tree when the operation begins."""
        self.run(known=True)

    def _one(self, number: int, code: int, before: dict[str, object], after: dict[str, object], known: bool) -> bool:
        """Returns: False when the operation makes no such call."""
        restore(self.layers, self.saved)
        with opened(self.layers, self.stored) as union:
            self._settle(union)
            held = _descriptors()
            if known:
                union.tree()
            raised: OSError | None = None
            with failing(number, code) as fault:
                try:
                    self.operation(union)
                except OSError as error:
                    raised = error
            where = f"{errno.errorcode[code]} of call {number}, {fault.call}"
            now = _comparable(union)
            if raised is None:
                assert now == after, f"{where} was tolerated, and the tree is another"
            else:
                assert raised.errno == code, f"{where} became {raised!r}"
                assert now == before, f"{where} was answered, and the tree is another"
            state = _state(union)
            self._settle(union)
            assert _descriptors() <= held, f"{where} left descriptors open"
            left = self._left_in_work(union)
            # When the work is done, or while it is undone, what cannot be removed is left for the next mount.
            assert not left or raised is None or fault.call == "unlink", f"{where} left {left}"
        with opened(self.layers, self.stored) as union:
            assert not self._left_in_work(union), f"{where}: the next mount did not clean up"
            assert _state(union) == state, f"{where}: the next mount shows another tree"
        return fault.call is not None

    def run_lasting(self) -> None:
        """Let each call fail, and all after it, also those that would take back what was begun."""
        number = 0
        while all(self._from(number, code) for code in self._errnos(number)):
            number += 1

    def _from(self, number: int, code: int) -> bool:
        """Returns: False when the operation makes no such call."""
        restore(self.layers, self.saved)
        with opened(self.layers, self.stored) as union:
            self._settle(union)
            held = _descriptors()
            names = list(union.tree())  # the kernel knows all of it
            answer: object = None
            with failing_from(number, code) as fault:
                try:
                    self.operation(union)
                except OSError as error:
                    answer = error
            where = f"{errno.errorcode[code]} from call {number}, {fault.call}, on, which became {answer!r}"
            now = _seen(union, names)
            self._settle(union)
            assert _descriptors() <= held, f"{where} left descriptors open"
            assert _seen(union, names) == now, f"{where}: a new look shows another tree"
        with opened(self.layers, self.stored) as union:
            assert not self._left_in_work(union), f"{where}: the next mount did not clean up"
            assert _seen(union, names) == now, f"{where}: the next mount shows another tree"
        return fault.call is not None

    def _settle(self, union: InProcess) -> None:
        """Let go of everything that the kernel would let go of, and of what is only cached."""
        union.forget()
        state = union.union.state
        assert state.table.size == 1, "inodes are held that nobody knows"
        state.descriptors.close()

    @staticmethod
    def _left_in_work(union: InProcess) -> list[str]:
        upper = union.union.state.upper
        assert upper is not None
        spare = upper.whiteouts.spare
        return [name for name in os.listdir(upper.work.tmp.fd()) if spare is None or name != os.fsdecode(spare)]


WAYS: dict[str, Callable[[_Case], None]] = {
    "once": _Case.run,
    "once in a known tree": _Case.run_known,
    "from then on": _Case.run_lasting,
}

RUNS = [
    pytest.param(*case, way, id=f"{case[0]}-{case[1].value}-{case[2].value}-{name}")
    for case in CASES
    for name, way in WAYS.items()
    # What the kernel knows is the same for both; a user's errors are more.
    if WITH_ALL or name != {Role.ROOT: "once", Role.USER: "once in a known tree"}[case[2]]
]


@pytest.mark.parametrize(("name", "stored", "role", "way"), RUNS)
def test_before_or_after(
    name: str, stored: Stored, role: Role, way: Callable[[_Case], None], user: User, scratch: Path
) -> None:
    actor = Actor(role, user)
    place = Path(tempfile.mkdtemp(dir=scratch))
    actor.own(place)

    def body() -> None:
        layers, saved = place / "layers", place / "saved"
        layers.mkdir()
        saved.mkdir()
        make_layers(layers, stored)
        save(layers, saved)
        way(_Case(name, stored, layers, saved))

    try:
        if actor.is_native:
            body()
        else:
            actor.run(body)
    finally:
        shutil.rmtree(place)
