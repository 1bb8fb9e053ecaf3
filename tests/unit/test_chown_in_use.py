"""fuseunion chown refuses an upper that something else writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuseunion.cli.commands import chown
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import syscalls


def _refused(*argv: str) -> UserError:
    with pytest.raises(UserError) as refused:
        chown.main([*argv])
    assert "\n" not in refused.value.message
    return refused.value


def test_a_locked_upper_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuseunion.mounting.checks.in_use.PATIENCE", 0)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert _refused(str(tmp_path), "--to", "root").exit_code is ExitCode.BUSY
    finally:
        os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in another mount namespace"])
def test_the_upper_of_a_kernel_overlay_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    for name in ("lower", "up per", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/up per,workdir={tmp_path}/work"
    monkeypatch.setenv("WORDS", options)
    monkeypatch.setenv("TARGET", str(tmp_path / "merged"))
    script = 'mount -t overlay overlay -o "$WORDS" "$TARGET" && echo mounted && read line; umount "$TARGET"'
    command = ["unshare", "--mount", "sh", "-c", script] if elsewhere else ["sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        refused = _refused(str(tmp_path / "up per"), "--to", "root")
        holder.communicate(b"\n")
    assert refused.exit_code is ExitCode.BUSY
    assert "kernel overlay" in refused.message
    assert chown.main([str(tmp_path / "up per"), "--to", "root"]) == ExitCode.OK


def test_the_upper_of_a_running_mount_program_is_busy(tmp_path: Path) -> None:
    # Any program that says so on its command line counts; fuse-overlayfs shows its upper nowhere else.
    words = f"lowerdir=/nowhere,upperdir={tmp_path},workdir=/nowhere"
    command = [sys.executable, "-c", "print('up', flush=True); input()", "-o", words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n"
        refused = _refused(str(tmp_path), "--to", "root")
        holder.communicate(b"\n")
    assert refused.exit_code is ExitCode.BUSY
    assert f"is in use by process {holder.pid}" in refused.message


@pytest.mark.root
def test_a_mount_in_the_upper_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    syscalls.mount(b"none", os.fsencode(inner), b"tmpfs", 0, b"")
    try:
        refused = _refused(str(tmp_path), "--to", "5:6")
    finally:
        syscalls.umount2(os.fsencode(inner), 0)
    assert refused.message == f"cannot change the owner of '{inner}': {os.strerror(errno.EXDEV)}"
    assert tmp_path.stat().st_uid == 0


def test_the_upper_of_a_ranch_is_busy(tmp_path: Path) -> None:
    for name in ("lower", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").touch()
    upper, merged = tmp_path / "upper", tmp_path / "merged"
    program = [sys.executable, "-m", "fuseunion"]
    layers = [str(tmp_path / "lower"), str(upper), str(merged)]
    subprocess.run([*program, "--engine", "ranch", "--allow-writable-lower", *layers], check=True)
    try:
        refused = _refused(str(upper), "--to", "root")
    finally:
        subprocess.run([*program, "umount", merged], check=True)
    assert refused.exit_code is ExitCode.BUSY
    assert str(merged) in refused.message
