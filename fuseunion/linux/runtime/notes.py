"""Notes in the runtime directory: where the state of what has no process lies.

A note is a symbolic link, which is made and read in one piece, and nobody follows it: its text is a path to look at,
and what lies there is believed only where it is the user's alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fuseunion.linux.runtime import directory

SUFFIX = ".ranch"


def leave(path: str) -> None:
    """Note the path of a directory. Where there is no runtime directory, or no space, nobody is told."""
    fd = directory.make()
    if fd is None:
        return
    try:
        st = os.stat(path)
        name = f"{st.st_dev:x}-{st.st_ino:x}{SUFFIX}"
        if _read(fd, name) != path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
            os.symlink(path, name, dir_fd=fd)
    except OSError:
        pass  # it can be found by its own directory all the same
    finally:
        os.close(fd)


def forget(path: str) -> None:
    """Remove the notes of a path that is there no more."""
    for fd in directory.existing():
        try:
            for name in os.listdir(fd):
                if name.endswith(SUFFIX) and _read(fd, name) == path:
                    os.unlink(name, dir_fd=fd)
        except OSError:
            pass  # by somebody else meanwhile; a filesystem that cannot be written
        finally:
            os.close(fd)


def found() -> Iterator[str]:
    """Every path that was noted, once; a note of what is not there any more is removed."""
    seen = set()
    for fd in directory.existing():
        try:
            for name in sorted(os.listdir(fd)):
                path = _read(fd, name) if name.endswith(SUFFIX) else None
                if path is None or path in seen:
                    continue
                if os.path.isdir(path):
                    seen.add(path)
                    yield path
                elif os.path.isdir(os.path.dirname(path)) and not directory.is_a_view(fd):
                    with contextlib.suppress(OSError):  # by somebody else meanwhile, as in `forget`
                        os.unlink(name, dir_fd=fd)  # else its filesystem may only be away
        finally:
            os.close(fd)


def _read(dir_fd: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except OSError:
        return None  # no link, or gone
