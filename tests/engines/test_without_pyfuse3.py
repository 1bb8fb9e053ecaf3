"""Where pip installed no pyfuse3, or its library is missing: everything but the fuse engine works, and says so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.arena import Arena
from tests.support.interpreter import PROJECT
from tests.support.layers import File
from tests.support.mountinfo import mount_at

PROGRAM = """
import sys
sys.path[:0] = sys.argv.pop(1).split(":")
sys.argv[0] = "fuseunion"
from fuseunion.__main__ import main
sys.exit(main())
"""

NOT_INSTALLED = "is not installed; install it with: pip install 'fuseunion[fuse]'"


def _run(arena: Arena, *arguments: str | Path, instead: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without the installed packages.

    Args:
        instead: a directory with a pyfuse3 of the test's own.
    """
    places = [str(PROJECT), *([str(instead)] if instead is not None else [])]
    return subprocess.run(
        [arena.place.interpreter.executable, "-S", "-P", "-c", PROGRAM, ":".join(places), *map(str, arguments)],
        env={name: value for name, value in arena.place.environment().items() if name != "PYTHONPATH"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.actors("root", "userns")
def test_auto_is_the_kernel_and_says_so_in_one_line(arena: Arena) -> None:
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    done = _run(arena, lower, arena.upper, merged)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fuseunion: the kernel engine is used (not fuse: the Python package ")
    assert NOT_INSTALLED in done.stderr
    assert done.stderr.count("\n") == 1
    mount = mount_at(merged)
    assert mount is not None
    assert mount.fstype == "overlay"
    assert _run(arena, "sync", merged).returncode == 0
    assert _run(arena, "umount", merged).returncode == 0


@pytest.mark.actors("user")
def test_auto_is_a_ranch_where_nothing_can_be_mounted(arena: Arena) -> None:
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    done = _run(arena, "--copy", "*", lower, arena.upper, merged)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("fuseunion: the ranch engine is used (not fuse: the Python package ")
    (merged / "new").write_bytes(b"new")
    assert _run(arena, "umount", merged).returncode == 0
    assert (arena.upper / "new").read_bytes() == b"new"


@pytest.mark.actors("user")
def test_the_fuse_engine_says_what_to_install(arena: Arena) -> None:
    """The package, or the library that it was built for."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    done = _run(arena, "--engine", "fuse", lower, arena.upper, merged)
    assert done.returncode == 5
    assert NOT_INSTALLED in done.stderr
    assert done.stderr.count("\n") == 1
    fake = arena.directory("fake")
    library = "libfuse3.so.3: cannot open shared object file: No such file or directory"
    (fake / "pyfuse3.py").write_text(f"raise ImportError({library!r})\n")
    for name in ("trio", "attr", "attrs", "outcome", "sniffio", "sortedcontainers", "idna"):
        found = next(Path(place) for place in _packages() if (Path(place) / name).exists())
        (fake / name).symlink_to(found / name)
    done = _run(arena, "--engine", "fuse", lower, arena.upper, merged, instead=fake)
    assert done.returncode == 5
    assert f"pyfuse3 cannot be loaded ({library}); install libfuse 3" in done.stderr
    assert not arena.upper.exists()


def _packages() -> list[str]:
    import trio

    return [os.path.dirname(os.path.dirname(trio.__file__))]


@pytest.mark.actors("user")
def test_doctor_names_it(arena: Arena) -> None:
    said = _run(arena, "doctor").stdout
    assert "pyfuse3" in said
    assert "pip install 'fuseunion[fuse]'" in said
