"""The file: where it is, what is in it, and modules that are imported from it.

8 bytes    length of the index, little-endian
index      marshal: a version, what finds the modules, of each its file and where its code is, and where the scripts are
code       marshal, one after the other
scripts    marshal: of each text that was compiled its code (scripts.py)
"""

from __future__ import annotations

import marshal
import os
import stat
import sys
import zlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple

from fuseunion.bytecode.scripts import COMPILES, Scripts

VERSION = 3
LENGTH = 8
BEGIN, END = f"modules.{sys.implementation.cache_tag}.", ".bundle"

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Entry(NamedTuple):
    """A module: its file, whether it is a package, the file's time and size, and where in the code its own is."""

    origin: str
    is_package: bool
    mtime_ns: int
    size: int
    begin: int
    length: int


class Contents(NamedTuple):
    """What is read of the file: where each module is, their code, and the scripts, marshalled as the code is."""

    modules: dict[str, tuple[str, bool, int, int, int, int]]
    code: memoryview
    scripts: memoryview


class _Loader(SourceFileLoader):
    """Executes code that was found already.

    Args:
        code: marshalled; None to find it as ever.
        scripts: what the module is to compile with.
    """

    def __init__(self, name: str, origin: str, code: memoryview | None, scripts: Scripts | None) -> None:
        super().__init__(name, origin)
        self._code = code
        self._scripts = scripts

    def get_code(self, fullname: str) -> CodeType | None:
        """See importlib.abc.InspectLoader. Lets go of what was read: it is wanted once."""
        code, self._code = self._code, None
        if code is not None:
            try:
                found = marshal.loads(code)
                if isinstance(found, CodeType):
                    return found
            except (EOFError, ValueError, TypeError):
                pass  # the file is damaged
        return super().get_code(fullname)

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader."""
        scripts, self._scripts = self._scripts, None
        if scripts is not None:
            scripts.put_into(module)
        super().exec_module(module)


class Finder:
    """See importlib.abc.MetaPathFinder, which is not inherited from because it costs 1 ms to import."""

    scripts: Scripts

    def __init__(self, contents: Contents) -> None:
        self._index = contents.modules
        self._code = contents.code
        self.scripts = Scripts(contents.scripts)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
        spec = self._from_file(name, path)
        if spec is None and name == COMPILES:
            spec = PathFinder.find_spec(name, path, target)
            if spec is not None and type(spec.loader) is SourceFileLoader:
                spec.loader = _Loader(name, spec.loader.path, None, self.scripts)
        return spec

    def _from_file(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        found = self._index.get(name)
        if found is None:
            return None
        entry = Entry(*found)
        directory = os.path.dirname(entry.origin)
        if path is not None and (os.path.dirname(directory) if entry.is_package else directory) not in path:
            return None
        try:
            st = os.stat(entry.origin)
        except OSError:
            return None
        if (st.st_mtime_ns, st.st_size) != (entry.mtime_ns, entry.size):
            return None
        code = self._code[entry.begin : entry.begin + entry.length]
        loader = _Loader(name, entry.origin, code, self.scripts if name == COMPILES else None)
        spec = ModuleSpec(name, loader, origin=entry.origin, is_package=entry.is_package)
        if entry.is_package:
            spec.submodule_search_locations = [directory]
        spec.has_location = True
        return spec


def path() -> str:
    """Where the file is, or would be: one for each way to find modules (sys.path)."""
    which = f"{zlib.crc32(repr(way()).encode(errors='surrogateescape')):08x}"
    return os.path.join(PACKAGE, "__pycache__", f"{BEGIN}{which}{END}")


def way() -> tuple[str, ...]:
    """What decides which file a name leads to, but for the directory of the script."""
    return (sys.version, *(sys.path if sys.flags.safe_path else sys.path[1:]))


def read() -> Contents:
    """What the file has; nothing where there is no file that may be used."""
    nothing = Contents({}, memoryview(b""), memoryview(b""))
    if sys.flags.optimize or sys.pycache_prefix is not None:
        return nothing
    try:
        fd = os.open(path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return nothing
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_mode & _OTHERS_WRITE or st.st_uid != os.stat(PACKAGE).st_uid:
            return nothing
        data = os.read(fd, st.st_size)
    except OSError:
        return nothing
    finally:
        os.close(fd)
    length = int.from_bytes(data[:LENGTH], "little")
    try:
        version, found_by, index, scripts = marshal.loads(data[LENGTH : LENGTH + length])
    except (EOFError, ValueError, TypeError):
        return nothing
    if version != VERSION or found_by != way():
        return nothing
    code = memoryview(data)[LENGTH + length :]
    return Contents(index, code[:scripts], code[scripts:])


def specs() -> dict[str, ModuleSpec]:
    """Of the modules that came from a file of Python's."""
    specs = {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}
    return {
        name: spec
        for name, spec in specs.items()
        if spec is not None and spec.name == name and isinstance(spec.loader, SourceFileLoader) and spec.origin
    }
