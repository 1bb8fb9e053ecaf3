"""`fuseunion.run`: a command in a union, from Python."""

from __future__ import annotations

import json

import pytest

import fuseunion
from fuseunion.errors import ExitCode
from tests.api.programs import tells
from tests.exec.stage import programs, tree
from tests.support.arena import Arena


@pytest.mark.actors("root", "user")
def test_a_command(arena: Arena) -> None:
    """Its output, its status, and what it leaves; options are those of exec, and of subprocess.run."""
    arena.lower(tree())
    binds = programs()[1::2]
    program = f"""
    binds = json.loads({json.dumps(binds)!r})
    def sh(upper, script, **more):
        done = fuseunion.run(lower, upper, ["sh", "-c", script], bind=binds, net="none", text=True,
                             capture_output=True, **more)
        return [done.returncode, done.stdout]
    tell(sh(upper, "echo kept >/data/new; cat; exit 7", input="input"))
    tell(sh(upper, "cat /data/new /data/file"))
    tell(sh(None, "rm /data/new; echo dropped >/data/file; cat /data/*"))
    tell(sh(None, "cat /data/file; kill -TERM $$"))
    try:
        sh(None, "exit 3", check=True)
    except Exception as error:
        tell([type(error).__name__, error.returncode])
    """
    assert tells(arena, program) == [
        [7, "input"],
        [0, "kept\nof the lower\n"],
        [0, "dropped\n"],
        [143, "of the lower\n"],
        ["CalledProcessError", 3],
    ]
    assert (arena.upper / "data/new").read_text() == "kept\n"


@pytest.mark.actors("root")
def test_a_union_that_cannot_be_made(arena: Arena) -> None:
    """The command line judges: its line, and its exit code."""
    program = """
    done = fuseunion.run(root / "missing", None, ["true"], capture_output=True, text=True)
    tell([done.returncode, done.stderr.count(chr(10)), "missing" in done.stderr])
    """
    assert tells(arena, program) == [[ExitCode.LAYERS, 1, True]]


def test_mistakes() -> None:
    for call in (
        lambda: fuseunion.run("lower", None, []),
        lambda: fuseunion.run("lower", None, "true"),
        lambda: fuseunion.run([], None, ["true"]),
        lambda: fuseunion.run("", None, ["true"]),
        lambda: fuseunion.run("lower", "", ["true"]),
        lambda: fuseunion.run("lower", None, ["true"], ephemeral=True),
    ):
        with pytest.raises(fuseunion.UserError) as caught:
            call()
        assert caught.value.exit_code == ExitCode.USAGE
    with pytest.raises(TypeError):
        fuseunion.run("lower", None)  # type: ignore[call-arg]
