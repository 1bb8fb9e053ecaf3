"""Running one sequence against an oracle and a fuseunion mount, step by step.

Both start from the same layers. After each operation the outcomes must be equal; at each remount and at the end the
trees must be, inode numbers must be sound, and a remount may change none. At the end of a run against the kernel each
side mounts the upper that the other left.
"""

from __future__ import annotations

import collections
import itertools
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.differential.generator import Generator
from tests.differential.known_differences import Oracle, is_known, is_left_out, is_withheld, with_known
from tests.differential.operations import IN_PLACE, Call, Operation, World
from tests.differential.recipes import LONG_NAMES
from tests.differential.shrink import shrink
from tests.support import tree
from tests.support.arena import Arena
from tests.support.mounts import FuseunionMount, KernelMount

SHRINK_SECONDS = 25.0


class DivergenceError(AssertionError):
    """The two sides disagree; `kind` tells one sort of disagreement from another."""

    def __init__(self, kind: str, details: str) -> None:
        super().__init__(f"{kind}{details}")
        self.kind = kind


def _kind(error: BaseException) -> str:
    return error.kind if isinstance(error, DivergenceError) else type(error).__name__


Draw = Callable[[bytes], Iterable[Operation]]
"""Makes the operations, given the root of the oracle."""


def from_seed(seed: int, steps: int, kind: type[Generator] = Generator) -> Draw:
    """The operations that a kind of generator draws from a seed."""

    def draw(root: bytes) -> Iterable[Operation]:
        generator = kind(seed, root)
        return (generator.draw() for _ in range(steps))

    return draw


@dataclass(slots=True)
class Lockstep:
    """Runs sequences over one set of lowers, each from a fresh upper; `answers` counts those of the last one."""

    arena: Arena
    lowers: Sequence[Path]
    oracle: Oracle
    done: list[Operation]
    answers: collections.Counter[str]
    _runs: itertools.count[int]

    @classmethod
    def over(cls, arena: Arena, lowers: Sequence[Path], oracle: Oracle) -> Lockstep:
        """A runner for these lowers, topmost first."""
        return cls(arena, lowers, oracle, [], collections.Counter(), itertools.count())

    def run(self, draw: Draw) -> None:
        """Run a sequence; `done` holds the operations that were run.

        :raises DivergenceError: the two sides disagree
        """
        self.done = []
        self.answers.clear()
        _Run(self, self.arena.directory(f"run{next(self._runs)}")).go(draw)


class _Run:
    """One sequence on both sides."""

    def __init__(self, owner: Lockstep, directory: Path) -> None:
        self.owner = owner
        self.directory = directory
        self.since = 0
        for name in ("ours", "ours/merged", "theirs", "theirs/merged"):
            (directory / name).mkdir()
        # A new upper of ours takes mode and owner of the topmost lower (docs/options.md).
        top, upper = owner.lowers[0].stat(), directory / "theirs" / "upper"
        upper.mkdir()
        os.chown(upper, top.st_uid, top.st_gid)
        upper.chmod(stat.S_IMODE(top.st_mode))
        arena = owner.arena
        self.ours = FuseunionMount(
            arena.place,
            owner.lowers,
            directory / "ours" / "upper",
            directory / "ours" / "merged",
            ["allow_other"],
            work=directory / "ours" / "work",
        )
        self.theirs = KernelMount(owner.lowers, upper, directory / "theirs" / "merged")
        self.our_world = World(os.fsencode(self.ours.merged))
        self.their_world = World(os.fsencode(self.theirs.merged))

    def go(self, draw: Draw) -> None:
        if self.owner.oracle is Oracle.PLAIN:
            self._copy_merged_tree()
        self.since = time.time_ns() - 1_000_000_000
        try:
            self._mount()
            self._compare_trees("before the first operation")
            for operation in draw(self.their_world.root):
                self.owner.done.append(operation)
                self._step(operation)
            self._close()
            self._remount()
            self._unmount()
        except BaseException as error:
            self._close()
            self._abandon(error)
            raise
        if self.owner.oracle is Oracle.KERNEL:
            self._exchange_uppers()
        shutil.rmtree(self.directory)

    def _copy_merged_tree(self) -> None:
        with KernelMount(self.owner.lowers, self.directory / "theirs" / "upper", self.theirs.merged):
            plain = self.directory / "theirs" / "plain"
            subprocess.run(["cp", "-a", f"{self.theirs.merged}/.", str(plain)], check=True)
        self.their_world = World(os.fsencode(self.directory / "theirs" / "plain"))

    def _mount(self) -> None:
        self.ours.start()
        if self.owner.oracle is Oracle.KERNEL:
            self.theirs.start()

    def _unmount(self) -> None:
        if self.owner.oracle is Oracle.KERNEL:
            self.theirs.stop()
        self.ours.stop()

    def _close(self) -> None:
        self.our_world.close_all()
        self.their_world.close_all()

    def _abandon(self, error: BaseException) -> None:
        if self.owner.oracle is Oracle.KERNEL:
            subprocess.run(["umount", "--lazy", str(self.theirs.merged)], check=False, capture_output=True)
        self.ours.abandon(error)

    def _step(self, operation: Operation) -> None:
        if operation.call is Call.REMOUNT:
            self._close()
            self._remount()
            return
        if is_left_out(self.owner.oracle, operation, self.our_world):
            return
        expected = self.their_world.perform(operation)
        if is_withheld(self.owner.oracle, operation, expected):
            return
        before = self._ino(operation)
        got = self.our_world.perform(operation)
        self.owner.answers[expected.error or "ok"] += 1
        if got != expected and not is_known(self.owner.oracle, operation, expected, got):
            kind = f"{operation.call}: expected {expected.error or 'ok'}, got {got.error or 'ok'}: "
            raise DivergenceError(kind, f"{operation}\n  expected {expected}\n  got      {got}")
        if operation.call in IN_PLACE and before is not None and before != self._ino(operation):
            raise DivergenceError(
                f"{operation.call} changed st_ino: ", f"{operation}\n  from {before} to {self._ino(operation)}"
            )

    def _ino(self, operation: Operation) -> int | None:
        try:
            return os.stat(self.our_world.at(operation.path)).st_ino
        except OSError:
            return None

    def _remount(self) -> None:
        self._compare_trees("before a remount")
        before = tree.snapshot(self.our_world.root)
        self._unmount()
        self._mount()
        after = tree.snapshot(self.our_world.root)
        changed = tree.differences(before, after, (*tree.SEEN, "ino", "nlink")) + tree.ctime_faults(before, after)
        _raise_if(changed, "a remount changed our tree")
        self._compare_trees("after a remount")

    def _compare_trees(self, when: str) -> None:
        fields = (*tree.SEEN, "nlink")
        theirs, got = tree.snapshot(self.their_world.root), tree.snapshot(self.our_world.root)
        expected = with_known(self.owner.oracle, theirs, got, self.since)
        found = tree.differences(expected, got, fields, since=self.since)
        _raise_if(found, f"the trees differ {when}")
        _raise_if(tree.inode_faults(self.our_world.root), f"inode numbers {when}")

    def _exchange_uppers(self) -> None:
        """Mount our upper with the kernel, and the kernel's with ours."""
        lowers, arena = self.owner.lowers, self.owner.arena
        ours, theirs = self.ours.upper, self.theirs.upper
        merged = self.directory / "exchange"
        merged.mkdir()
        with KernelMount(lowers, theirs, self.theirs.merged):
            expected = tree.snapshot(self.theirs.merged)
        with KernelMount(lowers, ours, merged) as crossed:
            found = tree.differences(expected, tree.snapshot(crossed.merged), since=self.since)
        _raise_if(found, "the kernel sees our upper otherwise")
        with FuseunionMount(arena.place, lowers, theirs, merged, ["allow_other"]) as crossed_over:
            found = tree.differences(expected, tree.snapshot(crossed_over.merged), since=self.since)
        _raise_if(found, "we see the kernel's upper otherwise")


def _raise_if(found: Sequence[str], kind: str) -> None:
    if found:
        raise DivergenceError(kind, ":\n  " + "\n  ".join(found))


def describe(paths: Iterable[bytes], lowers: Sequence[Path]) -> str:
    """What each layer holds at the given paths and their parents, for the report of a failure."""
    wanted = sorted({prefix for path in paths for prefix in _prefixes(path)})
    lines = []
    for path in wanted:
        found = []
        for number, lower in enumerate(lowers):
            try:
                status = os.lstat(os.path.join(os.fsencode(lower), path))
            except OSError:
                continue
            marks = [name for name, _ in tree.xattrs(os.path.join(os.fsencode(lower), path))]
            whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
            kind = "whiteout" if whiteout else tree.KINDS[stat.S_IFMT(status.st_mode)]
            found.append(f"lower{number}: {kind} {oct(stat.S_IMODE(status.st_mode))} {marks or ''}")
        lines.append(f"{path!r}: {'; '.join(found) or 'in no lower'}")
    return "\n  ".join(lines)


def _prefixes(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    return [b"/".join(parts[: count + 1]) for count in range(len(parts))]


def check(
    arena: Arena,
    lowers: Sequence[Path],
    oracle: Oracle,
    seed: int,
    steps: int,
    kind: type[Generator] = Generator,
) -> collections.Counter[str]:
    """Run the sequence of a seed; a divergence is cut down and reported with the layers that it is about.

    :returns: how often each answer was given by both
    """
    lockstep = Lockstep.over(arena, lowers, oracle)
    try:
        lockstep.run(from_seed(seed, steps, kind))
    except (AssertionError, OSError) as error:
        whole, first = list(lockstep.done), error
    else:
        return lockstep.answers

    last: list[BaseException] = [first]

    def fails(operations: Sequence[Operation]) -> bool:
        try:
            lockstep.run(lambda _: operations)
        except (AssertionError, OSError) as error:
            if _kind(error) == _kind(first):
                last[0] = error
                return True
        return False

    needed = shrink(whole, fails, SHRINK_SECONDS)
    paths = {path for operation in needed for path in (operation.path, operation.other) if path}
    steps_text = "".join(f"\n  {operation}," for operation in needed)
    report = (
        f"seed {seed} against a {oracle.value}: {last[0]}\n"
        f"needs {len(needed)} of {len(whole)} operations: [{steps_text}\n]\n"
        f"layers:\n  {describe(paths, lowers)}"
    )
    for name in LONG_NAMES:
        report = report.replace(name.decode(), f"<{name[:1].decode()} * {len(name)}>")
    raise AssertionError(report) from last[0]
