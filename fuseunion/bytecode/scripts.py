"""What attrs compiles while trio is imported: a fifth of the time that a mount takes to start.

attrs writes the methods of each class as text, and compiles it: some fifty texts, the same at each start. So the file
keeps the code of each, and the function that attrs calls takes it from there. What it has not is compiled.

In each `__hash__` stands a number that attrs makes of the class's name, with hash(), which gives another one in each
process. Any number would do, so it is made of the name in a way that gives the same.

`typing` and `collections` compile for each NamedTuple, but texts so short that to look for them takes as long.
"""

from __future__ import annotations

import builtins
import marshal
import sys
import zlib
from types import CodeType, ModuleType
from typing import Any

COMPILES = "attr._make"
"""The module that compiles."""

Texts = dict[tuple[str, str, str], CodeType]
"""The code of each text, with the name of its file and the mode (compile() in Python's manual)."""


class Scripts:
    """Stands in for `compile` and `hash` in the module that compiles, until all is imported.

    Args:
        known: Texts, marshalled; read when the first text is asked for.
    """

    used: Texts
    """What was asked for, of which the file is to be made."""

    def __init__(self, known: memoryview) -> None:
        self._marshalled: memoryview | None = known
        self._known: Texts = {}
        self.used = {}

    def put_into(self, module: ModuleType) -> None:
        """Stand in, in the module, which is not executed yet."""
        module.__dict__["compile"] = self.compile
        module.__dict__["hash"] = _same_hash

    def end(self) -> Texts:
        """Let the module compile as ever; returns what was asked for."""
        module = sys.modules.get(COMPILES)
        if module is not None:
            module.__dict__.pop("compile", None)
            module.__dict__.pop("hash", None)
        return self.used

    def compile(self, source: Any, filename: str, mode: str, *more: Any, **named: Any) -> Any:
        """See `compile` in Python's manual."""
        if type(source) is not str or more or named:
            return builtins.compile(source, filename, mode, *more, **named)
        if self._marshalled is not None:
            marshalled, self._marshalled = self._marshalled, None
            self._known = _texts(marshalled)
        code = self._known.get((source, filename, mode))
        if code is None:
            code = builtins.compile(source, filename, mode)
        self.used[source, filename, mode] = code
        return code


def _same_hash(of: object) -> int:
    return zlib.crc32(of.encode()) if type(of) is str else hash(of)


def _texts(marshalled: memoryview) -> Texts:
    try:
        texts = marshal.loads(marshalled)
    except (EOFError, ValueError, TypeError):
        return {}  # the file is damaged, or there is none
    return texts if isinstance(texts, dict) else {}
