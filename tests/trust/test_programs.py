"""Programs that people trust with their data, each in a mount and in a plain directory beside it.

The lower holds the state from before, so that each program works on files that have to be copied up.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tree
from tests.support.arena import Arena

WRITERS, ROWS = 4, 60

_WRITER = """
import sqlite3, sys
path, writer, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = sqlite3.connect(path, timeout=60, isolation_level=None)
for row in range(rows):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (writer, row, "x" * 500))
    connection.execute("UPDATE counters SET value = value + 1")
    connection.execute("COMMIT")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
"""


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    environment = {**os.environ, "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null", "LC_ALL": "C"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def test_sqlite_with_several_writers(arena: Arena) -> None:
    """A write-ahead log, whose index is memory that the writers share (mmap), over a database of the lower."""
    lower = arena.directory("lower")
    with sqlite3.connect(lower / "db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE entries (writer INTEGER, row INTEGER, text TEXT)")
        connection.execute("CREATE TABLE counters (value INTEGER)")
        connection.execute("INSERT INTO counters VALUES (0)")
    connection.close()
    arena.guard(lower)
    with arena.mount(lower) as mount:
        arguments = [[sys.executable, "-c", _WRITER, str(mount / "db"), str(n), str(ROWS)] for n in range(WRITERS)]
        writers = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for words in arguments]
        for writer in writers:
            with writer:
                _, errors = writer.communicate(timeout=50)
                assert writer.returncode == 0, errors
        _check(mount / "db")
    with arena.mount(lower) as mount:
        _check(mount / "db")


def _check(database: Path) -> None:
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT value FROM counters").fetchall() == [(WRITERS * ROWS,)]
        found = connection.execute("SELECT writer, row FROM entries ORDER BY writer, row").fetchall()
    finally:
        connection.close()
    assert found == [(writer, row) for writer in range(WRITERS) for row in range(ROWS)]


def test_git_collects_and_checks(arena: Arena) -> None:
    """A repository of the lower, whose objects are read-only: commit, gc, fsck, moved and cloned."""
    lower = arena.directory("lower")
    repository = lower / "repository"
    _run("git", "init", "--quiet", repository)
    _commit(repository, "one")
    arena.guard(lower)
    with arena.mount(lower) as mount:
        here = mount / "repository"
        _commit(here, "two")
        _run("git", "gc", "--quiet", "--prune=now", cwd=here)
        _run("git", "fsck", "--full", "--strict", cwd=here)
        here.rename(mount / "moved")
        _run("git", "clone", "--quiet", mount / "moved", mount / "clone")
        assert _run("git", "log", "--format=%s", cwd=mount / "clone").split() == ["two", "one"]
        assert _run("git", "status", "--porcelain", cwd=mount / "moved") == ""
    with arena.mount(lower) as mount:
        _run("git", "fsck", "--full", "--strict", cwd=mount / "moved")
        shutil.rmtree(mount / "clone")


def _commit(repository: Path, message: str) -> None:
    for number in range(40):
        path = repository / f"{number % 5}/{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{message} {number}\n")
    _run("git", "add", "--all", cwd=repository)
    who = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    _run("git", *who, "commit", "--quiet", "--message", message, cwd=repository)


@pytest.mark.parametrize("into", ["the mount", "a plain directory"])
def test_rsync_finds_nothing_to_do_the_second_time(arena: Arena, into: str) -> None:
    """With hard links, ACLs and attributes; what the mount shows between two calls is the same."""
    source = _tree(arena.directory("source"))
    lower = arena.directory("lower")
    shutil.copytree(source, lower / "copy", symlinks=True)
    arena.guard(lower)
    with arena.mount(lower) as mount:
        (mount / "copy/dir/file").write_text("another content")
        (mount / "copy/more").write_text("of the upper only")
        plain = arena.directory("plain")
        one, other = (source, mount / "copy") if into == "the mount" else (mount / "copy", plain)
        options = ["-aHAX", "--delete", "--numeric-ids"]
        _run("rsync", *options, f"{one}/", f"{other}/")
        assert _run("rsync", *options, "--itemize-changes", f"{one}/", f"{other}/") == ""
        assert _run("rsync", *options, "--itemize-changes", "--checksum", f"{other}/", f"{one}/") == ""


def test_tar_packs_and_unpacks(arena: Arena) -> None:
    """What was unpacked in a mount over another version of the same is what a plain directory gets."""
    source = _tree(arena.directory("source"))
    archive, again = arena.root / "archive.tar", arena.root / "again.tar"
    _run("tar", "--xattrs", "--acls", "--sort=name", "-C", source, "-cf", archive, ".")
    lower = _tree(arena.directory("lower"))
    (lower / "dir/file").write_text("of an older version")
    arena.guard(lower)
    plain = arena.directory("plain")
    unpack = ("tar", "--xattrs", "--xattrs-include=*", "--acls", "-xpf", archive, "-C")
    with arena.mount(lower) as mount:
        _run(*unpack, mount.merged)
        _run(*unpack, plain)
        assert not tree.differences(tree.snapshot(plain), tree.snapshot(mount.merged), tree.SEEN)
        _run("tar", "--xattrs", "--acls", "--sort=name", "-C", mount.merged, "-cf", again, ".")
    assert _run("tar", "-tvf", again) == _run("tar", "-tvf", archive)


def _tree(top: Path) -> Path:
    """Files of many kinds: read-only, hard-linked, with attributes and an ACL, links, empty and sparse ones."""
    (top / "dir/sub").mkdir(parents=True)
    (top / "dir/file").write_text("content")
    (top / "dir/read-only").write_text("content")
    (top / "dir/read-only").chmod(0o444)
    os.link(top / "dir/file", top / "dir/sub/second name")
    (top / "link").symlink_to("dir/file")
    (top / "empty").touch()
    with open(top / "sparse", "wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.write(b"begin")
    os.setxattr(top / "dir/file", "user.kept", b"value")
    subprocess.run(["setfacl", "-m", "u:1:r", str(top / "empty")], check=True)
    for path in sorted(top.rglob("*"), reverse=True):
        os.utime(path, ns=(10**18, 10**18 + 123456789), follow_symlinks=False)
    return top
