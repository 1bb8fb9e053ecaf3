"""CPython's own tests of os, shutil, tarfile, posix, mmap and fcntl, with their files on a mount and beside it.

The interpreter is the system's, /usr/bin/python3, because its package of tests is (libpythonX.Y-testsuite); the virtual
environment is left out of it. What fails in a plain directory may fail in the mount, and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support.arena import Arena

pytestmark = [pytest.mark.conformance, pytest.mark.actors("root", "user"), pytest.mark.limit(900)]

PYTHON = "/usr/bin/python3"
MODULES = ("test_os", "test_posix", "test_shutil", "test_tarfile", "test_mmap", "test_fcntl")
LEAST = 500
"""So many tests there are at the least."""


def _outcomes(arena: Arena, temporary: Path) -> dict[str, str]:
    """How each test ends with its files in a directory."""
    report = arena.root / f"{temporary.name}.xml"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        [PYTHON, "-I", "-m", "test", f"--tempdir={temporary}", f"--junit-xml={report}", *MODULES],
        env={**environment, "TMPDIR": str(temporary), "LC_ALL": "C.UTF-8"},
        cwd=temporary,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), f"no report, exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        ends = sorted({child.tag for child in case if child.tag in ("error", "failure", "skipped")})
        found[case.attrib["name"]] = " ".join([case.attrib.get("result", ""), case.attrib.get("status", ""), *ends])
    return found


def test_the_same_tests_pass(arena: Arena) -> None:
    if not list(Path("/usr/lib").glob("python3*/test/test_os*")):
        raise AssertionError("the tests of CPython are missing: run scripts/setup-conformance")
    lower, plain = arena.directory("lower"), arena.directory("plain")
    (lower / "temporary").mkdir()
    arena.guard(lower)
    expected = _outcomes(arena, plain)
    with arena.mount(lower) as mount:
        got = _outcomes(arena, mount / "temporary")
    assert len(expected) > LEAST, "hardly any test ran"
    other = {name: (end, got.get(name, "missing")) for name, end in expected.items() if got.get(name) != end}
    assert not other and set(got) == set(expected), f"as in a plain directory, and on the mount: {other}"
    print(f"{len(got)} tests, {sum('skipped' in end for end in got.values())} of them skipped, as in a plain directory")
