"""Whatever one program does for long, the others are answered meanwhile.

No time is measured: what counts is how many requests are answered while the long one is under way. Without pauses none
is, but for one that came just before.
"""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys

import pytest

from tests.support.arena import Arena
from tests.support.layers import Dir, File, build
from tests.support.mounts import FuseunionMount

MANY = 1500
WHITEOUTS = 10_000
ANSWERS = 2
"""More than there can be without pauses, however busy the machine is."""

pytestmark = [pytest.mark.actors("root"), pytest.mark.limit(120)]

SIZES = {"volatile": (b"x" * 100, ["volatile"]), "empty": (b"", []), "volatile and empty": (b"", ["volatile"])}

CALL = """
import os, sys
say = int(sys.argv[1])
os.write(say, b"+")
getattr(os, sys.argv[2])(*sys.argv[3:])
os.write(say, b"+")
"""


def _answers_during(mount: FuseunionMount, call: str, *names: str) -> int:
    """How many requests are answered while another process makes one system call on names in the mount."""
    (mount / "unrelated").stat()  # the kernel knows it: to look it up would wait for the lock of the directory
    answers = 0
    hear, say = os.pipe()
    paths = [str(mount / name) for name in names]
    try:
        with subprocess.Popen([sys.executable, "-ISc", CALL, str(say), call, *paths], pass_fds=[say]) as process:
            os.close(say)
            assert os.read(hear, 1) == b"+"
            while not select.select([hear], [], [], 0)[0]:
                assert not os.path.lexists(mount / f"unrelated/missing{answers}")
                answers += 1
        assert process.returncode == 0
    finally:
        os.close(hear)
    return answers


@pytest.mark.parametrize("kind", SIZES)
def test_a_directory_of_many_files_is_renamed(arena: Arena, kind: str) -> None:
    data, options = SIZES[kind]
    names = {f"d/{number}": File(data) for number in range(MANY)}
    lower = arena.lower({**names, "unrelated/f": File(b"")})
    with arena.mount(lower, options=options) as mount:
        assert _answers_during(mount, "rename", "d", "e") > ANSWERS
        assert len(os.listdir(mount / "e")) == MANY and not (mount / "d").exists()


@pytest.mark.parametrize("call", ["rmdir", "rename"])
def test_a_directory_of_many_whiteouts_goes(arena: Arena, call: str) -> None:
    """It is removed, or renamed over."""
    lower = arena.lower({"d/f": File(b""), "unrelated/f": File(b"")})
    build(arena.upper, {"d": Dir()})
    os.mknod(arena.upper / "d/f", stat.S_IFCHR, 0)
    for number in range(WHITEOUTS):
        os.link(arena.upper / "d/f", arena.upper / f"d/{number}")
    with arena.mount(lower) as mount:
        (mount / "new").mkdir()
        assert _answers_during(mount, call, *(["d"] if call == "rmdir" else ["new", "d"])) > ANSWERS
        assert not (mount / "d").exists() or not os.listdir(mount / "d")
