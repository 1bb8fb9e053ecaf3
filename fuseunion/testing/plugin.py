"""Fixtures that show a tree as a throw-away writable view: `union`, `module_union`, `session_union`.

    def test_build(union):
        view = union("examples/project")
        (view / "settings").write_text("changed")       # nobody else sees it, and it is gone after the test

A view of a module or session is made once and reset between tests, which takes milliseconds (Mount.reset). When a test
fails, the report says what it changed, and with --union-keep its upper is kept. Each process of pytest-xdist has its
own views.

pytest loads this module in every run, so it imports nothing else at its top.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import pluggy

    import fuseunion
    from fuseunion.api.mount import AnyPath, Value

_LINES = 50
"""Of changes in a report; there may be many thousand."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the command line and of the configuration file."""
    group = parser.getgroup("fuseunion", "throw-away writable views of a tree (fuseunion)")
    group.addoption("--union-engine", metavar="ENGINE", help="auto, fuse, kernel, ranch or fastest")
    group.addoption("--union-keep", metavar="DIR", help="keep what a failed test changed in a directory below DIR")
    parser.addini("union_engine", "the engine, where --union-engine is not given", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Keep the views of this process in one place."""
    config.pluginmanager.register(Views(config), "fuseunion-views")


class Views:
    """Every view that is mounted now.

    Args:
        config: of the run.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.engine = str(config.getoption("union_engine") or config.getini("union_engine"))
        self.root = config.rootpath
        keep = config.getoption("union_keep")
        self._keep = Path(config.invocation_params.dir, keep) if keep else None
        self.live: list[Unions] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pluggy.Result[pytest.TestReport], None]:
        """Say what a failed test changed, and keep it if that is wanted."""
        outcome = yield
        report = outcome.get_result()
        if report.failed:
            for unions in self.live:
                for mount in unions.mounts:
                    report.sections += self._changed(item, mount)

    def _changed(self, item: pytest.Item, mount: fuseunion.Mount) -> list[tuple[str, str]]:
        import fuseunion

        try:
            lines = str(mount.diff()).splitlines()
            if not lines:
                return []
            if len(lines) > _LINES:
                lines[_LINES:] = [f"... and {len(lines) - _LINES} more"]
            if self._keep is not None:
                lines.append(f"kept: {self._kept(item.nodeid, mount)}")
        except (fuseunion.UserError, OSError) as error:
            lines = [f"cannot be said: {error}"]
        return [(f"changes in the union at {mount.merged}", "\n".join(lines))]

    def _kept(self, nodeid: str, mount: fuseunion.Mount) -> str:
        """Copy an upper, as an upper, with its whiteouts and attributes; where to, or why not."""
        import subprocess

        assert self._keep is not None and mount.upper is not None
        self._keep.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^\w.-]+", "-", nodeid).strip("-")[-200:]
        place, number = self._keep / name, 1
        while place.exists():
            number += 1
            place = self._keep / f"{name}-{number}"
        done = subprocess.run(["cp", "-a", "--", mount.upper, place], capture_output=True, text=True, check=False)
        return str(place) if done.returncode == 0 else f"not whole, {done.stderr.strip()}"

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_teardown(self) -> Generator[None, None, None]:
        """After the fixtures of the test have ended: nothing that it changed is there for the next one."""
        yield
        for unions in self.live:
            unions.reset()


class Unions:
    """Makes views; what the fixtures are.

    Args:
        views: where they are kept.
    """

    def __init__(self, views: Views) -> None:
        self._views = views
        self._made: dict[str, fuseunion.Mount] = {}

    @property
    def mounts(self) -> list[fuseunion.Mount]:
        """Those that are mounted now."""
        return list(self._made.values())

    def __call__(self, *lower: AnyPath, **options: Value) -> fuseunion.Mount:
        """A throw-away writable view of a tree; of the same tree with the same options it is the same view.

        Args:
            lower: the tree, relative to pytest's root directory; several of them topmost first.
            options: as of fuseunion.mount.
        Raises:
            UserError: it cannot be mounted.
        """
        import fuseunion

        lowers = [self._views.root / path for path in lower]
        # With a ranch, files would else be links to those of the tree.
        options = {"engine": self._views.engine, "copy": ["*"], **options}
        key = repr((lowers, sorted(options.items())))
        if key not in self._made:
            self._made[key] = fuseunion.mount(lowers, None, None, **options)
        return self._made[key]

    def reset(self) -> None:
        """Drop what was changed in all views; one that cannot be reset is given up.

        Raises:
            UserError: BUSY: the test left something open.
        """
        import fuseunion

        for key, mount in list(self._made.items()):
            try:
                mount.reset()
            except fuseunion.UserError:
                self._made.pop(key).close()
                raise

    def close(self) -> None:
        """Unmount all views."""
        while self._made:
            self._made.popitem()[1].close()


def _unions(config: pytest.Config) -> Iterator[Unions]:
    views = config.pluginmanager.get_plugin("fuseunion-views")
    assert isinstance(views, Views)
    unions = Unions(views)
    views.live.append(unions)
    try:
        yield unions
    finally:
        views.live.remove(unions)
        unions.close()


@pytest.fixture
def union(pytestconfig: pytest.Config) -> Iterator[Unions]:
    """Throw-away writable views of trees, for one test: `view = union(TREE)`."""
    yield from _unions(pytestconfig)


@pytest.fixture(scope="module")
def module_union(pytestconfig: pytest.Config) -> Iterator[Unions]:
    """The same, mounted once for a module and reset after each test."""
    yield from _unions(pytestconfig)


@pytest.fixture(scope="session")
def session_union(pytestconfig: pytest.Config) -> Iterator[Unions]:
    """The same, mounted once for the session and reset after each test."""
    yield from _unions(pytestconfig)
