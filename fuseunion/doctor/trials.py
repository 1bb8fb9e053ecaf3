"""What works here, found by doing it: in child processes, and in a mount namespace of theirs where one can be had.

Nothing is judged by a version number. For root, and root of a user namespace, a probe mounts in a throw-away namespace,
where nobody else sees it. An ordinary user cannot have one: the mount of a probe, made by fusermount3 in a new
directory, is there for a moment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import fuseunion
from fuseunion.core.disk.capabilities import Capabilities
from fuseunion.engines import choose
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import namespaces, syscalls
from fuseunion.mounting import rehearsal
from fuseunion.mounting.options import EngineChoice, Options

_PACKAGES = str(Path(fuseunion.__file__).parent.parent)
_PATIENCE = 60


class Outcome(NamedTuple):
    """Whether something worked, and what was said if not."""

    worked: bool
    said: str = ""


def _in_child(body: Callable[[], None]) -> Outcome:
    """Run something in a child process; an exception is its answer."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            body()
            answer = b"+"
        except OSError as error:
            answer = (error.strerror or str(error)).encode()
        except UserError as error:
            answer = error.message.encode(errors="surrogateescape")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
            answer = f"{type(error).__name__}: {error}".encode(errors="replace")
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return Outcome(answer == b"+", "" if answer == b"+" else answer.decode(errors="surrogateescape"))


def user_namespace() -> Outcome:
    """Whether this user can make a user namespace and mount in it."""

    def body() -> None:
        namespaces.enter_user_namespace()
        namespaces.keep_mounts_private()
        syscalls.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"")

    return _in_child(body)


def mount(options: Options) -> UserError | None:
    """What would refuse a mount before any engine is asked; None where nothing would. Nothing is made."""
    try:
        choose.make_way(options, only_look=True)
        rehearsal.rehearse(options)
    except UserError as error:
        return error
    except OSError as error:
        return UserError(str(error), ExitCode.FAILURE)
    return None


def engine(which: EngineChoice, beside: str | None) -> Outcome:
    """Whether an engine makes a mount that can be written, in a new directory that is removed again.

    Args:
        beside: a directory on the filesystem that the upper is to be on; None for the usual temporary directory.
    """

    def body() -> None:
        with contextlib.suppress(OSError):  # an ordinary user has no namespace to spare
            namespaces.enter_mount_namespace()
        top = tempfile.mkdtemp(prefix=".fuseunion-probe-", dir=beside)
        try:
            _try(which, top)
        finally:
            shutil.rmtree(top, ignore_errors=True)

    return _in_child(body)


def _try(which: EngineChoice, top: str) -> None:
    lower, upper, merged = (os.path.join(top, name) for name in ("lower", "upper", "merged"))
    for path in (lower, upper, merged):
        os.mkdir(path)
    Path(lower, "old").write_text("old")
    _run("--engine", which.value, "--allow-writable-lower", lower, upper, merged)
    try:
        Path(merged, "new").write_text("new")
        os.unlink(os.path.join(merged, "old"))
    finally:
        _run("umount", merged)
    if Path(upper, "new").read_text() != "new" or not os.path.lexists(os.path.join(upper, "old")):
        raise OSError(0, "what was written through the mount did not reach the upper")


def _run(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fuseunion", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGES, *filter(None, sys.path)])},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        timeout=_PATIENCE,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise OSError(0, lines[-1].removeprefix("fuseunion: "))


def capabilities(directory: str) -> Capabilities | None:
    """What the filesystem of a directory can do, tried in a new directory in it; None where none can be made."""
    try:
        top = tempfile.mkdtemp(prefix=".fuseunion-probe-", dir=directory)
    except OSError:
        return None
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return Capabilities.probe(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
        shutil.rmtree(top, ignore_errors=True)
