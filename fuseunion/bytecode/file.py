"""The file: where it is, what is in it, and modules that are imported from it.

8 bytes    length of the index, little-endian
index      marshal: a version, what finds the modules, and of each its file and where its code is
code       marshal, one after the other
"""

from __future__ import annotations

import marshal
import os
import stat
import sys
import zlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple

VERSION = 2
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


class _Loader(SourceFileLoader):
    """Executes code that was found already.

    Args:
        code: marshalled.
    """

    def __init__(self, name: str, origin: str, code: memoryview) -> None:
        super().__init__(name, origin)
        self._code: memoryview | None = code

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


class Finder:
    """See importlib.abc.MetaPathFinder, which is not inherited from because it costs 1 ms to import."""

    def __init__(self, index: dict[str, tuple[str, bool, int, int, int, int]], code: memoryview) -> None:
        self._index = index
        self._code = code

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
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
        loader = _Loader(name, entry.origin, self._code[entry.begin : entry.begin + entry.length])
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


def read() -> tuple[dict[str, tuple[str, bool, int, int, int, int]], memoryview] | None:
    """The index and the code; None where there is no file that may be used."""
    if sys.flags.optimize or sys.pycache_prefix is not None:
        return None
    try:
        fd = os.open(path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_mode & _OTHERS_WRITE or st.st_uid != os.stat(PACKAGE).st_uid:
            return None
        data = os.read(fd, st.st_size)
    except OSError:
        return None
    finally:
        os.close(fd)
    length = int.from_bytes(data[:LENGTH], "little")
    try:
        version, found_by, index = marshal.loads(data[LENGTH : LENGTH + length])
    except (EOFError, ValueError, TypeError):
        return None
    if version != VERSION or found_by != way():
        return None
    return index, memoryview(data)[LENGTH + length :]


def specs() -> dict[str, ModuleSpec]:
    """Of the modules that came from a file of Python's."""
    specs = {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}
    return {
        name: spec
        for name, spec in specs.items()
        if spec is not None and spec.name == name and isinstance(spec.loader, SourceFileLoader) and spec.origin
    }
