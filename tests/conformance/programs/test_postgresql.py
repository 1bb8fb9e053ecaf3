"""A PostgreSQL cluster with its data directory on a mount: made there, used by many, stopped the hard way, and whole.

PostgreSQL refuses to run as root, that of a user namespace too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.arena import Arena

pytestmark = [pytest.mark.conformance, pytest.mark.actors("user"), pytest.mark.limit(300)]

PROGRAMS = Path("/usr/lib/postgresql")
CLIENTS, TRANSACTIONS = 8, 200


def _program(name: str) -> Path:
    found = sorted(PROGRAMS.glob(f"*/bin/{name}"))
    assert found, f"{name} is missing: run scripts/setup-conformance"
    return found[-1]


def _run(name: str, *arguments: str | Path) -> str:
    done = subprocess.run(
        [_program(name), *map(str, arguments)],
        env={**os.environ, "LC_ALL": "C", "PGUSER": "tester", "PGDATABASE": "postgres"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name} {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def _make(data: Path) -> None:
    _run("initdb", "--data-checksums", "--username=tester", "--auth=trust", "--locale=C", "--pgdata", data)


@contextlib.contextmanager
def _served(arena: Arena, data: Path, *, end: str) -> Iterator[Path]:
    """A running server; the directory of its socket.

    :param end: the mode in which pg_ctl stops it; `immediate` leaves what a crash leaves
    """
    sockets = arena.directory("s")
    options = f"-c listen_addresses= -c unix_socket_directories={sockets}"
    log = arena.root / "server.log"
    # Not the pipes of _run, which the server would keep.
    subprocess.run(
        [_program("pg_ctl"), "start", "--silent", "-w", "-D", data, "-l", log, "-o", options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        check=True,
    )
    try:
        yield sockets
    finally:
        _run("pg_ctl", "stop", "--silent", "-w", "-D", data, "-m", end)


def _use(sockets: Path) -> None:
    _run("pgbench", "-h", sockets, "-n", "-c", str(CLIENTS), "-j", "2", "-t", str(TRANSACTIONS))


def _facts(sockets: Path) -> list[str]:
    """What must hold after any number of transactions of pgbench (TPC-B), however many were cut off."""
    _run("pg_amcheck", "-h", sockets, "--install-missing", "--heapallindexed", "postgres")
    query = """
        SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history),
               (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(delta) FROM pgbench_history),
               (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history),
               (SELECT count(*) FROM pgbench_accounts), (SELECT count(*) FROM pgbench_history)
    """
    return _run("psql", "-h", sockets, "-At", "-F", " ", "-c", query).split()


def _expected(rounds: int) -> list[str]:
    return ["t", "t", "t", "100000", str(rounds * CLIENTS * TRANSACTIONS)]


def _tour(arena: Arena, data: Path) -> None:
    """Use a cluster that pgbench has filled, the second time after a crash of the server."""
    for number, end in enumerate(("immediate", "fast"), 1):
        with _served(arena, data, end=end) as sockets:
            _use(sockets)
            assert _facts(sockets) == _expected(number)
    _run("pg_checksums", "--check", "-D", data)


@pytest.mark.parametrize("born", ["in the mount", "in the lower"])
def test_a_cluster(arena: Arena, born: str) -> None:
    """Rows are what pgbench says, checksums and indexes are whole, also after a crash of the server and a remount."""
    lower = arena.directory("lower")
    data, plain = lower / "data", arena.root / "plain"
    if born == "in the lower":
        _fill(arena, data)
    arena.guard(lower)
    with arena.mount(lower) as mount:
        if born == "in the mount":
            _fill(arena, mount / "data")
        _tour(arena, mount / "data")
        names = _names(mount / "data")
    with arena.mount(lower) as mount, _served(arena, mount / "data", end="fast") as sockets:
        assert _facts(sockets) == _expected(2)
    _fill(arena, plain)
    _tour(arena, plain)
    assert names == _names(plain)


def _fill(arena: Arena, data: Path) -> None:
    _make(data)
    with _served(arena, data, end="fast") as sockets:
        _run("pgbench", "-h", sockets, "--initialize", "--quiet")


def _names(data: Path) -> set[tuple[str, int]]:
    """What lies in a cluster, with the modes; but for the write-ahead log, whose files are numbered by what was
    written, and what autovacuum makes when it has the time."""
    passing = ("pg_wal/", "base/", "pg_stat", "pg_subtrans/", "pg_xact/", "pg_logical/")
    return {
        (name, path.lstat().st_mode)
        for path in data.rglob("*")
        if not (name := str(path.relative_to(data))).startswith(passing)
    }
