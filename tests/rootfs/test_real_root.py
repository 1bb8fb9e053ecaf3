"""A Debian root under real use: fuseunion, kernel overlayfs and a plain directory end up with the same tree.

Varying by nature, whatever the filesystem: nothing but the few paths in VARYING; logs, apt's caches and /tmp are
removed by the last step. Times are compared where they are older than the scenario: set or preserved ones.

In a user namespace kernel overlayfs cannot follow its index, and the names of one file split at copy-up; so there, hard
links are compared with the plain directory only.
"""

from __future__ import annotations

import pytest

from tests.rootfs.stage import Stage
from tests.support.merged import Engine
from tests.support.tree import EXACT, SEEN, Tree, differences

pytestmark = pytest.mark.rootfs

VARYING = {
    b"var/cache/ldconfig/aux-cache",  # holds inode numbers and change times of every library
}
SHOWN = 60


def test_the_yardsticks_succeed(stage: Stage) -> None:
    for engine in (Engine.PLAIN, Engine.KERNEL):
        assert_all_steps_succeed(stage, engine)


def test_the_yardsticks_agree(stage: Stage) -> None:
    """What differs between them would say nothing about fuseunion."""
    assert_same_outcome(stage, Engine.KERNEL, Engine.PLAIN)


def test_every_step_succeeds(stage: Stage) -> None:
    assert_all_steps_succeed(stage, Engine.FUSEUNION)


@pytest.mark.parametrize("other", [Engine.PLAIN, Engine.KERNEL], ids=lambda engine: engine.name.lower())
def test_the_tree_is_the_same(stage: Stage, other: Engine) -> None:
    assert_same_outcome(stage, Engine.FUSEUNION, other)


def test_the_tree_is_the_same_after_a_remount(stage: Stage) -> None:
    got = stage.outcome(Engine.FUSEUNION)
    before, after = got.tree, got.tree_after_remount
    assert_none(differences(before, after, (*SEEN, "nlink", "ino")), "after a remount")
    assert [path for path in after if after[path].ctime < before[path].ctime] == [], "ctime went backwards"


def test_the_lower_is_untouched(stage: Stage) -> None:
    got = stage.outcome(Engine.FUSEUNION)
    assert_none(differences(stage.lower_before, got.lower_after, EXACT), "the lower")


def assert_same_outcome(stage: Stage, engine: Engine, other: Engine) -> None:
    got, expected = stage.outcome(engine), stage.outcome(other)
    left_out: set[bytes] = set()
    if Engine.KERNEL in (engine, other) and stage.namespace.is_user_namespace:
        left_out = {path for path, entry in stage.outcome(Engine.PLAIN).tree.items() if entry.nlink > 1}
    lines = differences(
        comparable(expected.tree, left_out),
        comparable(got.tree, left_out),
        (*SEEN, "nlink"),
        since=min(expected.started, got.started),
    )
    assert_none(lines, f"{engine.value} against {other.value}")


def comparable(tree: Tree, left_out: set[bytes]) -> Tree:
    """The tree without the content of what varies, and without some paths."""
    return {
        path: entry._replace(content="", size=0, mtime=0) if path in VARYING else entry
        for path, entry in tree.items()
        if path not in left_out
    }


def assert_all_steps_succeed(stage: Stage, engine: Engine) -> None:
    for step in stage.outcome(engine).steps:
        assert step.exit_code == 0, f"{engine.value}: {step.name}\n{step.output}"


def assert_none(lines: list[str], what: str) -> None:
    shown = "\n  ".join(lines[:SHOWN])
    assert not lines, f"{what}: {len(lines)} differences:\n  {shown}"
