"""Engines are known by one protocol: each implements it, and nobody but the registry knows them by name."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

import fuseunion
from fuseunion.cli.main import run
from fuseunion.engines import registry
from fuseunion.engines.engine import Engine, Progress
from fuseunion.engines.live import BusyError, LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.proc.holders import Holder
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


class _Busy(Engine):
    """An engine whose mount is used by one process."""

    choice = EngineChoice.FUSE
    losses = ()
    users: ClassVar[list[Holder]] = []

    def refusals(self, options: Options) -> list[str]:
        return []

    def start(self, options: Options, progress: Progress) -> ExitCode:
        raise NotImplementedError

    def find(self, given: str, path: str, entry: Mount | None) -> LiveMount | None:
        return LiveMount(given, path, None)

    def holders(self, live: LiveMount) -> list[Holder]:
        return self.users

    def flush(self, live: LiveMount, progress: Progress) -> None:
        raise UserError("the disk is full", ExitCode.FAILURE)

    def stop(self, live: LiveMount, progress: Progress, *, lazy: bool, discard: bool) -> None:
        raise BusyError


@pytest.fixture
def only_engine(monkeypatch: pytest.MonkeyPatch) -> type[_Busy]:
    monkeypatch.setattr(registry, "load", lambda choice: _Busy())
    return _Busy


@pytest.mark.parametrize(
    ("below", "users", "why"),
    [
        ([], [], "used by a process that you may not see"),
        ([], [Holder(7, "bash", "its working directory")], "used by 7 bash (its working directory)"),
        (["/m/proc"], [], "mounted below: /m/proc"),
        (
            ["/m/a", "/m/b"],
            [Holder(7, "sh", "x"), Holder(8, "w", "y")],
            "mounted below: /m/a, /m/b; used by 7 sh (x), 8 w (y)",
        ),
    ],
)
def test_umount_says_what_keeps_a_mount_busy(
    below: list[str],
    users: list[Holder],
    why: str,
    only_engine: type[_Busy],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(only_engine, "users", users)
    mounts = [Mount(1, 2, target, "proc", "proc", b"rw") for target in ("/", "/m", "/mm", *below)]
    monkeypatch.setattr("fuseunion.linux.mountinfo.mounts", lambda: iter(mounts))
    assert run(["fuseunion", "umount", "/m"]) == ExitCode.BUSY
    assert capsys.readouterr().err == f"fuseunion: '/m' is busy: {why}; end that and try again, or use --lazy\n"


@pytest.mark.usefixtures("only_engine")
def test_commands_work_with_an_engine_that_they_do_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fuseunion", "sync", "/m"]) == ExitCode.FAILURE
    assert run(["fuseunion", "umount", "--discard", "/m"]) == ExitCode.LAYERS
    assert run(["fuseunion", "doctor", "--repair", "/m"]) == ExitCode.LAYERS
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "fuseunion: the disk is full",
        "fuseunion: --discard: '/m' is no ranch; what was written there is in its UPPER already",
        "fuseunion: '/m' has no ranch; there is nothing to repair",
    ]
