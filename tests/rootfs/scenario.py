"""What people do to a root filesystem: the scripts in steps/, run in order in a chroot of the merged tree."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.merged import Writable
from tests.support.namespace import Namespace
from tests.support.tree import Tree

STEPS = sorted((Path(__file__).parent / "steps").glob("*.sh"))

SECOND = 10**9


@dataclass(frozen=True, slots=True)
class StepResult:
    """How one step ended."""

    name: str
    exit_code: int
    output: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the scenario left behind."""

    started: int
    steps: tuple[StepResult, ...]
    tree: Tree
    tree_after_remount: Tree
    lower_after: Tree


def run_scenario(writable: Writable, packages: Path, snapshot: Callable[[Path], Tree]) -> Outcome:
    """Mount, run all steps in a chroot, look at the tree, and look again through a second mount."""
    started = time.time_ns() // SECOND * SECOND  # some programs store times without their fraction
    with writable.mounted() as merged:
        with _bound(writable.namespace, merged, packages):
            steps = tuple(_run_step(writable.namespace, merged, step) for step in STEPS)
        tree = snapshot(merged)
    with writable.mounted() as merged:
        again = snapshot(merged)
    return Outcome(started, steps, tree, again, snapshot(writable.lower))


@contextmanager
def _bound(namespace: Namespace, merged: Path, packages: Path) -> Iterator[None]:
    """Bind the kernel's filesystems and the packages, as every chroot needs."""
    namespace.run("mkdir", merged / "debs")
    binds: dict[str | Path, Path] = {"/dev": merged / "dev", "/proc": merged / "proc", packages: merged / "debs"}
    for source, target in binds.items():
        namespace.run("mount", "--rbind", source, target)
    try:
        yield
    finally:
        for target in reversed(binds.values()):
            # Lazily, as one: a user namespace may not take apart what it was given bound together.
            namespace.run("umount", "--lazy", target)
        namespace.run("rmdir", merged / "debs")


def _run_step(namespace: Namespace, merged: Path, step: Path) -> StepResult:
    begin = time.monotonic()
    done = namespace.run("chroot", merged, "/bin/sh", "-euc", step.read_text(), check=False)
    return StepResult(step.stem, done.returncode, done.stdout + done.stderr, time.monotonic() - begin)
