"""Engines are known by one protocol: each implements it, and nobody but the registry knows them by name."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import fuseunion
from fuseunion.engines import registry
from fuseunion.engines.engine import Engine
from fuseunion.engines.live import LiveMount, busy
from fuseunion.errors import ExitCode
from fuseunion.linux.holders import Holder
from fuseunion.linux.mountinfo import Mount
from fuseunion.mounting.options import EngineChoice, Form, Options

PACKAGE = Path(fuseunion.__file__).parent

SINGLE = [EngineChoice.FUSE, EngineChoice.KERNEL, EngineChoice.RANCH]

UNKNOWING = sorted(
    path
    for pattern in ("cli/**/*.py", "doctor/*.py", "mounting/**/*.py", "offline/*.py", "engines/*.py")
    for path in PACKAGE.glob(pattern)
    if path.relative_to(PACKAGE) not in (Path("engines/registry.py"), Path("cli/commands/promote.py"))
)
"""Promoting is a command of the ranch, and of nothing else."""


@pytest.mark.parametrize("choice", SINGLE)
def test_each_engine_implements_the_protocol(choice: EngineChoice) -> None:
    engine = registry.load(choice)
    assert isinstance(engine, Engine)
    assert engine.choice is choice
    assert engine.losses
    for name, asked in inspect.getmembers(Engine, inspect.isfunction):
        answered = getattr(type(engine), name)
        assert inspect.signature(answered).parameters.keys() == inspect.signature(asked).parameters.keys(), name


@pytest.mark.parametrize("choice", SINGLE)
def test_each_engine_can_do_the_plain_thing(choice: EngineChoice) -> None:
    engine = registry.load(choice)
    assert engine.refusals(Options(target="/m", lowers=("/l",), upper="/u")) == []
    assert engine.find("/proc", "/proc", None) is None


def test_every_engine_is_in_the_registry_once() -> None:
    assert [engine.choice for engine in registry.every()] == SINGLE
    words = set(EngineChoice) - set(SINGLE)
    assert all(sorted(registry.order(word), key=SINGLE.index) == SINGLE for word in words)
    assert all(list(registry.order(choice)) == [choice] for choice in SINGLE)


@pytest.mark.parametrize("path", UNKNOWING, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_engine_is_known_by_name(path: Path) -> None:
    """Neither by an import nor by a comparison; `engines/*.py` are those that are common to all."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        else:
            imported = []
        for name in imported:
            assert name.split(".")[:2] != ["fuseunion", "engines"] or name.split(".")[2:3] not in (
                ["fuse"],
                ["kernel"],
                ["ranch"],
            ), name
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "EngineChoice":
            assert EngineChoice[node.attr] not in SINGLE, ast.unparse(node)


def test_a_mount_loads_the_engine_that_it_tries_and_no_other() -> None:
    code = (
        "import sys, fuseunion.cli.mount, fuseunion.engines.choose\n"
        "from fuseunion.engines import registry\n"
        "from fuseunion.mounting.options import EngineChoice\n"
        "registry.load(EngineChoice.FUSE)\n"
        "print([n for n in sys.modules if n.startswith(('fuseunion.engines.kernel', 'fuseunion.engines.ranch'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_ranch_gives_no_mount_to_a_container_engine() -> None:
    refused = registry.load(EngineChoice.RANCH).refusals(Options("/m", ("/l",), "/u", form=Form.MOUNT_PROGRAM))
    assert refused == ["the caller needs a mount"]


def test_what_is_busy_is_said_with_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveMount("merged", "/home/me/merged", None)
    below = Mount(1, 2, "/home/me/merged/proc", "proc", "proc", b"rw")
    remedy = "end that and try again, or use --lazy"
    monkeypatch.setattr("fuseunion.linux.mountinfo.mounts", lambda: iter([below]))
    error = busy(live, [Holder(7, "bash", "its working directory")])
    assert error.exit_code is ExitCode.BUSY
    why = "mounted below: /home/me/merged/proc; used by 7 bash (its working directory)"
    assert error.message == f"'merged' is busy: {why}; {remedy}"
    monkeypatch.setattr("fuseunion.linux.mountinfo.mounts", lambda: iter([]))
    assert busy(live, []).message == f"'merged' is busy: used by a process that you may not see; {remedy}"
