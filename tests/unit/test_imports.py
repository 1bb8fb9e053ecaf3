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
    "bytecode",
    "steps",
    "linux",
    "images",
    "core.ids",
    "core.format",
    "core.ownership",
    "core.disk",
    "core.marks",
    "core.copying",
    "core.tree",
    "core.ops",
    "core.union",
    "mounting.options",
    "mounting.checks",
    "mounting",
    "engines.finding",
    "engines.live",
    "engines.status",
    "engines.engine",
    "engines",
    "engines.registry",
    "engines.choose",
    "contained",
    "doctor",
    "offline",
    "images.tools",
    "cli",
    "api",
    "testing",
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
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    own = _floor(module.removesuffix(".py").replace("/", "."))
    if module == "__main__.py":
        return  # the entry point starts the command line
    for name in _imports(PACKAGE / module):
        if name.startswith("fuseunion."):
            assert _floor(name.removeprefix("fuseunion.")) <= own, f"{module} imports {name}"


MOST_FLOORS = 15
"""Of the package itself: each of its rooms is a floor, and the floors are drawn in docs/architecture.md."""

BEHIND_THE_DOOR = ("core.ops", "core.marks", "core.tree")
"""What only `Union` uses on behalf of others."""

DATA_AND_PURE_RULES = {
    "core.ops.live.addition": {"Addition"},
    "core.ops.live.refresh": {"Forgotten"},
    "core.ops.live.whereabouts": {"Part", "Role", "Whereabouts"},
    "core.tree.directory": {"Directory"},
    "core.tree.file": {"File"},
    "core.tree.inode": {"ASKED_OFTEN", "Inode"},
    "core.tree.handle": {"DirectoryHandle", "FileHandle", "Handle"},
    "core.ops.attributes": {"Change", "setgid_is_at_risk", "without_privileges"},
    "core.ops.copy_up.plain": {"NOTHING", "Wish", "wish", "wish_of"},
    "core.ops.create": {"Owner"},
    "core.ops.rename": {"check_flags"},
    "core.ops.xattrs": {"Where"},
    "core.ops.removing.plain": {"PlainRemoval"},
}
"""What lies behind the door and may be named in front of it: types of what Union takes and answers, plain values, and
functions of such that touch no layer."""

BUILDS_THE_UNION = "mounting/assembly.py"


def _names_from(path: Path) -> set[tuple[str, str]]:
    """Every (module, name) that is imported from within the package; name is "" for a module as a whole."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    prefix = "fuseunion."
    return {(module.removeprefix(prefix), name) for module, name in found if module.startswith(prefix)}


def _attributes_of_a_union(path: Path) -> set[str]:
    """The attributes that are read of anything called `union` or `_union`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and (
            (isinstance(node.value, ast.Name) and node.value.id == "union")
            or (isinstance(node.value, ast.Attribute) and node.value.attr in ("union", "_union"))
        )
    }


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith(("engines/", "mounting/"))])
def test_union_is_the_only_door_to_the_core(module: str) -> None:
    for source, name in _names_from(PACKAGE / module):
        whole = f"{source}.{name}."
        if whole.startswith(tuple(f"{room}." for room in BEHIND_THE_DOOR)):
            settings = module == BUILDS_THE_UNION and (source, name) == ("core.tree.state", "Settings")
            assert settings or name in DATA_AND_PURE_RULES.get(source, ()), f"{module} imports {name} from {source}"
    assert "state" not in _attributes_of_a_union(PACKAGE / module)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(("core/", "engines/fuse/"))])
def test_only_the_kernel_is_counted_as_the_kernel(module: str) -> None:
    # Others keep an inode with `Union.held`.
    assert not _attributes_of_a_union(PACKAGE / module) & {"remember", "forget"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Nor for the sake of types: who has to know each other to be understood belongs together."""
    modules = {
        "fuseunion." + name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in MODULES
    }
    below = {module: (_imports(PACKAGE / name) & modules.keys()) - {module} for module, name in modules.items()}
    while free := {module for module, others in below.items() if not others & below.keys()}:
        for module in free:
            del below[module]
    assert not below, f"a circle among {sorted(below)}"


@pytest.mark.parametrize("folder", sorted({str(Path(name).parent) for name in MODULES}))
def test_a_folder_has_fewer_than_ten_rooms(folder: str) -> None:
    rooms = [path for path in (PACKAGE / folder).iterdir() if not path.name.startswith(("__", "py."))]
    assert len(rooms) < (MOST_FLOORS if folder == "." else 10), sorted(path.name for path in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_pyfuse3_and_trio_stay_in_the_fuse_engine(module: str) -> None:
    if not module.startswith("engines/fuse/"):
        may_have = {"trio"} if module == "api/trio.py" else set()
        heavy = {name.split(".")[0] for name in _imports(PACKAGE / module)} & {"pyfuse3", "trio"}
        assert heavy <= may_have


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
    code = "import fuseunion.cli.mount, fuseunion.engines.fuse.pyfuse.operations, sys"
    code += f"; print({module!r} in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
