"""Making the file of bytecode: once for each installation and way to find modules."""

from __future__ import annotations

import dis
import inspect
import marshal
import os
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType

from fuseunion.bytecode.file import BEGIN, END, LENGTH, VERSION, Entry, path, specs, way
from fuseunion.bytecode.scripts import Texts

_KEPT = 4
"""How many files there may be, of the ways that were used last."""

_DOC = "__doc__"
_HAS_DOCSTRING = 0x4000000
"""CO_HAS_DOCSTRING, which Python 3.14 brought."""


def write(scripts: Texts) -> None:
    """Make the file of all that is imported now.

    Args:
        scripts: what was compiled meanwhile.

    Raises:
        OSError: it cannot be made, or the source of a module cannot be read.
        ImportError, ValueError, TypeError: of a module that something else has put up.
    """
    index: dict[str, tuple[str, bool, int, int, int, int]] = {}
    parts: list[bytes] = []
    begin = 0
    for name, spec in specs().items():
        assert spec.origin is not None
        st = os.stat(spec.origin)
        code = marshal.dumps(_without_docstrings(_code_of(name, spec)))
        is_package = spec.submodule_search_locations is not None
        index[name] = tuple(
            Entry(os.path.abspath(spec.origin), is_package, st.st_mtime_ns, st.st_size, begin, len(code))
        )  # type: ignore[assignment]
        parts.append(code)
        begin += len(code)
    head = marshal.dumps((VERSION, way(), index, begin))
    target = path()
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = f"{target}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "wb") as file:
            file.write(len(head).to_bytes(LENGTH, "little"))
            file.write(head)
            file.writelines(parts)
            file.write(marshal.dumps(scripts))
        os.chmod(temporary, 0o644)
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    _remove_oldest(os.path.dirname(target))


def _remove_oldest(directory: str) -> None:
    with os.scandir(directory) as entries:
        found = [entry for entry in entries if entry.name.startswith(BEGIN) and entry.name.endswith(END)]
    for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns)[:-_KEPT]:
        os.unlink(entry.path)


def _code_of(name: str, spec: ModuleSpec) -> CodeType:
    assert isinstance(spec.loader, SourceFileLoader)
    code = spec.loader.get_code(name)
    if code is None:
        raise ImportError(f"{name} has no code")
    return code


def _without_docstrings(code: CodeType) -> CodeType:
    """The same code, whose functions, classes and modules have None as their `__doc__`."""
    where = _docstring(code)
    constants = (
        None if number == where else _without_docstrings(constant) if isinstance(constant, CodeType) else constant
        for number, constant in enumerate(code.co_consts)
    )
    return code.replace(co_consts=tuple(constants))


def _docstring(code: CodeType) -> int | None:
    """Which constant is the docstring, and nothing else; None where there is none."""
    if code.co_flags & inspect.CO_OPTIMIZED:
        # The first constant of a function is None, if not that (Python/compile.c); what has no name has none.
        has = code.co_flags & _HAS_DOCSTRING if sys.version_info >= (3, 14) else not code.co_name.startswith("<")
        return 0 if has and code.co_consts and isinstance(code.co_consts[0], str) else None
    loaded: list[int | None] = []
    found = None
    for before, instruction in _pairs(code):
        if instruction.opcode in dis.hasconst:
            loaded.append(instruction.arg)
        if (instruction.opname, instruction.argval) == ("STORE_NAME", _DOC) and before is not None:
            is_text = before.opname == "LOAD_CONST" and isinstance(before.argval, str)
            found = before.arg if is_text and found is None else found
    return found if loaded.count(found) == 1 else None


def _pairs(code: CodeType) -> list[tuple[dis.Instruction | None, dis.Instruction]]:
    """Each instruction with the one before it."""
    instructions = list(dis.get_instructions(code))
    return list(zip([None, *instructions[:-1]], instructions, strict=True))
