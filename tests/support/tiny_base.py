"""A root filesystem of a few programs of this machine, for containers that need nothing from the network."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.interpreter import Interpreter
from tests.support.namespace import login_namespace
from tests.support.product import make_launcher
from tests.support.store import Store, make_store
from tests.support.user import User

PROGRAMS = ("sh", "cat", "ls", "rm", "mv", "mkdir", "chown", "chmod", "touch", "ln", "stat", "true")
PASSWD = "root:x:0:0:root:/:/bin/sh\napp:x:1500:1500:app:/:/bin/sh\n"


def make_tiny_base(directory: Path, programs: Iterable[str] = PROGRAMS) -> Path:
    """Make the tree in the new `directory`, and a tar file of it beside; returns the tar file."""
    binaries = directory / "usr/bin"
    binaries.mkdir(parents=True)
    (directory / "bin").symlink_to("usr/bin")
    for name in programs:
        program = shutil.which(name)
        assert program is not None, name
        shutil.copy(program, binaries / name)
        for library in _libraries(program):
            target = directory / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    for path in ("etc", "opt/data/deep", "tmp", "proc", "sys", "dev"):
        (directory / path).mkdir(parents=True, exist_ok=True)
    (directory / "etc/passwd").write_text(PASSWD)
    (directory / "opt/data/one").write_text("one\n")
    (directory / "opt/data/deep/two").write_text("two\n")
    archive = directory.with_suffix(".tar")
    subprocess.run(["tar", "--numeric-owner", "-C", directory, "-cf", archive, "."], check=True)
    return archive


def _libraries(program: str) -> list[Path]:
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+)", listing)]


@contextmanager
def tiny_store(directory: Path, user: User, interpreter: Interpreter) -> Iterator[Store]:
    """A rootless store with fuseunion as the mount program, in which the small base image is localhost/tiny.

    Args:
        directory: made, and removed at the end; the tree of the image is in "tiny" there.
    """
    directory.mkdir()
    launcher = make_launcher(directory / "fuseunion", interpreter)
    base = make_tiny_base(directory / "tiny")
    with login_namespace(user.name) as login:
        store = make_store(login, user.name, directory / "short", launcher, {})
        store.podman("import", "--quiet", base, "localhost/tiny")
        yield store
        store.close()
    shutil.rmtree(directory)
