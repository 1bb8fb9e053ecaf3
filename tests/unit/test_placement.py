"""Which directory lies inside which."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.checks.placement import Part, Place, Survey, check


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/b/c", "a2", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    return tmp_path


def place(tree: Path, name: str, part: Part = Part.LOWER) -> Place:
    return Survey().place(part, str(tree / name))


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        ("a/b", "a", True),
        ("a", "a", True),
        ("a", "a/b", False),
        ("a2", "a", False),
        ("link/c", "a", True),
        ("link", "a/b", True),
        ("a/b/missing", "a", True),
        ("a/../other", "a", False),
        ("link/../b", "a", True),
        ("a", ".", True),
    ],
)
def test_inside(tree: Path, inner: str, outer: str, expected: bool) -> None:
    assert place(tree, inner).inside(place(tree, outer)) is expected


def test_a_missing_directory_contains_nothing(tree: Path) -> None:
    assert not place(tree, "a").inside(place(tree, "missing"))


def test_the_way_down(tree: Path) -> None:
    assert place(tree, "link/c").way_from(place(tree, "a")) == (b"b", b"c")
    assert place(tree, "a").way_from(place(tree, "a")) == ()
    assert place(tree, "other").way_from(place(tree, "a")) == ()


def test_merged_over_a_layer_or_inside_a_lower_is_fine(tree: Path) -> None:
    lower, upper, work = place(tree, "a"), place(tree, "a2", Part.UPPER), place(tree, ".w", Part.WORK)
    for merged in ("a", "a2", "a/b/c", "other"):
        check([lower], upper, work, place(tree, merged, Part.MERGED))


@given(st.lists(st.sampled_from(["", "x", "x/y", "x/y/z", "w", "w/v"]), min_size=4, max_size=4))
def test_every_arrangement_in_which_a_layer_contains_another_is_refused(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """The check, against the plain meaning on paths without links."""
    root = tmp_path_factory.getbasetemp() / "arrangement"
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
    paths = [os.path.normpath(root / name) for name in names]
    lower, upper, work, merged = (
        Survey().place(part, path)
        for part, path in zip((Part.LOWER, Part.UPPER, Part.WORK, Part.MERGED), paths, strict=True)
    )

    def inside(inner: str, outer: str) -> bool:
        return inner == outer or inner.startswith(outer + "/")

    low, up, wo, me = paths
    bad = (
        any(inside(one, low) or inside(low, one) for one in (up, wo))
        or inside(up, wo)
        or inside(wo, up)
        or (inside(me, up) and me != up)
        or inside(me, wo)
    )
    try:
        check([lower], upper, work, merged)
        refused = False
    except UserError as error:
        refused = error.exit_code is ExitCode.LAYERS
    assert refused is bad
