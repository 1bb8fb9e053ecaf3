"""Random uppers, made by random operations of a real union, with everything that an upper can hold."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from hypothesis import strategies as st

from fuseunion.core.ops.attributes import Change
from fuseunion.mounting.prepare import default_work_path
from tests.support.inprocess import InProcess, in_process
from tests.support.layers import Dir, File, Link, Name, Node, Symlink

LOWER: dict[Name, Node] = {
    "a": File(b"lower a"),
    "b": File(b"lower b", mode=0o600, xattrs={"user.x": b"1"}),
    "link": Symlink("a"),
    "d": Dir(),
    "d/a": File(b"lower d/a"),
    "d/e": Dir(),
    "d/e/f": File(b"f"),
    "d/e/g": File(b"g" * 5000),
    "t1": File(b"twins"),
    "d/t2": Link("t1"),
    "h": Dir(mode=0o700),
    "h/deep/er": File(b"deep"),
}

_NAMES = ["a", "b", "d", "h", "n", "d/a", "d/e", "d/e/f", "d/n", "h/deep", "n/a", "t1", "d/t2", "link", "h/n", "n/e"]
_PATHS = st.sampled_from(_NAMES)

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), _PATHS, st.binary(max_size=20)),
        st.tuples(st.just("create"), _PATHS, st.binary(max_size=20)),
        st.tuples(st.just("mkdir"), _PATHS),
        st.tuples(st.just("unlink"), _PATHS),
        st.tuples(st.just("rmdir"), _PATHS),
        st.tuples(st.just("remove"), _PATHS),
        st.tuples(st.just("rename"), _PATHS, _PATHS),
        st.tuples(st.just("link"), _PATHS, _PATHS),
        st.tuples(st.just("symlink"), st.just("nowhere"), _PATHS),
        st.tuples(st.just("chmod"), _PATHS, st.sampled_from([0o600, 0o755, 0o4711])),
        st.tuples(st.just("setxattr"), _PATHS),
    ),
    min_size=3,
    max_size=14,
)


def apply(union: InProcess, operations: Sequence[tuple[object, ...]]) -> None:
    """Do what can be done of them."""
    for name, *arguments in operations:
        with contextlib.suppress(OSError, AssertionError):
            _one(union, str(name), arguments)


def _one(union: InProcess, name: str, arguments: Sequence[object]) -> None:
    if name == "chmod":
        path, mode = arguments
        assert isinstance(mode, int)
        union.setattr(str(path), Change(mode=mode))
    elif name == "setxattr":
        union.setxattr(str(arguments[0]), b"user.test", b"value")
    elif name == "remove":
        remove(union, str(arguments[0]))
    else:
        getattr(union, name)(*arguments)


def remove(union: InProcess, path: str) -> None:
    """As rm -r."""
    if stat.S_ISDIR(union.union.stat(union.find(path))[0].st_mode):
        for name in union.names(path):
            remove(union, f"{path}/{name}")
        union.forget()
        union.rmdir(path)
    else:
        union.unlink(path)


def made(root: Path, lower: Path, operations: Sequence[tuple[object, ...]], **settings: bool) -> Path:
    """An upper with its default work directory, which holds what outlives a mount."""
    upper = root / "upper"
    upper.mkdir()
    os.chmod(upper, 0o755)
    work = Path(default_work_path(str(upper)))
    work.mkdir(mode=0o700)
    with in_process([lower], upper, work, **settings) as union:  # type: ignore[arg-type]
        apply(union, operations)
    return upper


def seen(lower: Path, upper: Path, scratch: Path) -> dict[str, tuple[object, ...]]:
    """What a union shows of an upper, with its own work directory if it has one."""
    work = Path(default_work_path(str(upper)))
    if not work.exists():
        work = scratch
        work.mkdir(exist_ok=True)
    with in_process([lower], upper, work, metacopy=True) as union:
        return union.tree()
