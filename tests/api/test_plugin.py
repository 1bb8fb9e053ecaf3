"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import os
import pytest

def test_change(union):
    view = union("tree")
    (view / "a").write_text("other")
    (view / "d/new").touch()
    assert str(view.diff()) == "M a\\nA d/new"

def test_tree_is_as_it_was(union):
    assert (union("tree") / "a").read_text() == "a"

def test_same_view(union):
    assert union("tree") is union("tree")
    assert union("tree", "more") is not union("tree")
    assert (union("tree", "more") / "b").read_text() == "b"

mounted = set()

@pytest.mark.parametrize("number", range(3))
def test_module_and_session(module_union, session_union, number):
    for made in module_union, session_union:
        view = made("tree")
        mounted.add(view)
        assert sorted(os.listdir(view)) == ["a", "d"]
        (view / f"new{number}").touch()
    assert len(mounted) == 2
"""

FAILING = """
import os
def test_fails(module_union):
    view = module_union("tree")
    (view / "a").unlink()
    (view / "new").write_text("new")
    assert False

def test_goes_on(module_union):
    assert (module_union("tree") / "a").exists()

def test_leaves_a_file_open(module_union):
    global kept
    (module_union("tree") / "new").touch()
    kept = os.open(module_union("tree") / "a", os.O_RDONLY)

def test_goes_on_after_that(module_union):
    assert not (module_union("tree") / "new").exists()
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with a tree, in which temporary files can be counted."""
    for path, content in {"tree/a": "a", "tree/d/e": "e", "more/b": "b"}.items():
        (pytester.path / path).parent.mkdir(parents=True, exist_ok=True)
        (pytester.path / path).write_text(content)
    (pytester.path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(pytester.path / "tmp"))
    return pytester


def _left(project: pytest.Pytester) -> list[str]:
    return [name for name in os.listdir(project.path / "tmp") if name.startswith("fuseunion-")]


@pytest.mark.parametrize("arguments", [(), ("-n2",)], ids=["plain", "xdist"])
def test_views(project: pytest.Pytester, arguments: tuple[str, ...]) -> None:
    """Writable, apart from each other, gone after the test; for a module or session mounted once."""
    project.makepyfile(TESTS)
    result = project.runpytest_subprocess(*arguments)
    result.assert_outcomes(passed=6)
    assert _left(project) == []
    assert (project.path / "tree/a").read_text() == "a"


def test_a_failed_test(project: pytest.Pytester) -> None:
    """What it changed is reported and kept, and the next test sees nothing of it."""
    project.makepyfile(test_it=FAILING)
    result = project.runpytest("--union-keep=kept")
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*changes in the union at*", "D a", "A new", "kept: *kept/test_it.py-test_fails"])
    result.stdout.fnmatch_lines(["*is busy: used by * open*"])
    kept = project.path / "kept/test_it.py-test_fails"
    assert sorted(os.listdir(kept)) == ["a", "new"]
    assert kept.joinpath("a").is_char_device(), "the whiteout"
    assert _left(project) == []


def test_the_engine_is_chosen(project: pytest.Pytester) -> None:
    """By the configuration file, by an option before that, by the call before both."""
    project.makepyfile(
        """
        def test_it(union):
            print([union("tree").engine, union("tree", engine="fuse").engine])
        """
    )
    project.makeini("[pytest]\nunion_engine = kernel\n")
    project.runpytest("-s").stdout.fnmatch_lines(["*['kernel', 'fuse']*"])
    project.runpytest("-s", "--union-engine=ranch").stdout.fnmatch_lines(["*['ranch', 'fuse']*"])


@pytest.mark.root
@pytest.mark.parametrize("fuse", [True, False], ids=["in a user namespace", "with nothing but links"])
def test_without_root(project: pytest.Pytester, scratch: Path, user: object, fuse: bool) -> None:
    """As an ordinary user: kernel and fuse in a user namespace; where nothing can be mounted, a ranch."""
    place = scratch / f"plugin-{fuse}"
    shutil.copytree(project.path / "tree", place / "tree")
    shutil.copytree(project.path / "more", place / "more")
    (place / "test_it.py").write_text(TESTS)
    subprocess.run(["chown", "-R", "fuseunion-test:", place], check=True)
    shell = "cd %s; TMPDIR=/tmp HOME=/tmp %s -m pytest -q -p no:cacheprovider -s"
    command = ["runuser", "-u", "fuseunion-test", "--"]
    command += ["unshare", "--user", "--map-root-user", "--mount"] if fuse else ["setpriv", "--no-new-privs"]
    python = sys.executable
    done = subprocess.run([*command, "sh", "-c", shell % (place, python)], capture_output=True, text=True, check=False)
    assert "6 passed" in done.stdout, done.stdout + done.stderr
