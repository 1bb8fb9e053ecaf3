"""Importing trio and pyfuse3 without what a mount never uses of them: most of the time of its start is theirs.

Importing both takes 100 ms of CPU, and a build mounts dozens of times. A third of it goes into four things:

* The package `trio` imports all that it offers: TLS, DTLS, sockets, subprocesses, paths, and ssl, hashlib, idna, urllib
  beneath them. A mount needs its core, locks, time limits, threads and signals. So `trio` and `trio.lowlevel` are put
  up unexecuted (DeferredModule): they show what those parts define, and a name that none of them has executes the
  module after all. Nothing of trio is changed; whoever asks gets the same objects, only later.
* `trio` looks for the pthread library, whose thread names it sets, with ctypes.util, which runs ldconfig(8).
* `pyfuse3` looks for its own version with importlib.metadata, which reads every installed package's name, and imports
  the e-mail parser.
* attrs asks `platform` whether this is PyPy, and pyfuse3 takes the name of an error from `pickle`: each executes
  hundreds of lines, with patterns that nobody searches for. outcome needs one validator of attrs, whose module makes
  fourteen classes.

A daemon must not read modules from disk once its mount is there: where it covers Python's own directory, that would be
a request to itself, which waits for ever. So only what no mount uses is deferred, and a test holds that nothing is
imported between the first request and the last (tests/integration/test_lean_imports.py).

Where trio is not built as expected here, it is imported whole, as if this module did not exist.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_log = logging.getLogger("fuseunion.imports")

_PARTS = {
    "trio": ("trio._core", "trio._sync", "trio._timeouts", "trio._signals"),
    "trio.lowlevel": ("trio._core",),
    "attr.validators": (),
    "attrs.validators": (),
}
"""What is deferred, and which modules hold the names of it that are used all the same."""

_SUBMODULES = ("trio.from_thread", "trio.lowlevel", "trio.to_thread")
"""What of the package is used by its own name."""

_USED = {
    "trio": ("CancelScope", "CapacityLimiter", "Event", "Lock", "Nursery", "TASK_STATUS_IGNORED", "TaskStatus",
             "lowlevel", "move_on_after", "open_nursery", "open_signal_receiver", "run", "sleep", "sleep_forever",
             "to_thread"),
    "trio.lowlevel": ("checkpoint", "checkpoint_if_cancelled", "current_task", "current_trio_token", "notify_closing",
                      "start_thread_soon", "wait_readable", "wait_writable"),
}  # fmt: skip
"""What a mount takes from trio, by itself and through pyfuse3. One that is missing shows that trio has changed."""

_executing = threading.RLock()


class DeferredModule(ModuleType):
    """A module that is executed when somebody asks it for a name that its parts do not have."""

    def __getattr__(self, name: str) -> Any:
        # A private name of a package is a submodule that is being imported, and __path__ asks whether it is a package.
        if name == "__path__" or (name.startswith("_") and not name.startswith("__")):
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        for part in _PARTS[self.__name__]:
            module = sys.modules.get(part)
            if module is not None and name in module.__dict__:
                value = module.__dict__[name]
                self.__dict__[name] = value
                return value
        _execute(self, name)
        return getattr(self, name)


def import_lean() -> None:
    """Import trio and pyfuse3, without their idle parts where that can be done.

    Raises:
        ImportError: one of them is missing.
    """
    if "trio" not in sys.modules and not _import_parts():
        _log.debug("trio is imported whole")
        import_module("trio")
    with (
        _stand_in("importlib.metadata", version=_installed_version, PackageNotFoundError=LookupError),
        _stand_in("pickle", PicklingError=ValueError),
    ):
        import_module("pyfuse3")


def _import_parts() -> bool:
    """Put up the deferred modules, and import the parts of trio that are used.

    Returns:
        False when trio is built in another way: then nothing of it is imported.
    """
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        with (
            _stand_in("ctypes.util", find_library=_name_of_library),
            _stand_in("platform", python_implementation=_implementation),
        ):
            _import_outcome()
            for part in (*_PARTS["trio"], *_SUBMODULES):
                import_module(part)
        for module, names in _USED.items():
            for name in names:
                getattr(sys.modules[module], name)
    except Exception as error:  # noqa: BLE001 - of a library's inside; the usual import follows, and says what is wrong
        _log.debug("trio cannot be imported in part: %s", error)
        for name in [name for name in sys.modules if name.partition(".")[0] == "trio"]:
            del sys.modules[name]
        return False
    finally:
        sys.meta_path.remove(finder)
    return True


def _import_outcome() -> None:
    """Import the one of trio's libraries that needs a validator: the thirteen others of attrs are not made for it."""
    import_module("attr")
    validators = sys.modules["attr.validators"]
    names = vars(validators)
    if type(validators) is DeferredModule:  # not where the program has imported attrs before
        names["instance_of"] = _instance_of
    try:
        import_module("outcome")
    finally:
        if names.get("instance_of") is _instance_of:
            del names["instance_of"]


def _instance_of(kind: type) -> Callable[[object, Any, object], None]:
    """What attr.validators.instance_of gives."""

    def validator(instance: object, attribute: Any, value: object) -> None:
        if not isinstance(value, kind):
            raise TypeError(f"'{attribute.name}' must be {kind!r} (got {value!r})", attribute, kind, value)

    return validator


class _Finder:
    """Finds the modules of `_PARTS` as the interpreter does, and has them loaded without executing them.

    See importlib.abc.MetaPathFinder, which is not inherited from because it costs 1 ms to import.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See MetaPathFinder."""
        if name not in _PARTS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # has what is asked of one
        return spec


class _Loader:
    """Makes a module a DeferredModule, to be executed by another loader.

    Args:
        loader: the other one.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> None:
        """See importlib.abc.Loader; a usual module."""

    def exec_module(self, module: ModuleType) -> None:
        """See importlib.abc.Loader; nothing is executed."""
        assert module.__spec__ is not None, "the import system has set it"
        module.__spec__.loader = module.__loader__ = self._loader
        module.__class__ = DeferredModule


def _execute(module: ModuleType, name: str) -> None:
    """Do what importing the module would have done.

    Args:
        name: what was asked for.
    """
    with _executing:
        if type(module) is DeferredModule:
            _log.debug("%s is executed for its '%s'", module.__name__, name)
            module.__class__ = ModuleType  # type: ignore[assignment]
            loader: Any = module.__loader__
            loader.exec_module(module)


@contextlib.contextmanager
def _stand_in(name: str, **contents: Any) -> Iterator[None]:
    """Let a module be another one for the time of an import; not where it is imported already.

    Args:
        name: of a module or a submodule.
        contents: what the other one has.
    """
    if name in sys.modules:
        yield
        return
    module = ModuleType(name)
    module.__dict__.update(contents)
    parent, _, attribute = name.rpartition(".")
    package = import_module(parent) if parent else None
    sys.modules[name] = module
    if package is not None:
        setattr(package, attribute, module)
    try:
        yield
    finally:
        del sys.modules[name]
        if package is not None:
            delattr(package, attribute)


def _name_of_library(name: str) -> str | None:
    """What ctypes.util.find_library says on Linux with glibc; without glibc None, as it says there.

    The number is a part of glibc's interface (gnu/lib-names.h): it is 0 in every version, also since 2.34, where the
    library is empty and the functions are in libc.
    """
    try:
        is_glibc = os.confstr("CS_GNU_LIBC_VERSION")
    except (OSError, ValueError):
        return None
    return f"lib{name}.so.0" if is_glibc and name == "pthread" else None


def _implementation() -> str:
    """What platform.python_implementation says of this Python."""
    name = sys.implementation.name
    return {"cpython": "CPython", "pypy": "PyPy"}.get(name, name)


def _installed_version(name: str) -> str:
    """The version of an installed package, from the name of the directory that pip leaves beside it.

    Raises:
        LookupError: there is none.
    """
    spec = PathFinder.find_spec(name)
    places: list[str] = [os.path.dirname(place) for place in (spec and spec.submodule_search_locations) or ()]
    for place in places:
        for entry in os.listdir(place):
            if entry.startswith(f"{name}-") and entry.endswith((".dist-info", ".egg-info")):
                return entry.removeprefix(f"{name}-").rpartition(".")[0]
    raise LookupError(name)
