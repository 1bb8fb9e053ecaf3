"""Options as mount programs must take them: what is unknown is reported and does not stop the mount."""

from __future__ import annotations

import pytest

from tests.support.arena import Arena
from tests.support.caller import Caller
from tests.support.layers import File

pytestmark = pytest.mark.actors("root", "userns", "user")


@pytest.mark.parametrize(
    "words", ["", ",", ",,,", ",private", ",suid,dev", ",noacl,fsync=0", ",timeout=0", ",noatime,nodiratime,nolazytime"]
)
def test_silent(caller: Caller, arena: Arena, words: str) -> None:
    """Empty elements, and what engines are known to pass."""
    lower, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    if arena.actor.role.value == "user":
        words = words.replace("suid,dev", "nosuid,nodev")  # fusermount3 refuses the others to a user
    with caller.mounted(f"lowerdir={lower}{words}", merged):
        assert (merged / "file").read_text() == "x"


@pytest.mark.parametrize("word", ["frobnicate=7", "relatime", "sync"])
def test_an_unknown_word_is_one_line(caller: Caller, arena: Arena, word: str) -> None:
    """Also what mount(8) passes and nobody here can keep."""
    lower, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    call = caller.call("-o", f"lowerdir={lower},{word},volatile", merged)
    assert (call.exit_code, call.stderr) == (0, f"unknown argument ignored: {word}\n")
    assert (merged / "file").read_text() == "x"
    caller.unmount(merged)
    caller.await_exit(set())


@pytest.mark.parametrize("escaped", ["with\\:colon", "with\\,comma", "with\\\\backslash", "with space"])
def test_escapes_in_a_path(caller: Caller, arena: Arena, escaped: str) -> None:
    name = escaped.replace("\\\\", "\0").replace("\\", "").replace("\0", "\\")
    lower, merged = arena.lower({"file": File(b"x")}, name=name), arena.directory("merged")
    with caller.mounted(f"lowerdir={lower.parent}/{escaped}", merged):
        assert (merged / "file").read_text() == "x"


def test_several_o(caller: Caller, arena: Arena) -> None:
    """mount.fuse3 and containerd give each option its own -o."""
    lower, merged = arena.lower({"file": File(b"x")}), arena.directory("merged")
    upper, work = arena.directory("upper"), arena.directory("work")
    arguments = ["-o", f"workdir={work}", "-o", f"upperdir={upper}"]
    with caller.mounted(f"lowerdir={lower}", merged, before=arguments):
        (merged / "new").touch()
    assert (upper / "new").exists()
