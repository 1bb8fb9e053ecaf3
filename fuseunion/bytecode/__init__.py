"""The bytecode of all modules that a mount imports, in one file.

A container engine starts the program for every mount, and on a busy machine a third of that time went into finding 250
modules, one after the other, in directories: not into executing them. So the first mount of whoever owns the
installation puts them all into one file, beside the bytecode that Python keeps (`__pycache__`), and later ones read it.

It is as much believed as that bytecode, and a little less: it has to belong to the owner of the package, who alone may
write to it. A module whose file is another now (size, time of modification), or is found elsewhere (sys.path), is
imported as ever; so is everything where the file is missing, damaged or of another Python.

Nobody asks a daemon what its functions are for, so docstrings are left out (writing.py): an eighth of the bytecode, and
a megabyte of each mount. `python -m fuseunion.cli.bytecode` makes the file: for installers, and where
PYTHONDONTWRITEBYTECODE is set.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import SourceFileLoader

from fuseunion.bytecode.file import PACKAGE, Finder, path, read, specs
from fuseunion.bytecode.scripts import Texts

_FEW = 8
"""So many modules are imported from elsewhere without the file being made anew."""

_before: frozenset[str] = frozenset()
"""What was imported before it could be used: the same at each start, and not to be had sooner."""


def install() -> Finder:
    """Import what the file has from there; returns what finds it there."""
    global _before
    _before = frozenset(sys.modules)
    finder = Finder(read())
    sys.meta_path.insert(0, finder)
    return finder


def finish() -> None:
    """All is imported: let go of the file, and make it where it is missing or lacks much. What fails does no harm."""
    found = [name for name, spec in specs().items() if name not in _before and type(spec.loader) is SourceFileLoader]
    scripts: Texts = {}
    for finder in [finder for finder in sys.meta_path if isinstance(finder, Finder)]:
        sys.meta_path.remove(finder)
        scripts |= finder.scripts.end()
    if len(found) > _FEW and _may_write():
        try:
            from fuseunion.bytecode.writing import write

            write(scripts)
        except (OSError, ImportError, ValueError, TypeError):
            pass  # what cannot be read or written now (a full disk, a module that another one has put up) costs time


def _may_write() -> bool:
    if sys.dont_write_bytecode or sys.flags.optimize or sys.pycache_prefix is not None:
        return False
    return os.stat(PACKAGE).st_uid == os.geteuid() and os.access(os.path.dirname(path()), os.W_OK)
