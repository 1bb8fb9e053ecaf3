"""What is kept beside LOWER, in `.NAME.fuseunion-apply`, once an upper is pushed down into it, until it is forgotten.

    plan        the steps, one JSON object in a line; it has this name once all of them, and all of staged/, are on disk
    staged/N    what step N is to put in place
    saved/N     what step N has taken away
    applied     all steps are done
    undoing     they are being taken back; from here on there is only back

Whether a step is done is seen from what lies in staged/ and saved/: each is one or two renames, and both ways can be
gone from anywhere between. Nothing but the renames touches LOWER before the owners, modes and times of directories,
which come last, and whose old ones are in the plan.
"""

from __future__ import annotations

import base64
import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, NamedTuple

from fuseunion.core.disk import trees
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned
from fuseunion.offline import beside
from fuseunion.offline.layers.builder import Facts

_PLAN, _NEW_PLAN, _APPLIED, _UNDOING = b"plan", b"plan.new", b"applied", b"undoing"
STAGED, SAVED = "staged", "saved"
_LONGEST_LINE = 1 << 24


class Replace(NamedTuple):
    """A name of LOWER gets another object, or goes.

    Attributes:
        number: of the step, and of what belongs to it.
        path: in LOWER.
        had: something is there.
        gets: something comes there.
    """

    number: int
    path: bytes
    had: bool
    gets: bool


class Dress(NamedTuple):
    """A directory that both have gets what the upper's has."""

    path: bytes
    old: Facts
    new: Facts


Step = Replace | Dress


def place(lower: str) -> str:
    """Where the journal of a lower directory is kept."""
    return beside.place(lower, "apply")


class Journal:
    """The journal of one lower directory.

    Args:
        path: of it.
        fd: of it, which the journal owns from now on.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._layer = Layer(fd, writable=True, label=path)
        self.staged: RealDir = self._layer.root.child(STAGED.encode())
        self.saved: RealDir = self._layer.root.child(SAVED.encode())

    @classmethod
    def found(cls, lower: str) -> Journal | None:
        """The journal of a lower directory; None where there is none.

        Raises:
            UserError: LAYERS, where it is somebody else's.
        """
        path = place(lower)
        fd = beside.found(path)
        return None if fd is None else cls(path, fd)

    @classmethod
    def made(cls, lower: str) -> Journal:
        """A new, empty journal.

        Raises:
            UserError: LAYERS, where it cannot be made, or not on the filesystem of the lower.
        """
        path = place(lower)
        for each in (path, os.path.join(path, STAGED), os.path.join(path, SAVED)):
            beside.make(each)
        if os.stat(path).st_dev != os.stat(lower).st_dev:
            for name in (f"{path}/{STAGED}", f"{path}/{SAVED}", path):
                os.rmdir(name)
            raise UserError(f"'{lower}' is a mount point: nothing beside it is on its filesystem", ExitCode.LAYERS)
        journal = cls.found(lower)
        assert journal is not None
        return journal

    def close(self) -> None:
        """Let go of it."""
        self._layer.close()

    def remove(self) -> None:
        """Forget it, with all that it has saved; without a plan the rest is garbage."""
        if self.is_planned:
            self._layer.root.unlink(_PLAN)
            self._sync()
        trees.empty(self._layer.root)
        os.rmdir(self.path)

    # -- states ------------------------------------------------------------------------------------------------------

    @property
    def is_planned(self) -> bool:
        """Whether there is a whole plan; else there is nothing but garbage."""
        return self._has(_PLAN)

    @property
    def is_applied(self) -> bool:
        """Whether all steps are done."""
        return self._has(_APPLIED)

    @property
    def is_being_undone(self) -> bool:
        """Whether they are being taken back."""
        return self._has(_UNDOING)

    def note_applied(self) -> None:
        """All steps are done and on disk."""
        self._note(_APPLIED)

    def note_undoing(self) -> None:
        """From here on there is only back."""
        self._note(_UNDOING)

    def _has(self, name: bytes) -> bool:
        return self._layer.root.stat(name) is not None

    def _note(self, name: bytes) -> None:
        os.close(owned.new_file(name, self._layer.root.fd()))
        self._sync()

    def _sync(self) -> None:
        beside.sync(self._layer.root_fd)

    # -- the plan ----------------------------------------------------------------------------------------------------

    def writing(self, stack: ExitStack) -> PlanWriter:
        """What takes the steps of a new plan."""
        fd = owned.new_file(_NEW_PLAN, self._layer.root.fd())
        return PlanWriter(stack.enter_context(os.fdopen(fd, "w", encoding="ascii")))

    def complete(self, writer: PlanWriter) -> None:
        """The plan is whole, and what it needs is on disk."""
        writer.file.flush()
        os.fsync(writer.file.fileno())
        root = self._layer.root
        root.rename(_NEW_PLAN, root, _PLAN)
        self._sync()

    def steps(self, *, backwards: bool = False) -> Iterator[Step]:
        """The steps of the plan, renames before directories in both directions.

        Raises:
            UserError: LAYERS for a plan that cannot be understood.
        """
        with open(owned.open_file(_PLAN, self._layer.root.fd()), "rb") as file:
            offsets: list[int] = []
            dressing: list[int] = []
            while True:
                offset = file.tell()
                line = file.readline(_LONGEST_LINE)
                if not line:
                    break
                (offsets if line.startswith(b'["replace"') else dressing).append(offset)
            for offset in [*(reversed(offsets) if backwards else offsets), *dressing]:
                file.seek(offset)
                yield self._parsed(file.readline(_LONGEST_LINE))

    def _parsed(self, line: bytes) -> Step:
        try:
            kind, *fields = json.loads(line)
            if kind == "replace":
                number, path, had, gets = fields
                return Replace(int(number), os.fsencode(path), bool(had), bool(gets))
            path, old, new = fields
            return Dress(os.fsencode(path), _facts(old), _facts(new))
        except (ValueError, TypeError):
            raise UserError(
                f"the plan in '{self.path}' is damaged; what was saved is in '{self.path}/{SAVED}'", ExitCode.LAYERS
            ) from None


class PlanWriter:
    """Writes the steps of a plan."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def add(self, step: Step) -> None:
        """Add one step."""
        if isinstance(step, Replace):
            fields = ["replace", step.number, os.fsdecode(step.path), step.had, step.gets]
        else:
            fields = ["dress", os.fsdecode(step.path), _as_json(step.old), _as_json(step.new)]
        self.file.write(json.dumps(fields) + "\n")


def _as_json(facts: Facts) -> list[object]:
    xattrs = {os.fsdecode(name): base64.b64encode(value).decode() for name, value in facts.xattrs.items()}
    return [facts.mode, facts.uid, facts.gid, facts.mtime_ns, facts.atime_ns, xattrs]


def _facts(fields: list[object]) -> Facts:
    mode, uid, gid, mtime_ns, atime_ns, xattrs = fields
    numbers = [number for number in (mode, uid, gid, mtime_ns, atime_ns) if isinstance(number, int)]
    if len(numbers) != 5 or not isinstance(xattrs, dict):
        raise ValueError(errno.EINVAL)
    values = {os.fsencode(name): base64.b64decode(value) for name, value in xattrs.items()}
    return Facts(numbers[0], numbers[1], numbers[2], numbers[3], values, 0, numbers[4])
