"""The map of the package is true: who may import whom, and what the mount path may pull in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fuseunion

PACKAGE = Path(fuseunion.__file__).parent
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))

FLOORS = [
    "errors",
    "linux",
    "core.ids",
    "core.format",
    "core.ownership",
    "core.disk",
    "core.marks",
    "core.tree",
    "core.ops",
    "core.union",
    "mounting.options",
    "mounting.checks",
    "mounting",
    "engines.finding",
    "engines.live",
    "engines.engine",
    "engines",
    "engines.registry",
    "engines.choose",
    "doctor",
    "offline",
    "cli",
]
"""From the ground up: a module imports from its own floor and from those below (docs/architecture.md)."""


def _floor(module: str) -> int:
    """The floor of a dotted module name below `fuseunion`; the package itself lies below all."""
    found = [floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")]
    return FLOORS.index(max(found, key=len)) if found else -1


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module == "fuseunion":
                names |= {f"fuseunion.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    own = _floor(module.removesuffix(".py").replace("/", "."))
    if module == "__main__.py":
        return  # the entry point starts the command line
    for name in _imports(PACKAGE / module):
        if name.startswith("fuseunion."):
            assert _floor(name.removeprefix("fuseunion.")) <= own, f"{module} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_pyfuse3_and_trio_stay_in_the_fuse_engine(module: str) -> None:
    if not module.startswith("engines/fuse/"):
        assert not {name.split(".")[0] for name in _imports(PACKAGE / module)} & {"pyfuse3", "trio"}


@pytest.mark.parametrize("module", MODULES)
def test_only_one_module_uses_ctypes(module: str) -> None:
    assert "ctypes" not in _imports(PACKAGE / module) or module == "linux/syscalls.py"


def test_the_version_imports_neither_pyfuse3_nor_trio() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['fuseunion', '--version']\n"
        "try: runpy.run_module('fuseunion', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "print(sorted({'pyfuse3', 'trio', 'ctypes', 'argparse', 'rich', 'sqlite3'} & set(sys.modules)))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
    assert fuseunion.__version__ in output


@pytest.mark.parametrize("module", ["rich", "sqlite3", "argparse", "tarfile", "unittest", "fuseunion.offline"])
def test_the_mount_path_is_lean(module: str) -> None:
    code = "import fuseunion.cli.mount, fuseunion.engines.fuse.serving.operations, sys"
    code += f"; print({module!r} in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
