"""The benchmark of docs/performance.md: it measures, compares what was found, and writes what it says it writes.

No time is asserted: `make bench` is where times are looked at.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.contestants import KNOWN, Layers, peer
from bench.play import judge
from bench.report import document
from bench.report.chart import chart
from bench.report.results import against_native, against_rivals, read
from bench.report.table import tables, value
from bench.row import ROWS, Scale
from tests.support import processes
from tests.support.interpreter import PROJECT
from tests.support.mountinfo import mounts
from tests.support.waiting import wait_until

TABLE_START = "| row | fuse | best FUSE rival | ratio | overlayfs | ratio |"


def run_the_benchmark(place: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run it at the least scale; nothing may be left mounted, running, or in `place` but the results."""
    scratch = place / "scratch"
    scratch.mkdir()
    token = uuid.uuid4().hex
    before = mounts()
    command = [sys.executable, "-m", "bench", "--scale", "tiny", "--json", str(place / "run.json"), *arguments]
    environment = {**os.environ, processes.TOKEN_VARIABLE: token, "TMPDIR": str(scratch), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert (place / "run.json").exists(), done.stderr
    wait_until(lambda: not processes.with_token(token), "the processes of the benchmark to end")
    assert mounts() == before
    assert not os.listdir(scratch)
    return done, json.loads((place / "run.json").read_text())


def test_a_run_gives_samples_a_table_and_a_chart(tmp_path: Path) -> None:
    """Rows of reading, of changing, of a loop, and of entering; none of the contestants is wrong."""
    rows, names = ["exec", "find", "missing", "chmod"], ["fuse", "overlayfs", "plain"]
    done, raw = run_the_benchmark(tmp_path, *rows, "--rounds", "2", "--contestants", ",".join(names))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (raw["failed"], raw["not_run"]) == ([], [])
    assert {(result["row"], result["part"]) for result in raw["results"]} == {
        *(("find", part) for part in ("cold", "second", "third")),
        *(("missing", part) for part in ("first", "again")),
        ("chmod", ""),
        ("exec", ""),
    }
    for result in raw["results"]:
        assert result["contestants"].keys() == set(names) - ({"plain"} if result["row"] == "exec" else set())
        for record in result["contestants"].values():
            assert record["trouble"] is None
            assert len(record["samples"]) == 2 and min(record["samples"]) > 0
    text = (tmp_path / "run.md").read_text()
    assert TABLE_START in text
    assert all(f"\n| {label} |" in text for label in ("find cold", "missing again", "chmod", "geometric mean"))
    drawing = ElementTree.parse(tmp_path / "run.svg").getroot()
    points = drawing.findall("{http://www.w3.org/2000/svg}circle/{http://www.w3.org/2000/svg}title")
    assert len(points) == len(raw["results"])  # no rival took part


def test_what_cannot_run_and_who_is_wrong_are_said(tmp_path: Path) -> None:
    """A peer that mounts nothing finds nothing; one that is not installed is left out with the reason."""
    peers = ["--peer", "idler=true {merged}", "--peer", "absent=/missing/program {merged}"]
    arguments = ["--rounds", "1", "--contestants", "fuse,plain,idler,absent"]
    done, raw = run_the_benchmark(tmp_path, "du", *peers, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(record["contestant"], record["why"]) for record in raw["not_run"]] == [
        ("absent", "/missing/program is not installed")
    ]
    for result in raw["results"]:
        assert result["contestants"]["idler"]["trouble"].startswith("wrong: 1 lines, not ")
    text = (tmp_path / "run.md").read_text()
    assert "absent: /missing/program is not installed" in text
    assert "idler: wrong" in text
    assert {cell.strip() for cell in text.partition("| du cold |")[2].splitlines()[0].split("|")} >= {"failed"}


def test_a_peer_finds_its_own_files(tmp_path: Path) -> None:
    """Another version of fuseunion would measure this one, if it were told where this one's modules are."""
    program, seen = tmp_path / "fuseunion-old", tmp_path / "seen"
    program.write_text(f"#!/bin/sh\nenv > {seen}\n")
    program.chmod(0o755)
    peers = ["--peer", f"fuseunion-old={program} {{merged}}", "--contestants", "plain,fuseunion-old"]
    run_the_benchmark(tmp_path, "du", *peers, "--rounds", "1", "--medium", "tmpfs")
    names = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert "PATH" in names
    assert not {name for name in names if name.startswith("PYTHON")}


# -- what is said about a run -----------------------------------------------------------------------------------------


def result(part: str, **contestants: list[float]) -> dict[str, Any]:
    """A result of the row `find`."""
    about = {"medium": "tmpfs", "player": "root", "condition": "idle", "row": "find", "theme": "reading", "size": 1}
    about |= {"says": "find -ls", "several": False, "part": part, "unit": "s"}
    records = {name.replace("_", "-"): {"samples": s, "trouble": None} for name, s in contestants.items()}
    return {**about, "contestants": records}


def a_run(*results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The JSON of a run."""
    return {
        "format": 1,
        "date": "2026-01-02T03:04:05+00:00",
        "scale": "tiny",
        "rounds": 3,
        "machine": {"cores": "2"},
        "versions": {"fuseunion": "1.0"},
        "peers": [],
        "results": list(results),
        "failed": [],
        "not_run": [],
        **changes,
    }


def test_ratios_are_of_medians_against_the_best_rival() -> None:
    """The rival is the best of each row; the means are geometric."""
    read_back = read(
        a_run(
            result("cold", fuse=[4.0, 2.0, 100.0], overlayfs=[1.0], fuse_overlayfs=[8.0], unionfs_fuse=[9.0]),
            result("warm", fuse=[1.0], overlayfs=[1.0], fuse_overlayfs=[3.0], unionfs_fuse=[2.0]),
        )
    )
    cold, warm = read_back.lines
    assert (cold.best_rival, cold.ratio(cold.best_rival), cold.ratio("overlayfs")) == ("fuse-overlayfs", 0.5, 4.0)
    assert (warm.best_rival, warm.ratio(warm.best_rival)) == ("unionfs-fuse", 0.5)
    assert against_rivals(read_back.lines) == pytest.approx(0.5)
    assert against_native(read_back.lines) == pytest.approx(2.0)
    assert "| find cold | 4 s (2 s .. 100 s) | fuse-overlayfs 8 s | **0.50** | 1 s (1 s .. 1 s) | 4.00 |" in tables(
        read_back
    )


def test_an_older_fuseunion_is_no_rival() -> None:
    """Other peers are."""
    for name, best in (("fuseunion-old", "fuse-overlayfs"), ("other", "other")):
        raw = a_run(result("", fuse=[2.0], fuse_overlayfs=[1.0]), peers=[f"{name}=true {{merged}}"])
        raw["results"][0]["contestants"][name] = {"samples": [0.5], "trouble": None}
        assert read(raw).lines[0].best_rival == best


def test_who_is_wrong_has_no_time() -> None:
    """However fast it was."""
    raw = a_run(result("", fuse=[2.0], fuse_overlayfs=[1.0], unionfs_fuse=[4.0]))
    raw["results"][0]["contestants"]["fuse-overlayfs"]["trouble"] = "wrong: 1 lines, not 2"
    read_back = read(raw)
    assert read_back.lines[0].best_rival == "unionfs-fuse"
    assert read_back.failed == ("tmpfs, root, idle: find: fuse-overlayfs: wrong: 1 lines, not 2",)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        ({"plain": ["3"], "fuse": ["3"], "unionfs-fuse": ["4"]}, {"unionfs-fuse"}),
        ({"plain": ["3"], "fuse": ["4"], "kernel": ["4"]}, {"fuse", "kernel"}),
        ({"overlayfs": ["3"], "fuse": ["4"], "kernel": ["4"]}, {"fuse", "kernel"}),
        ({"fuse": ["4"], "kernel": ["4"], "ranch": ["5"]}, {"ranch"}),
        ({"plain": ["3", "3"], "fuse": ["3", "2"]}, {"fuse"}),
        ({"plain": [None], "fuse": ["3"], "kernel": ["3"]}, set()),
        ({"fuse": [None], "kernel": [None]}, set()),
    ],
)
def test_a_wrong_answer_is_an_error(found: dict[str, list[str | None]], wrong: set[str]) -> None:
    """The bare directory is right, else overlayfs, else most of them; in every round."""
    assert set(judge(found)) == wrong


def test_the_document_takes_a_run_and_one_place_for_each_release(tmp_path: Path) -> None:
    """What was between the marks goes, but for the lines of other releases."""
    page, picture = tmp_path / "performance.md", tmp_path / "performance.svg"
    page.write_text((PROJECT / "docs/performance.md").read_text())
    for version, ours in (("1.0", 8.0), ("2.0", 4.0), ("2.0", 2.0)):
        raw = a_run(result("", fuse=[ours], overlayfs=[1.0], fuse_overlayfs=[4.0]), versions={"fuseunion": version})
        document.write(read(raw), page, picture)
    text = page.read_text()
    assert text.count("| find |") == 1
    history = [line for line in text.partition("bench: history -->")[2].splitlines() if line.startswith(("| 1", "| 2"))]
    assert history == [
        "| 1.0 | 2026-01-02 | tmpfs | root | idle | 2.00 | 8.00 |",
        "| 2.0 | 2026-01-02 | tmpfs | root | idle | **0.50** | 2.00 |",
    ]
    assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")


def test_a_chart_of_nothing_is_a_chart() -> None:
    """A run in which nothing could be measured."""
    assert ElementTree.fromstring(chart(read(a_run()))).tag.endswith("svg")


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [(1.234, "s", "1.23 s"), (0.0123, "s", "12.3 ms"), (4e-6, "s", "4 µs"), (0.0, "s", "0 µs"),
     (2048, "bytes", "2 KiB"), (-300, "bytes", "-300 B"), (3 << 20, "bytes", "3 MiB"), (18, "descriptors", "18")],
)  # fmt: skip
def test_values_are_short(number: float, unit: str, text: str) -> None:
    """Three digits."""
    assert value(number, unit) == text


# -- the declarations -------------------------------------------------------------------------------------------------


def test_a_peer_is_a_command_with_places() -> None:
    """Without the mount point, a name, or a name of its own it is none."""
    layers = Layers((Path("/l/1"), Path("/l/2")), Path("/u"), Path("/w"), Path("/m"))
    other = peer("other=prog -o 'lowerdir={lower},upperdir={upper}' --work {work} {merged}")
    assert other.mounts is not None
    assert other.mounts(layers) == ["prog", "-o", "lowerdir=/l/1:/l/2,upperdir=/u", "--work", "/w", "/m"]
    for text in ("prog {merged}", "name=prog", "fuse=prog {merged}", "=prog {merged}"):
        with pytest.raises(ValueError, match="NAME=COMMAND"):
            peer(text)


def test_every_row_has_sizes_and_who_plays_it() -> None:
    """And the rows that only some contestants play are there."""
    for row in ROWS.values():
        assert all(row.sizes[scale] for scale in Scale)
        assert any(contestant.name == "fuse" and contestant.takes_part(row) for contestant in KNOWN)
        assert row.says.format(size=1)
    chosen = {name for contestant in KNOWN for name in contestant.rows or ()}
    assert chosen <= ROWS.keys()
