"""The inner process: plays the rows on one medium, as one player (bench/place.py starts it).

Reads a specification from stdin and writes results to stdout, one JSON object a line; progress goes to stderr. One
with "why" says what was not run, one with "contestants" is a result.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench.rows  # noqa: F401 - enters the rows
from bench.contestants import KNOWN, Contestant, peer
from bench.place import Condition, Medium, Specification, may_cover
from bench.row import ROWS, Failed, Measurement, NotRun, Row, Scale, Unit
from bench.stage import Ground, Stage, Tools, find_program


@dataclass(slots=True)
class _Part:
    """The samples of one part of a row, of all contestants."""

    unit: Unit
    samples: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, list[str | None]] = field(default_factory=dict)


@dataclass(slots=True)
class _Played:
    """One row of one size under one condition."""

    parts: dict[str, _Part] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, measurement: Measurement) -> None:
        part = self.parts.setdefault(measurement.part, _Part(measurement.unit))
        part.samples.setdefault(name, []).append(measurement.value)
        part.found.setdefault(name, []).append(measurement.found)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tell(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


@contextlib.contextmanager
def _company(condition: Condition, loops: str) -> Iterator[None]:
    """What else the machine does."""
    if condition is Condition.IDLE:
        yield
        return
    spinner = subprocess.Popen([loops, "spin"])
    try:
        yield
    finally:
        spinner.kill()
        spinner.wait()


def judge(found: dict[str, list[str | None]]) -> dict[str, str]:
    """Who found something else than the others, and what.

    The bare directory is right; without it, kernel overlayfs; without that, what most found.
    """
    answers = {name: [text for text in texts if text is not None] for name, texts in found.items()}
    everything = [text for texts in answers.values() for text in texts]
    if not everything:
        return {}
    for judge_of_all in ("plain", "overlayfs"):
        if answers.get(judge_of_all):
            right = answers[judge_of_all][0]
            break
    else:
        right = Counter(everything).most_common(1)[0][0]
    wrong = {name: [text for text in texts if text != right] for name, texts in answers.items()}
    return {name: f"wrong: {texts[0]}, not {right}" for name, texts in wrong.items() if texts}


class _Run:
    """All rows on one medium as one player."""

    def __init__(self, specification: Specification, contestants: Sequence[Contestant]) -> None:
        self.wanted = specification
        self.place = Path(specification.path)
        self.tools = Tools(Path(specification.loops), specification.timeout)
        self.contestants = contestants
        self.where = {"medium": specification.medium, "player": specification.player}
        self.stages = 0

    def play(self) -> None:
        """Each row, at each of its sizes."""
        for name in self.wanted.rows:
            row = ROWS[name]
            lacking = [program for program in row.programs if find_program(program) is None]
            if lacking:
                self._not_run(row, None, None, f"not installed: {' '.join(lacking)}")
                continue
            for size in row.sizes[Scale(self.wanted.scale)]:
                try:
                    with Ground(self.place / "g", self.tools) as ground:
                        row.prepare(ground, size)
                        self._play_on(row, size, ground)
                except (NotRun, Failed, subprocess.CalledProcessError) as error:
                    self._not_run(row, size, None, str(error))

    def _not_run(self, row: Row, size: int | None, contestant: str | None, why: str) -> None:
        _say(f"  {row.name}{f' {size:,}' if size else ''}: {contestant or 'not run'}: {why}")
        _tell({**self.where, "row": row.name, "size": size, "contestant": contestant, "why": why})

    def _play_on(self, row: Row, size: int, ground: Ground) -> None:
        for word in self.wanted.conditions:
            with _company(Condition(word), self.wanted.loops):
                played = self._rounds(row, size, ground)
            for name, why in played.not_run.items():
                self._not_run(row, size, name, why)
            self._hand_out(row, size, word, played)

    def _rounds(self, row: Row, size: int, ground: Ground) -> _Played:
        played = _Played()
        players = [contestant for contestant in self.contestants if contestant.takes_part(row)]
        for number in range(self.wanted.rounds):
            first = number % max(len(players), 1)
            for contestant in [*players[first:], *players[:first]]:
                if contestant.name not in played.trouble:
                    self._sample(row, size, ground, contestant, played)
        return played

    def _sample(self, row: Row, size: int, ground: Ground, contestant: Contestant, played: _Played) -> None:
        self.stages += 1
        place = self.place / f"s{self.stages}"
        if self.wanted.medium == Medium.DISK.value:
            # What the one before has left to write is not to be written while this one is measured.
            subprocess.run(["sync", "-f", self.place], check=True)
        with Stage(place, contestant, ground, self.tools, row.changes) as stage:
            try:
                if row.mounted:
                    stage.mount()
                for measurement in row.measure(stage, size):
                    played.add(contestant.name, measurement)
            except NotRun as error:
                played.not_run[contestant.name] = str(error)
            except (Failed, OSError, subprocess.SubprocessError) as error:
                played.trouble[contestant.name] = str(error)

    def _hand_out(self, row: Row, size: int, condition: str, played: _Played) -> None:
        about = {**self.where, "condition": condition, "row": row.name, "theme": row.theme, "size": size}
        about |= {"says": row.says.format(size=size), "several": len(row.sizes[Scale(self.wanted.scale)]) > 1}
        for name, why in played.trouble.items():
            _say(f"  {row.name} {size:,} ({condition}): {name} FAILED: {why}")
            _tell({**about, "contestant": name, "trouble": why})
        for label, part in played.parts.items():
            wrong = judge(part.found)
            for name, why in wrong.items():
                _say(f"  {row.name} {size:,} {label} ({condition}): {name} {why}")
            _tell(
                {
                    **about,
                    "part": label,
                    "unit": part.unit.value,
                    "contestants": {
                        name: {"samples": samples, "trouble": wrong.get(name) or played.trouble.get(name)}
                        for name, samples in part.samples.items()
                    },
                }
            )
            medians = {name: sorted(samples)[len(samples) // 2] for name, samples in part.samples.items()}
            values = "  ".join(f"{name} {value:.4g}" for name, value in medians.items())
            _say(f"{row.name} {size:,} {label} ({condition}, {part.unit.value}): {values}")


def main() -> None:
    """Cover the short path with the medium, and play."""
    os.umask(0o022)
    wanted = Specification(**json.load(sys.stdin))
    if wanted.medium == Medium.TMPFS.value:
        source = ["-t", "tmpfs", "-o", "size=80%,nr_inodes=0,mode=755", "bench"]
    else:
        source = ["--bind", wanted.directory]
    subprocess.run(["mount", *source, wanted.path], check=True)
    # podman and PostgreSQL keep state of the machine there, which is neither to be changed nor, in a user namespace,
    # always writable.
    for name in ("/run", "/dev/shm"):
        if may_cover(name, Path(wanted.loops)):
            subprocess.run(["mount", "-t", "tmpfs", "bench", name], check=True)
    os.environ.pop("PYTHONPATH", None)  # a peer may be another version of fuseunion, which has its own files
    everybody = {contestant.name: contestant for contestant in (*KNOWN, *map(peer, wanted.peers))}
    present = []
    for name in wanted.contestants:
        why = everybody[name].missing()
        if why is None:
            present.append(everybody[name])
        else:
            _tell({"medium": wanted.medium, "player": wanted.player, "row": None, "contestant": name, "why": why})
            _say(f"  {name}: not run: {why}")
    _Run(wanted, present).play()


if __name__ == "__main__":
    main()
