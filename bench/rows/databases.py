"""Databases: small writes, each of them synced."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.row import Failed, Measurement, NotRun, row
from bench.rows.io import small_lower
from bench.stage import Ground, Stage, Word

TRANSACTIONS = """
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute("CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)")
begin = time.perf_counter()
for number in range(int(sys.argv[2])):
    base.execute("INSERT INTO numbers VALUES (?, ?)", (number, "x" * 100))
seconds = time.perf_counter() - begin
print(seconds, base.execute("SELECT sum(length(text)) + count(*) FROM numbers").fetchone()[0])
"""


@row("sqlite", "{size:,} transactions of SQLite", tiny=20, small=300, full=2_000, prepare=small_lower, changes=True)
def sqlite(stage: Stage, size: int) -> Iterator[Measurement]:
    """With its defaults: a journal that is made, synced and removed each time."""
    yield from stage.reported(("",), sys.executable, "-I", "-c", TRANSACTIONS, stage.merged / "base.db", size)


SERVER = 33
"""The user of the server, which refuses to be root; some id that every namespace with subordinate ids has."""

AS_SERVER = ("setpriv", f"--reuid={SERVER}", f"--regid={SERVER}", "--clear-groups")


def _postgres() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise NotRun("PostgreSQL is not installed")
    return found[-1].parent


def cluster(ground: Ground, size: int) -> None:
    """A lower with a database cluster."""
    lower = ground.lower()
    data = lower / "data"
    data.mkdir(mode=0o700)
    os.chown(data, SERVER, SERVER)
    words: list[Word] = [*AS_SERVER, _postgres() / "initdb", "-D", data, "-U", "bench", "-A", "trust", "--no-sync"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd="/", check=False)
    if done.returncode != 0:
        raise NotRun(f"initdb: {done.stderr.strip().splitlines()[-1]}")


@row("pgbench", "{size:,} transactions of pgbench, one client", tiny=20, small=200, full=2_000, prepare=cluster,
     changes=True, programs=("setpriv",))  # fmt: skip
def pgbench(stage: Stage, size: int) -> Iterator[Measurement]:
    """A cluster of the lower, which is changed."""
    binaries, data, sockets = _postgres(), stage.merged / "data", stage.scratch("sockets")
    os.chown(sockets, SERVER, SERVER)
    control: list[Word] = [*AS_SERVER, binaries / "pg_ctl", "-D", data, "-w"]
    address: list[Word] = ["-h", str(sockets), "-U", "bench"]
    server = f"-k {sockets} -c listen_addresses=''"
    _run(*control, "-l", sockets / "log", "-o", server, "start")
    try:
        _run(binaries / "pgbench", *address, "-i", "-q", "postgres")
        words: list[Word] = [binaries / "pgbench", *address, "-n", "-t", size, "postgres"]
        done = stage.timed("", *words)
        yield done._replace(found=_written(*address))
    finally:
        _run(*control, "-m", "fast", "stop")


def _written(*address: Word) -> str:
    """How many transactions the base remembers."""
    query = "SELECT count(*), sum(delta) IS NOT NULL FROM pgbench_history"
    words = [_postgres() / "psql", *address, "-Atc", query, "postgres"]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True, cwd="/")
    return f"{done.stdout.strip()} in the history"


def _run(*words: Word) -> None:
    # The server inherits the descriptors, so no pipes.
    done = subprocess.run([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                          check=False)  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"{Path(str(words[-1])).name}: {words[-2]} {words[-1]} ended with {done.returncode}")
