"""`fuseunion diff UPPER|MERGED`: what an upper changes."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from fuseunion.cli.commands.layers import said
from fuseunion.cli.parser import Arguments, CommandParser
from fuseunion.core.union import Union
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.mounting import log
from fuseunion.mounting.checks.placement import Part
from fuseunion.offline.layers import changes, opening, text_diff
from fuseunion.offline.layers.changes import Aspect, Change, Kind

HELP = """\
Usage: fuseunion diff UPPER [--lower LOWER[:LOWER...]] [--tree | --stat | --json] [--content] [--exit-code]
       fuseunion diff MERGED [--tree | --stat | --json] [--content] [--exit-code]

Says what the upper directory UPPER, or the mount MERGED, changes of its lower directories: what was added (A),
modified (M), replaced by another type of object (T), deleted (D). Times alone are no change. Without its lowers an
upper tells only what is present (P) in it, and what is deleted.

Options:
  --lower LOWER[:LOWER...]  the lower directories, topmost first; repeatable
  --work DIR                the work directory of UPPER, when that is not the default one
  --tree                    as a tree
  --stat                    only how many changes there are, and their size
  --json                    for programs
  --content                 a unified diff of text files with each change; needs the lowers
  --exit-code               exit with 1 when there are changes, with 0 when there are none
  -h, --help                print this help

Examples:
  fuseunion diff upper --lower base
  fuseunion diff ~/merged --content
"""

_LETTERS = {Kind.ADDED: "A", Kind.MODIFIED: "M", Kind.REPLACED: "T", Kind.DELETED: "D", Kind.PRESENT: "P"}
_COLOURS = {Kind.ADDED: 32, Kind.MODIFIED: 33, Kind.REPLACED: 35, Kind.DELETED: 31, Kind.PRESENT: 36}
"""Of ECMA-48, as git has them."""


def main(arguments: list[str]) -> int:
    """Say what one upper changes.

    Returns:
        FAILURE with --exit-code when there are changes, else OK.
    Raises:
        UserError: USAGE; LAYERS where a layer cannot be read.
    """
    parser = CommandParser("diff", HELP)
    for name in ("--tree", "--stat", "--json", "--content", "--exit-code"):
        parser.flag(name)
    parser.values("--lower")
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if len(asked.operands) != 1:
        raise UserError("give one directory: fuseunion diff UPPER --lower LOWER, or fuseunion diff MERGED")
    if sum((asked.tree, asked.stat, asked.json)) > 1:
        raise UserError("--tree, --stat and --json exclude each other; give one of them")
    if asked.content and (asked.stat or asked.json or asked.tree):
        raise UserError("--content goes with the plain list alone; leave --tree, --stat and --json out")
    try:
        return _diff(asked)
    except UserError as error:
        # Never 1: that says that there are changes.
        code = ExitCode.LAYERS if error.exit_code is ExitCode.FAILURE else error.exit_code
        raise UserError(error.message, code) from None


def _diff(asked: Arguments) -> ExitCode:
    with said.to_a_pipe(), ExitStack() as stack, said.reading(asked.operands[0]):
        found = _Found.opened(stack, asked)
        if asked.content and found.before is None:
            raise UserError("--content compares with the lower directories; give them with --lower")
        if _show(found, asked) and asked.exit_code:
            return ExitCode.FAILURE
    return ExitCode.OK


class _Found(NamedTuple):
    """What is compared; `before` is None for an upper alone."""

    view: opening.View
    before: Union | None

    @classmethod
    def opened(cls, stack: ExitStack, asked: Arguments) -> _Found:
        (given,) = asked.operands
        lowers = said.lowers_of(asked.lower)
        mounted = None if lowers else _mounted_at(given)
        if mounted is not None:
            upper, lowers = mounted
            fds = stack.enter_context(opening.opened_directories((upper, *lowers)))
            view = stack.enter_context(opening.shared(fds[0], fds[1:]))
            return cls(view, stack.enter_context(opening.read_only(fds[1:])))
        view = stack.enter_context(opening.readable(given, lowers, asked.work, while_in_use=True))
        said.tell_notes(view)
        if view.shared:
            log.tell(f"note: '{given}' is mounted, or cannot be written by you: it is read as it lies there")
        if not lowers:
            return cls(view, None)
        fds = stack.enter_context(opening.opened_directories(lowers, [Part.LOWER] * len(lowers)))
        return cls(view, stack.enter_context(opening.read_only(fds)))

    def changes(self) -> Iterator[Change]:
        """All changes."""
        return changes.of_upper(self.view) if self.before is None else changes.changes(self.before, self.view)


def _mounted_at(given: str) -> tuple[str, list[str]] | None:
    """The upper and the lowers of what is mounted at a path; None where nothing of ours is.

    What was written there is in the upper then.
    """
    from fuseunion.cli.progress import Progress
    from fuseunion.engines import registry

    found = registry.find(given)
    if found is None:
        return None
    engine, live = found
    status = next((s for s in engine.statuses(live.path) if s.merged == live.path and s.namespace is None), None)
    if status is None or status.upper is None or not status.lowers:
        raise UserError(
            f"what is mounted at '{given}' has no upper directory, or does not say which; give the directories: "
            "fuseunion diff UPPER --lower LOWER",
            ExitCode.LAYERS,
        )
    engine.flush(live, Progress)
    return status.upper, list(status.lowers)


# -- what is printed -------------------------------------------------------------------------------------------------


def _show(found: _Found, asked: Arguments) -> int:
    """Print; returns how many changes there are."""
    if asked.json:
        return _print_json(found)
    totals = _Totals()
    paint = _painter()
    tree = _Tree()
    for change in found.changes():
        totals.add(change)
        if asked.stat:
            continue
        if asked.tree:
            for line in tree.lines(change, paint):
                print(line)
        else:
            print(f"{paint(change.kind)} {_plain(change.path)}{_slash(change)}{_details(change)}")
        if asked.content:
            _print_content(found, change)
    if asked.stat:
        totals.print()
    return totals.count


def _print_content(found: _Found, change: Change) -> None:
    assert found.before is not None
    lines = text_diff.of_objects(change.path, found.before, change.was, found.view.union, change.now)
    if sys.stdout.isatty():
        for line in lines:
            print("\t".join(one_line(part) for part in line.split("\t")))
        return
    sys.stdout.flush()
    # As it is, so that patch(1) can make of it what it is about, whatever the locale.
    file = getattr(sys.stdout, "buffer", None)
    for line in lines:
        if file is not None:
            file.write(line.encode("utf-8", "surrogateescape") + b"\n")
        else:
            print(line)


def _plain(path: bytes) -> str:
    return one_line(os.fsdecode(path))


def _slash(change: Change) -> str:
    st = change.after or change.before
    return "/" if st is not None and stat.S_ISDIR(st.st_mode) and change.path != b"." else ""


def _details(change: Change) -> str:
    """What is known of a change, in brackets."""
    old, new = change.before, change.after
    if change.kind is Kind.MODIFIED:
        assert old is not None and new is not None
        known = [_aspect(aspect, old, new) for aspect in change.aspects]
    elif old is not None and new is not None:
        known = [f"{_object(old)} -> {_object(new)}"]
    else:
        st = new or old
        known = [_object(st)] if st is not None and not stat.S_ISDIR(st.st_mode) else []
        known += [aspect.value for aspect in change.aspects]
    return f"  ({', '.join(known)})" if known else ""


def _object(st: os.stat_result) -> str:
    kind = said.type_of(st.st_mode)
    return f"{kind}, {said.size_of(st.st_size)}" if stat.S_ISREG(st.st_mode) else kind


def _aspect(aspect: Aspect, old: os.stat_result, new: os.stat_result) -> str:
    if aspect is Aspect.MODE:
        return f"mode {stat.S_IMODE(old.st_mode):04o} -> {stat.S_IMODE(new.st_mode):04o}"
    if aspect is Aspect.OWNER:
        return f"owner {old.st_uid}:{old.st_gid} -> {new.st_uid}:{new.st_gid}"
    if aspect is Aspect.CONTENT and old.st_size != new.st_size:
        return f"content, {said.size_of(old.st_size)} -> {said.size_of(new.st_size)}"
    return str(aspect.value)


class _Painter:
    def __init__(self, coloured: bool) -> None:
        self._coloured = coloured

    def __call__(self, kind: Kind) -> str:
        letter = _LETTERS[kind]
        return f"\x1b[{_COLOURS[kind]}m{letter}\x1b[0m" if self._coloured else letter


def _painter() -> _Painter:
    """Colours on a terminal, unless NO_COLOR says otherwise (no-color.org)."""
    return _Painter(sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")


class _Tree:
    """Indents each name beneath its directory, which is named before it."""

    def __init__(self) -> None:
        self._above: list[bytes] = []

    def lines(self, change: Change, paint: _Painter) -> Iterator[str]:
        """The lines for one change: directories on the way that were not named yet, and the name itself."""
        *above, name = change.path.split(b"/")
        common = 0
        while common < min(len(above), len(self._above)) and above[common] == self._above[common]:
            common += 1
        for depth in range(common, len(above)):
            yield f"  {'  ' * depth}{_plain(above[depth])}/"
        yield f"{paint(change.kind)} {'  ' * len(above)}{_plain(name)}{_slash(change)}{_details(change)}"
        self._above = [*above, name]


class _Totals:
    """How many changes of each kind there are, and how many bytes are in files before and after."""

    def __init__(self) -> None:
        self._numbers: Counter[Kind] = Counter()
        self._bytes: Counter[Kind] = Counter()

    def add(self, change: Change) -> None:
        """Count one."""
        self._numbers[change.kind] += 1
        st = change.after or change.before
        if st is not None and stat.S_ISREG(st.st_mode):
            self._bytes[change.kind] += st.st_size

    @property
    def count(self) -> int:
        """All of them."""
        return self._numbers.total()

    def print(self) -> None:
        """One line for each kind."""
        for kind in Kind:
            if self._numbers[kind]:
                print(f"{self._numbers[kind]:>8} {kind.value:<9} {said.size_of(self._bytes[kind])}")
        if not self.count:
            print("no changes")

    def fields(self) -> dict[str, dict[str, int]]:
        """The same for programs."""
        return {
            kind.value: {"count": self._numbers[kind], "bytes": self._bytes[kind]}
            for kind in Kind
            if self._numbers[kind]
        }


def _print_json(found: _Found) -> int:
    totals = _Totals()
    print('{"changes": [', end="")
    for change in found.changes():
        print(",\n" if totals.count else "\n", json.dumps(_fields(change)), sep="", end="")
        totals.add(change)
    print(f'\n], "summary": {json.dumps(totals.fields())}}}')
    return totals.count


def _fields(change: Change) -> dict[str, object]:
    return {
        "path": os.fsdecode(change.path),
        "change": change.kind.value,
        "aspects": [aspect.value for aspect in change.aspects],
        "before": _side(change.before),
        "after": _side(change.after),
    }


def _side(st: os.stat_result | None) -> dict[str, object] | None:
    if st is None:
        return None
    return {
        "type": said.type_of(st.st_mode),
        "mode": f"{stat.S_IMODE(st.st_mode):04o}",
        "uid": st.st_uid,
        "gid": st.st_gid,
        "size": st.st_size,
    }
