"""`fuseunion.mount`: what it shows, what it says of changes, how they are dropped, and its errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fuseunion.errors import ExitCode
from tests.api.programs import tells
from tests.support.arena import Arena
from tests.support.interpreter import PROJECT
from tests.support.layers import File
from tests.support.mountinfo import mounts_under

ENGINES = ("fuse", "kernel", "ranch")


def _lower(arena: Arena) -> None:
    arena.lower({"a": File(b"a"), "gone": File(b"x"), "d/e": File(b"e"), "d/f": File(b"f"), "kept": File(b"k")})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.actors("userns")
def test_a_throw_away_mount(arena: Arena, engine: str) -> None:
    """Changes are seen, told, dropped, and gone in the end; with every engine."""
    _lower(arena)
    program = f"""
    with fuseunion.mount(lower, engine={engine!r}, allow_writable_lower=True) as m:
        tell([m.engine, m.upper.parent == m.merged.parent, os.fspath(m) == str(m.merged)])
        tell(bool(m.diff()))
        (m.merged / "new").mkdir()
        (m.merged / "new/x").touch()
        (m.merged / "gone").unlink()
        (m.merged / "a").unlink()
        (m.merged / "a").write_text("other")
        (m.merged / "d/f").unlink()
        tell(str(m.diff()))
        m.reset()
        tell([str(m.diff()), (m.merged / "a").read_text(), (m.merged / "gone").exists(), (m.merged / "new").exists()])
        (m.merged / "again").touch()
        tell(str(m.diff()))
    tell(m.merged.exists())
    """
    told = tells(arena, program)
    everything = "M a\nD d/f\nD gone\nA new\nA new/x"
    assert told == [[engine, True, True], False, everything, ["", "a", True, False], "A again", False]


@pytest.mark.actors("root", "user")
def test_an_upper_is_kept(arena: Arena) -> None:
    """With UPPER and MERGED it is the mount that the command makes."""
    _lower(arena)
    arena.directory("merged")
    program = """
    with fuseunion.mount([lower, str(lower)], upper, root / "merged", fakeroot=True, options="noacl") as m:
        pass
    """
    with pytest.raises(AssertionError, match="is the same directory as"):
        tells(arena, program)
    program = program.replace("[lower, str(lower)]", "[lower]").replace("pass", '(m.merged / "a").write_text("1")')
    assert tells(arena, program) == []
    assert (arena.upper / "a").read_text() == "1"
    assert os.listdir(arena.root / "merged") == []


@pytest.mark.actors("user")
def test_what_counts_as_a_change(arena: Arena) -> None:
    """Not a copy-up by itself, nor times; but the mode, and a directory in the place of a file."""
    _lower(arena)
    program = """
    with fuseunion.mount(lower) as m:
        (m.merged / "a").open("r+").close()
        os.utime(m.merged / "d/e")
        (m.merged / "kept").write_text("k")
        tell(str(m.diff()))
        (m.merged / "a").chmod(0o600)
        os.setxattr(m.merged / "kept", "user.x", b"y")
        (m.merged / "gone").unlink()
        (m.merged / "gone").mkdir()
        (m.merged / "gone/in").touch()
        (m.merged / "d").rename(m.merged / "moved")
        tell(str(m.diff()))
        stats = m.stats()
        tell([stats.engine, stats.pid > 1, stats.inodes > 1, stats.open_files])
    """
    changed = "M a\nD d\nM gone\nA gone/in\nM kept\nA moved\nA moved/e\nA moved/f"
    assert tells(arena, program) == ["", changed, ["fuse", True, True, 0]]


@pytest.mark.actors("user")
def test_a_mount_over_its_own_lower(arena: Arena) -> None:
    """What it changes is still found, though the lower is covered."""
    _lower(arena)
    program = """
    with fuseunion.mount(lower, merged=lower) as m:
        (m.merged / "a").write_text("other")
        tell([str(m.diff()), (lower / "a").read_text()])
    tell((lower / "a").read_text())
    """
    assert tells(arena, program) == [["M a", "other"], "a"]


@pytest.mark.actors("user")
def test_errors_are_those_of_the_command(arena: Arena) -> None:
    _lower(arena)
    program = """
    def fails(call):
        try:
            call()
        except fuseunion.UserError as error:
            tell([error.exit_code, str(error)])
    fails(lambda: fuseunion.mount(root / "missing"))
    fails(lambda: fuseunion.mount(lower, bogus=1))
    fails(lambda: fuseunion.mount(lower, ephemeral=True))
    fails(lambda: fuseunion.mount(""))
    fails(lambda: fuseunion.mount([]))
    with fuseunion.mount(lower, upper) as m:
        fails(lambda: fuseunion.mount(lower, upper))
        fails(m.reset)
        if os.fork() == 0:
            fails(m.stats)
            m.close()
            os._exit(0)
        os.wait()
        tell((m.merged / "a").read_text())
    fails(m.diff)
    m.close()
    with fuseunion.mount(lower) as m:
        (m.merged / "new").touch()
        with open(m.merged / "a"):
            fails(m.reset)
        tell((m.merged / "new").exists())
        held = open(m.merged / "a")
    tell([m.merged.exists(), held.read()])
    """
    told = tells(arena, program)
    codes = [line[0] for line in told if isinstance(line, list) and not isinstance(line[0], bool)]
    layers, usage, busy = ExitCode.LAYERS, ExitCode.USAGE, ExitCode.BUSY
    assert codes == [layers, usage, usage, usage, usage, busy, usage, usage, usage, busy]
    assert "/missing'" in told[0][1]
    assert "--bogus" in told[1][1]
    assert "is in use by another live fuseunion mount" in told[5][1]
    assert "upper" in told[6][1]
    assert "a" in told
    assert "open" in told[-3][1], "who uses it is named"
    # Busy at the end, it left the tree; who has something open goes on.
    assert told[-2:] == [True, [False, "a"]]


@pytest.mark.actors("user")
def test_in_trio(arena: Arena) -> None:
    _lower(arena)
    program = """
    import trio
    async def main():
        async with fuseunion.trio.mount(lower) as m:
            (m.merged / "new").touch()
            tell([m.engine, str(await m.diff()), (await m.stats()).engine])
            await m.reset()
            tell([str(await m.diff()), Path(m) == m.merged])
        with trio.move_on_after(0):
            async with fuseunion.trio.mount(lower) as m:
                await trio.sleep_forever()
        tell(m.merged.exists())
    trio.run(main)
    """
    assert tells(arena, program) == [["fuse", "A new", "fuse"], ["", True], False]


@pytest.mark.actors("user")
def test_ends(arena: Arena) -> None:
    """With the last reference, and with the interpreter."""
    _lower(arena)
    program = """
    merged = fuseunion.mount(lower).merged
    tell(merged.exists())
    kept = fuseunion.mount(lower)
    sys.exit()
    """
    assert tells(arena, program) == [False]
    assert mounts_under(arena.root) == []


def test_the_package_is_lean() -> None:
    """`import fuseunion` imports nothing, and the API little."""
    code = (
        "import sys; before = set(sys.modules); import fuseunion; print(sorted(set(sys.modules) - before))\n"
        "fuseunion.mount; print(sorted(name for name in sys.modules if name.startswith(('fuseunion.', 'trio'))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lean = ["fuseunion.api", "fuseunion.api.changes", "fuseunion.api.mount", "fuseunion.api.talk", "fuseunion.errors"]
    assert done.stdout.splitlines() == ["['fuseunion']", str(lean)]
