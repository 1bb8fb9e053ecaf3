"""What a mount imports of trio and pyfuse3, and that the rest is there when somebody asks for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.interpreter import PROJECT
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

IDLE = {
    "ssl", "hashlib", "hmac", "idna", "urllib.parse", "email.message", "zipfile", "csv", "subprocess", "shutil",
    "tempfile", "pathlib", "dataclasses", "argparse", "importlib.metadata", "ctypes.util", "platform", "pickle",
    "trio._ssl", "trio._dtls", "trio._socket", "trio._subprocess", "trio._path", "trio.testing",
}  # fmt: skip
"""What trio and pyfuse3 would import, or what we did once, and no usual mount uses."""

LAST = "fuseunion.engines.fuse.session"
"""The last import before the mount is made."""


HELPER = {"subprocess", "shutil"}
"""What it takes to run fusermount3, imported then."""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, in which trio has been imported in part."""
    begin = "import sys\nfrom fuseunion.engines.fuse.pyfuse import lean_imports\n"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-c", begin + program], env=environment, capture_output=True, text=True, check=False
    )


def _prints(program: str) -> str:
    done = _run(program)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_parts_that_a_mount_uses_execute_nothing_else() -> None:
    """trio stays unexecuted while tasks, threads, locks and time limits are used, also by pyfuse3."""
    program = """
lean_imports.import_lean()
import trio, pyfuse3
async def main():
    lock = trio.Lock()
    async with trio.open_nursery() as nursery, lock:
        nursery.start_soon(trio.sleep, 0)
        with trio.move_on_after(1):
            await trio.to_thread.run_sync(len, "", limiter=trio.CapacityLimiter(1))
        await trio.lowlevel.checkpoint()
    deferred = (sys.modules[name] for name in ("trio", "trio.lowlevel", "attr.validators", "attrs.validators"))
    print(*(type(module).__name__ for module in deferred), pyfuse3.__version__)
trio.run(main)
"""
    plain = _prints("import pyfuse3\nprint(pyfuse3.__version__)")
    assert _prints(program) == f"{'DeferredModule ' * 4}{plain}"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("trio.Path('/a').name", "a"),
        ("trio.SSLStream.__name__", "SSLStream"),
        ("trio.__version__ == importlib.metadata.version('trio')", "True"),
        ("trio.lowlevel.FdStream.__name__", "FdStream"),
        ("trio.run(trio.run_process, ['true']).returncode", "0"),
        ("trio.Lock is __import__('trio._sync')._sync.Lock", "True"),
        ("attrs.validators.instance_of(int) is not None", "True"),
        ("attr.validators.instance_of is attrs.validators.instance_of", "True"),
        ("ctypes.util.find_library('c') is not None", "True"),
        ("type(__import__('outcome').Error(KeyError(5)).error).__name__", "KeyError"),
        ("platform.system()", "Linux"),
        ("pickle.loads(pickle.dumps([1]))", "[1]"),
        ("hasattr(trio, 'no_such_name')", "False"),
    ],
)
def test_what_was_left_out_comes_when_it_is_asked_for(expression: str, value: str) -> None:
    program = (
        "lean_imports.import_lean()\nimport attr, attrs, ctypes.util, importlib.metadata, pickle, platform, trio\n"
    )
    program += "print(%s)"
    assert _prints(program % expression) == value


def test_what_is_no_error_cannot_be_the_outcome() -> None:
    """The validator that outcome has of attrs, as long as attrs' own are not there."""
    done = _run("lean_imports.import_lean()\nimport outcome\noutcome.Error('text')")
    assert "TypeError: (\"'error' must be <class 'BaseException'>" in done.stderr


def test_attrs_that_a_program_uses_stays_as_it_is() -> None:
    """A mount of the Python API is made in a child of the program."""
    program = """
import attr, hashlib, pickle, platform
names = ("attr.validators", "attr._make", "pickle", "platform")
before = {name: dict(vars(sys.modules[name])) for name in names}
lean_imports.import_lean()
print([name for name in names if before[name] != vars(sys.modules[name])])
"""
    assert _prints(program) == "[]"


def test_thread_names_are_set_as_trio_sets_them() -> None:
    """The library that trio would look for is found without looking."""
    program = (
        "lean_imports.import_lean()\nfrom trio._core import _thread_cache\nprint(_thread_cache.set_os_thread_name)"
    )
    plain = "import trio\nfrom trio._core import _thread_cache\nprint(_thread_cache.set_os_thread_name)"
    assert (_prints(program) == "None") == (_prints(plain) == "None")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param("lean_imports._PARTS['trio'] += ('trio._no_such_part',)", id="a part is missing"),
        pytest.param("lean_imports._USED['trio'] += ('no_such_name',)", id="a name is missing"),
        pytest.param("lean_imports._name_of_library = None", id="something breaks on import"),
    ],
)
def test_another_trio_is_imported_whole(changed: str) -> None:
    """There is one trio then, and pyfuse3 uses it."""
    program = """
lean_imports.import_lean()
import trio, pyfuse3
async def main():
    await trio.to_thread.run_sync(len, "")
trio.run(main)
print(type(trio).__name__, "trio._ssl" in sys.modules, "ctypes.util" in sys.modules, trio is pyfuse3.trio)
"""
    assert _prints(f"{changed}\n{program}") == "module True True True"


def test_a_missing_trio_is_an_import_error() -> None:
    """What the user is told then is daemon.py's."""
    done = _run(f"import os\nsys.path = [{str(PROJECT)!r}, os.path.dirname(os.__file__)]\nlean_imports.import_lean()")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'trio'"


@pytest.mark.parametrize("ended_by", ["umount", "signal"])
def test_a_mount_imports_no_idle_module_and_nothing_once_it_is_there(arena: Arena, ended_by: str) -> None:
    """A module that was read while the mount covers Python's own directory would be a request to the reader."""
    lower = arena.lower({"f": File(b"x" * 100_000), "g": File(b"y"), "d/h": File(b"z")})
    merged = arena.directory("merged")
    stderr = arena.root / "stderr"
    command = [arena.place.interpreter.executable, "-X", "importtime", "-m", "fuseunion", "-f"]
    with stderr.open("wb") as file:
        layers = [str(lower), str(arena.upper), str(merged)]
        daemon = subprocess.Popen([*command, *layers], cwd="/", stderr=file, env=arena.place.environment())
    with daemon:
        try:
            wait_until(lambda: mount_at(merged) or daemon.poll() is not None, "the mount")
            _use(merged)
            assert arena.place.fuseunion("sync", str(merged)).returncode == 0
            if ended_by == "signal":
                daemon.terminate()
                daemon.wait(20)
        finally:
            arena.place.fuseunion("umount", str(merged))
        assert daemon.wait() == 0, stderr.read_text()
    lines = [line for line in stderr.read_text().splitlines() if line.startswith("import time:")]
    names = [line.rpartition("|")[2].strip() for line in lines]
    helped = HELPER & set(names)
    assert (helped == HELPER) == (arena.actor.role is Role.USER), "who may not mount asks fusermount3"
    assert set(names) & IDLE - helped == set()
    mounted = max(names.index(name) for name in (LAST, *helped))
    assert names[mounted + 1 :] == []


def _use(merged: Path) -> None:
    """Requests of many kinds: those that wait in threads, are refused, are logged."""
    (merged / "f").write_bytes(b"copied up")
    (merged / "new").write_bytes(b"1" * 100_000)
    (merged / "g").chmod(0o600)
    (merged / "d").rename(merged / "e")
    os.link(merged / "g", merged / "link")
    (merged / "symlink").symlink_to("g")
    (merged / "symlink").readlink()
    os.setxattr(merged / "g", "user.name", b"value")
    assert os.listxattr(merged / "g") == ["user.name"]
    with (merged / "new").open("r+b") as file:
        os.fsync(file)
        file.truncate(10)
        os.posix_fallocate(file.fileno(), 0, 1000)
    with pytest.raises(FileNotFoundError):
        (merged / "missing").stat()
    with pytest.raises(OSError):
        (merged / "e").rmdir()
    os.statvfs(merged)
    os.utime(merged / "f")
    (merged / "f").unlink()
    (merged / "empty").mkdir()
    (merged / "empty").rmdir()
    assert sorted(os.listdir(merged)) == ["e", "g", "link", "new", "symlink"]
