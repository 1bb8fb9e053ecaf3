"""A namespace with the lower unpacked in it, and the outcomes of the scenario there, each engine's run once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.rootfs.scenario import Outcome, run_scenario
from tests.support.debian import Debian, unpack
from tests.support.interpreter import Interpreter
from tests.support.merged import Engine, Writable
from tests.support.namespace import Namespace
from tests.support.namespace_tree import snapshot_in
from tests.support.tree import Tree


@dataclass
class Stage:
    """Where the scenario runs; everything is made at the first use."""

    debian: Debian
    namespace: Namespace
    interpreter: Interpreter
    launcher: Path
    directory: Path
    _outcomes: dict[Engine, Outcome] = field(default_factory=dict)
    _failed: set[Engine] = field(default_factory=set)

    @cached_property
    def lower(self) -> Path:
        """The unpacked Debian base."""
        return unpack(self.debian, self.namespace, self.directory / "lower")

    @cached_property
    def lower_before(self) -> Tree:
        """The lower before anything was mounted over it."""
        assert not self._outcomes
        return self.snapshot(self.lower)

    def snapshot(self, root: Path) -> Tree:
        """A tree as it is seen inside."""
        return snapshot_in(self.namespace, self.interpreter, root)

    def outcome(self, engine: Engine) -> Outcome:
        """What the scenario gave with `engine`."""
        assert self.lower_before
        assert engine not in self._failed, f"{engine.value} failed already: see the first failure"
        if engine not in self._outcomes:
            self._failed.add(engine)
            writable = Writable(engine, self.namespace, self.launcher, self.lower, self.directory / engine.name.lower())
            self._outcomes[engine] = run_scenario(writable, self.debian.packages, self.snapshot)
            self._failed.remove(engine)
        return self._outcomes[engine]
