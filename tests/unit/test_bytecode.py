"""One file with the bytecode of all modules: used where it is right, and harmless where it is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fuseunion

LOOK = """
import sys
from fuseunion import bytecode
bytecode.install()
from fuseunion.errors import UserError
from fuseunion.linux import owned
print(*(type(sys.modules[name].__spec__.loader).__name__ for name in ("fuseunion.errors", "fuseunion.linux.owned")))
print(getattr(owned, "ADDED", None))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, of which there is a file."""
    source = Path(fuseunion.__file__).parent
    target = tmp_path / "installed/fuseunion"
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.bundle"))
    (target / "__pycache__").mkdir()
    done = _python(target, "-m", "fuseunion.cli.bytecode")
    assert (done.returncode, done.stderr) == (0, "")
    return target


def _python(package: Path, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (before, str(package.parent), *filter(None, sys.path[1:]))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-P", *arguments], env=environment, capture_output=True, text=True, check=False
    )


def _loaders(package: Path, before: str = "") -> list[str]:
    done = _python(package, "-c", LOOK, before=before)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _file(package: Path) -> Path:
    (found,) = (package / "__pycache__").glob("*.bundle")
    return found


FROM_IT = ["_Loader", "_Loader", "None"]
FROM_ELSEWHERE = ["SourceFileLoader", "SourceFileLoader", "None"]


def test_modules_come_from_it(package: Path) -> None:
    assert _loaders(package) == FROM_IT
    assert _file(package).stat().st_mode & 0o777 == 0o644


def test_a_changed_module_is_imported_anew(package: Path) -> None:
    with open(package / "linux/owned.py", "a") as file:
        file.write("ADDED = 5\n")
    assert _loaders(package) == ["_Loader", "SourceFileLoader", "5"]
    (package / "errors.py").rename(package / "elsewhere.py")
    assert "No module named 'fuseunion.errors'" in _python(package, "-c", LOOK).stderr


def test_another_path_finds_other_modules(package: Path, tmp_path: Path) -> None:
    """Each way has a file of its own, and there are not many."""
    assert _loaders(package, before=str(tmp_path)) == FROM_ELSEWHERE
    for number in range(5):
        before = str(tmp_path / str(number))
        assert _python(package, "-m", "fuseunion.cli.bytecode", before=before).returncode == 0
        assert _loaders(package, before=before) == FROM_IT
    assert len(list((package / "__pycache__").glob("*.bundle"))) == 4


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 10_000, -1, -500_000])
def test_a_damaged_file_does_no_harm(package: Path, length: int) -> None:
    path = _file(package)
    size = path.stat().st_size
    os.truncate(path, length % size)
    assert _loaders(package)[2] == "None"


@pytest.mark.parametrize("wrong", ["writable", "link", "fifo", "directory", "owner"])
def test_what_others_can_have_made_is_not_read(package: Path, wrong: str) -> None:
    path = _file(package)
    if wrong == "writable":
        path.chmod(0o664)
    elif wrong == "link":
        path.rename(path.with_name("moved"))
        path.symlink_to("moved")
    elif wrong == "fifo":
        path.unlink()
        os.mkfifo(path)
    elif wrong == "directory":
        path.unlink()
        path.mkdir()
    elif os.geteuid() == 0:
        os.chown(path, 1, 1)
    else:
        pytest.skip("only root can give a file away")
    assert _loaders(package) == FROM_ELSEWHERE


def test_it_is_made_by_the_owner_of_the_package_alone(package: Path) -> None:
    _file(package).unlink()
    finish = "from fuseunion import bytecode, errors\nimport fuseunion.engines.fuse.daemon\n{}bytecode.finish()"
    environment = "import sys\nsys.dont_write_bytecode = False\n"
    another = environment + "import os\nos.geteuid = lambda: 12345\n"
    for before in ("", another):
        assert _python(package, "-c", finish.format(before)).returncode == 0
        assert not list((package / "__pycache__").glob("*.bundle"))
    assert _python(package, "-c", finish.format(environment)).returncode == 0
    assert _loaders(package) == FROM_IT


def test_it_is_not_made_anew_by_each_mount(package: Path) -> None:
    """Not all that is imported can come from it: the interpreter's own start cannot."""
    before = _file(package).stat()
    code = """
import sys
sys.dont_write_bytecode = False
from fuseunion import bytecode
bytecode.install()
from fuseunion.cli import arguments, main, mount
from fuseunion.engines.registry import load, order
from fuseunion.mounting.options import EngineChoice
load(order(EngineChoice.AUTO)[0]).preload()
bytecode.finish()
"""
    done = _python(package, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    after = _file(package).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_it_cannot_be_made(package: Path) -> None:
    shutil.rmtree(package / "__pycache__")
    (package / "__pycache__").write_text("in the way")
    done = _python(package, "-m", "fuseunion.cli.bytecode")
    assert done.returncode == 1
    assert done.stderr.startswith("fuseunion: cannot make '")
    assert done.stderr.count("\n") == 1


WITH_DOCSTRINGS = '''
"""Of the module."""

TEXT = "Of the module, once more."
doc = "Of a function."


class Documented:
    """Of a class."""

    text = "kept"

    def method(self):
        """Of a method."""
        return "kept too"


class Said:
    """said twice"""

    text = "said twice"


def generator():
    """Of a function."""
    return [[word + doc for word in ("a", "b")], (lambda: "lambda")(), list("x" for _ in range(1))],


def without():
    return "a value"


async def later():
    """Of a coroutine."""
    return f"{TEXT}"
'''


def test_docstrings_are_left_out_and_nothing_else(package: Path) -> None:
    (package / "documented.py").write_text(WITH_DOCSTRINGS)
    make = "from fuseunion import bytecode, documented\nfrom fuseunion.bytecode.writing import write\nwrite({})"
    look = """
import asyncio
from fuseunion import bytecode
bytecode.install()
from fuseunion import documented as d
print(type(d.__spec__.loader).__name__)
print([thing.__doc__ for thing in (d, d.Documented, d.Documented.method, d.generator, d.without, d.later)])
print(d.TEXT, d.Documented.text, d.Documented().method(), d.Said.text)
print(d.generator()[0], d.without(), asyncio.run(d.later()))
"""
    outputs = []
    for code in (look, make, look):
        done = _python(package, "-c", code)
        assert (done.returncode, done.stderr) == (0, "")
        outputs.append(done.stdout.splitlines())
    before, _, after = outputs
    assert [before[0], after[0]] == ["SourceFileLoader", "_Loader"]
    assert after[1] == "[None, None, None, None, None, None]"
    assert before[1] != after[1]
    assert before[2:] == after[2:]


COMPILED = """
import sys
compiled = set()
sys.addaudithook(lambda event, args: compiled.add(args[1]) if event == "compile" else None)
{before}
from fuseunion import bytecode
bytecode.install()
from fuseunion.engines.fuse.pyfuse import lean_imports
lean_imports.import_lean()
bytecode.finish()
print(*sorted(name for name in compiled if str(name).startswith("<attrs")), sep="\\n")
import attr
print("compile" in vars(attr._make), "hash" in vars(attr._make))
Point = attr.make_class("Point", ["x"], frozen=True, hash=True)
print(Point(1) == Point(1), hash(Point(1)) == hash(Point(1)), Point(1))
"""
"""What attrs has had compiled, and that it goes on."""

GOES_ON = ["False False", "True True Point(x=1)"]


def _compiled(package: Path, before: str = "") -> list[str]:
    done = _python(package, "-c", COMPILED.format(before=before))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip().splitlines()


def test_what_attrs_compiles_comes_from_it(package: Path) -> None:
    assert _compiled(package) == GOES_ON
    _file(package).unlink()
    anew = _compiled(package)
    assert anew[-2:] == GOES_ON
    assert "<attrs generated methods trio._core._run.SystemClock>" in anew, "attrs compiles in another way now"


def test_another_text_is_compiled(package: Path) -> None:
    """The file has what attrs wrote once, and not what it writes of the same class in another version."""
    other = "from fuseunion.bytecode import scripts\nscripts._same_hash = lambda of: 5"
    compiled = _compiled(package, before=other)
    assert "<attrs generated methods trio._core._run.SystemClock>" in compiled
    assert compiled[-2:] == GOES_ON


def test_damaged_texts_are_compiled(package: Path) -> None:
    path = _file(package)
    os.truncate(path, path.stat().st_size - 1)
    compiled = _compiled(package)
    assert len(compiled) > len(GOES_ON)
    assert compiled[-2:] == GOES_ON


def test_a_mount_has_no_docstrings(package: Path) -> None:
    look = "from fuseunion import bytecode\nbytecode.install()\nfrom fuseunion.core import union\nprint(union.__doc__)"
    assert _python(package, "-c", look).stdout == "None\n"
