"""Where no namespace can be made, or one without any rights in it."""

from __future__ import annotations

import errno
import os
import socket
import sys

import pytest

from fuseunion.contained import ids, inside
from fuseunion.errors import ExitCode, UserError


def _forbidden(*_arguments: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), b"/")


def _allowed(*_arguments: object) -> None:
    pass


@pytest.mark.parametrize("name", ["unshare", "mount"])
def test_what_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AppArmor lets a user namespace be made, in which nothing can be mounted."""
    monkeypatch.setattr("fuseunion.linux.syscalls.unshare", _allowed)
    monkeypatch.setattr(f"fuseunion.linux.syscalls.{name}", _forbidden)
    monkeypatch.setattr(os, "setresuid", _allowed)
    monkeypatch.setattr(os, "setresgid", _allowed)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(inside.GO)
        with pytest.raises(
            UserError, match=r"^user namespaces cannot be .* here \(Permission denied\); see fuseunion doctor"
        ) as told:
            inside.enter(ids.single(), ours)
    assert told.value.exit_code is ExitCode.UNAVAILABLE


def test_what_nobody_expected_is_said_too() -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        sys.stderr = open(2, "w")  # noqa: SIM115 - not that of pytest
        inside.live(lambda: int("x"))
    os.close(writer)
    with open(reader) as said:
        assert said.read().startswith("fuseunion: unexpected error: ValueError")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ExitCode.FAILURE
