"""The bytecode of all modules that a mount imports, in one file.

A container engine starts the program for every mount, and on a busy machine a third of that time went into finding 250
modules, one after the other, in directories: not into executing them. So the first mount of whoever owns the
installation puts them all into one file, beside the bytecode that Python keeps (`__pycache__`), and later ones read it.

    8 bytes    length of the index, little-endian
    index      marshal: a version, what finds the modules, and of each its file and where its code is
    code       marshal, one after the other

It is as much believed as that bytecode, and a little less: it has to belong to the owner of the package, who alone may
write to it. A module whose file is another now (size, time of modification), or is found elsewhere (sys.path), is
imported as ever; so is everything where the file is missing, damaged or of another Python.

`python -m fuseunion.cli.bytecode` makes the file: for installers, and where PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import stat
import sys
import zlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType
from typing import NamedTuple

_VERSION = 1
_LENGTH = 8
_FEW = 8
"""So many modules are imported from elsewhere without the file being made anew."""

_KEPT = 4
"""How many files there may be, of the ways that were used last."""

_BEGIN, _END = f"modules.{sys.implementation.cache_tag}.", ".bundle"

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class _Entry(NamedTuple):
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
                found: CodeType = marshal.loads(code)
                return found
            except (EOFError, ValueError, TypeError):
                pass  # the file is damaged
        return super().get_code(fullname)


class _Finder:
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
        entry = _Entry(*found)
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


def install() -> None:
    """Import what the file has from there."""
    read = _read()
    if read is not None:
        sys.meta_path.insert(0, _Finder(*read))


def finish() -> None:
    """All is imported: let go of the file, and make it where it is missing or lacks much. What fails does no harm."""
    for finder in [finder for finder in sys.meta_path if isinstance(finder, _Finder)]:
        sys.meta_path.remove(finder)
    found = {name: spec for name, spec in _specs().items() if type(spec.loader) is SourceFileLoader}
    if len(found) > _FEW and _may_write():
        # What cannot be read or written now (a full disk, a module that another one has put up) only costs time.
        with contextlib.suppress(OSError, ImportError, ValueError, TypeError):
            _write()


def write() -> None:
    """Make the file of all that is imported now.

    Raises:
        OSError: it cannot be made.
    """
    os.makedirs(os.path.dirname(path()), exist_ok=True)
    _write()


def path() -> str:
    """Where the file is, or would be: one for each way to find modules (sys.path)."""
    way = f"{zlib.crc32(repr(_way()).encode(errors='surrogateescape')):08x}"
    return os.path.join(_PACKAGE, "__pycache__", f"{_BEGIN}{way}{_END}")


def _way() -> tuple[str, ...]:
    """What decides which file a name leads to, but for the directory of the script."""
    return (sys.version, *(sys.path if sys.flags.safe_path else sys.path[1:]))


def _may_write() -> bool:
    if sys.dont_write_bytecode or sys.flags.optimize or sys.pycache_prefix is not None:
        return False
    return os.stat(_PACKAGE).st_uid == os.geteuid() and os.access(os.path.dirname(path()), os.W_OK)


def _read() -> tuple[dict[str, tuple[str, bool, int, int, int, int]], memoryview] | None:
    if sys.flags.optimize or sys.pycache_prefix is not None:
        return None
    try:
        fd = os.open(path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or st.st_mode & _OTHERS_WRITE or st.st_uid != os.stat(_PACKAGE).st_uid:
            return None
        data = os.read(fd, st.st_size)
    except OSError:
        return None
    finally:
        os.close(fd)
    length = int.from_bytes(data[:_LENGTH], "little")
    try:
        version, way, index = marshal.loads(data[_LENGTH : _LENGTH + length])
    except (EOFError, ValueError, TypeError):
        return None
    if version != _VERSION or way != _way():
        return None
    return index, memoryview(data)[_LENGTH + length :]


def _specs() -> dict[str, ModuleSpec]:
    """Of the modules that came from a file of Python's."""
    specs = {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}
    return {
        name: spec
        for name, spec in specs.items()
        if spec is not None and spec.name == name and isinstance(spec.loader, SourceFileLoader) and spec.origin
    }


def _write() -> None:
    index: dict[str, tuple[str, bool, int, int, int, int]] = {}
    parts: list[bytes] = []
    begin = 0
    for name, spec in _specs().items():
        assert isinstance(spec.loader, SourceFileLoader) and spec.origin is not None
        st = os.stat(spec.origin)
        code = marshal.dumps(spec.loader.get_code(name))
        is_package = spec.submodule_search_locations is not None
        index[name] = tuple(
            _Entry(os.path.abspath(spec.origin), is_package, st.st_mtime_ns, st.st_size, begin, len(code))
        )  # type: ignore[assignment]
        parts.append(code)
        begin += len(code)
    head = marshal.dumps((_VERSION, _way(), index))
    target = path()
    temporary = f"{target}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with open(fd, "wb") as file:
            file.write(len(head).to_bytes(_LENGTH, "little"))
            file.write(head)
            file.writelines(parts)
        os.chmod(temporary, 0o644)
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    _remove_oldest(os.path.dirname(target))


def _remove_oldest(directory: str) -> None:
    with os.scandir(directory) as entries:
        found = [entry for entry in entries if entry.name.startswith(_BEGIN) and entry.name.endswith(_END)]
    for entry in sorted(found, key=lambda entry: entry.stat().st_mtime_ns)[:-_KEPT]:
        os.unlink(entry.path)
