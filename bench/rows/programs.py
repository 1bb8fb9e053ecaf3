"""Programs that people run on such a tree: git, Python, make, dpkg."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.row import Measurement, NotRun, row
from bench.stage import Ground, Stage, Word, find_program
from tests.support.tiny_base import make_tiny_base

GIT = {
    # The repository may belong to another uid of the namespace; a commit needs a name.
    "GIT_CONFIG_COUNT": "3",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "GIT_CONFIG_KEY_1": "user.name",
    "GIT_CONFIG_VALUE_1": "bench",
    "GIT_CONFIG_KEY_2": "user.email",
    "GIT_CONFIG_VALUE_2": "bench@localhost",
}


def repository_beside(ground: Ground, size: int) -> None:
    """An almost empty lower, and a repository with two branches that differ in every tenth file."""
    (ground.lower() / "there").mkdir()
    repository = ground.kit / "repository"
    ground.tree(repository, size)

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", repository, *words], check=True, env={**os.environ, **GIT}, capture_output=True)

    git("init", "--initial-branch=main", ".")
    git("add", ".")
    git("commit", "-m", "first")
    git("checkout", "-b", "other")
    for number, path in enumerate(sorted(repository.glob("directory-*/*"))):
        if number % 10 == 0:
            path.write_text(f"changed {number}\n")
    git("commit", "-a", "-m", "second")
    git("checkout", "main")


@row("git", "git clone, status and checkout of {size:,} files", tiny=50, small=1_000, full=5_000,
     prepare=repository_beside, changes=True, programs=("git",))  # fmt: skip
def git(stage: Stage, size: int) -> Iterator[Measurement]:
    """Without hard links to the repository, which lies on another filesystem."""
    clone = stage.merged / "clone"
    words: list[Word] = ["git", "clone", "-q", "--no-hardlinks", "-b", "main", stage.kit / "repository", clone]
    yield stage.timed("clone", *words, env=GIT, after=clone / "directory-0")
    yield stage.timed("status", "git", "-C", clone, "status", "--porcelain", env=GIT)
    yield stage.timed("checkout", "git", "-C", clone, "checkout", "-q", "other", env=GIT, after=clone / "directory-0")
    yield stage.timed("status again", "git", "-C", clone, "status", "--porcelain", env=GIT)


def python_modules(ground: Ground, size: int) -> None:
    """A lower with a package of so many modules."""
    package = ground.lower() / "library" / "many"
    package.mkdir(parents=True)
    body = "".join(f"def function_{n}(a, b={n}):\n    return [a, b, {n}]\n\n" for n in range(20))
    (package / "__init__.py").write_text("")
    for number in range(size):
        (package / f"module_{number}.py").write_text(f"NUMBER = {number}\n{body}")


IMPORT_ALL = """
import importlib, sys, time
sys.path.insert(0, sys.argv[1])
sys.dont_write_bytecode = True
count = int(sys.argv[2])
begin = time.perf_counter()
for number in range(count):
    importlib.import_module(f"many.module_{number}")
print(time.perf_counter() - begin, len([name for name in sys.modules if name.startswith("many.")]))
"""


@row("compileall", "python -m compileall of {size} modules, and importing them", tiny=10, small=100, full=500,
     prepare=python_modules, changes=True)  # fmt: skip
def compileall(stage: Stage, size: int) -> Iterator[Measurement]:
    """Source in the lower, bytecode in the upper."""
    library = stage.merged / "library"
    python = [sys.executable, "-I"]
    yield from stage.reported(("import source",), *python, "-c", IMPORT_ALL, library, size)
    # Without the path in what is made, which is as long as the contestant's name.
    yield stage.timed("compile", *python, "-m", "compileall", "-q", "-s", library, library, after=stage.merged)
    yield from stage.reported(("import",), *python, "-c", IMPORT_ALL, library, size)


def c_project(ground: Ground, size: int) -> None:
    """A lower with a C project of so many sources with a header each."""
    project = ground.lower() / "project"
    project.mkdir()
    names = [f"part{number}" for number in range(size)]
    for number, name in enumerate(names):
        (project / f"{name}.h").write_text(f"int {name}(int);\n")
        after = f"part{(number + 1) % size}"
        source = f'#include <stdio.h>\n#include "{name}.h"\n#include "{after}.h"\n'
        (project / f"{name}.c").write_text(f"{source}int {name}(int n) {{ return n ? {after}(n - 1) : {number}; }}\n")
    (project / "main.c").write_text('#include "part0.h"\nint main(void) { return part0(0); }\n')
    (project / "Makefile").write_text(
        "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\n"
        "program: $(OBJECTS)\n\tcc -o $@ $^\n"
        "%.o: %.c\n\tcc -c -o $@ $<\n"
    )


@row("make", "make -j2 of a C project of {size} files", tiny=3, small=20, full=200, prepare=c_project, changes=True,
     programs=("make", "cc"))  # fmt: skip
def make(stage: Stage, size: int) -> Iterator[Measurement]:
    """The compiler is most of it; the rest is what the filesystem costs a developer."""
    project = stage.merged / "project"
    yield stage.timed("build", "make", "-s", "-j2", "-C", project, after=project)
    yield stage.timed("again", "make", "-s", "-j2", "-C", project, after=project)


DPKG = ("sh", "rm", "tar", "diff", "dpkg", "dpkg-deb", "dpkg-split", "dpkg-query", "start-stop-daemon", "ldconfig",
        "gzip", "cat", "true")  # fmt: skip
FILES_OF_A_PACKAGE = 40


def packages_in_a_root(ground: Ground, size: int) -> None:
    """A lower with a root directory that has dpkg, and so many packages."""
    lacking = [name for name in DPKG if find_program(name) is None]
    if lacking:
        raise NotRun(f"not installed: {' '.join(lacking)}")
    root = ground.lower() / "root"
    make_tiny_base(root, DPKG).unlink()
    (root / "sbin").symlink_to("usr/bin")
    admin = root / "var/lib/dpkg"
    for name in ("info", "updates", "triggers"):
        (admin / name).mkdir(parents=True)
    for name in ("status", "available"):
        (admin / name).touch()
    (root / "debs").mkdir()
    for number in range(size):
        _build_package(ground, f"bench-{number}", root / "debs")


def _build_package(ground: Ground, name: str, target: Path) -> None:
    tree = ground.kit / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share").mkdir(parents=True)
    ground.tree(tree / "usr/share" / name, FILES_OF_A_PACKAGE)
    control = (
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: bench <bench@localhost>\nDescription: files\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    words: list[Word] = ["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", tree, target / f"{name}.deb"]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    shutil.rmtree(tree)


@row("dpkg", "dpkg -i of {size} packages of 40 files, in a chroot", tiny=2, small=5, full=50,
     prepare=packages_in_a_root, changes=True, programs=("dpkg-deb", "chroot"))  # fmt: skip
def dpkg(stage: Stage, size: int) -> Iterator[Measurement]:
    """It writes, syncs and renames every file."""
    root = stage.merged / "root"
    packages = [f"/debs/bench-{number}.deb" for number in range(size)]
    words: list[Word] = ["chroot", root, "/usr/bin/dpkg", "-i", *packages]
    yield stage.timed("", *words, env={"PATH": "/usr/bin:/sbin:/bin"}, after=root / "usr/share")
