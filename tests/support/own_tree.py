"""A directory in which one process works alone, and the model of what must be in it.

Nobody else touches it, so every step has one right end, however busy the mount is: no errno is tolerated, and all that
is read is compared with the model.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_NAMES = ("one", "two", "three", "four", "five")
_LARGEST = 20_000


@dataclass(slots=True, eq=False)
class Content:
    """What one file holds; several names of it share one object."""

    data: bytes
    mode: int = 0o644


@dataclass(slots=True)
class OwnTree:
    """The model: files by (directory, name). It may be pickled, and go on later over the same tree.

    Attributes:
        directories: names of the directories below the top; the top itself is "".
    """

    files: dict[tuple[str, str], Content]
    directories: list[str] = field(default_factory=lambda: ["", "a", "b"])

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> OwnTree:
        """The tree `lower_files` describes, before anything was done to it."""
        files = {}
        for path, data in contents.items():
            directory, _, name = path.rpartition("/")
            files[directory, name] = Content(data)
        return cls(files)

    def step(self, top: Path, rng: random.Random) -> str:
        """Do one thing at random, and check what it gives.

        :returns: what was done
        :raises AssertionError: something else was there than should be
        :raises OSError: anything that a plain directory would not say
        """
        way = rng.choice(_STEPS)
        getattr(self, f"_{way}")(top, rng)
        return way

    def check(self, top: Path) -> None:
        """Compare everything."""
        for directory in self.directories:
            assert self._listed(directory) == set(os.listdir(top / directory)), top / directory
        for place, content in self.files.items():
            path = _path(top, place)
            assert path.read_bytes() == content.data, path
            self._compare(path, content, os.stat(path))

    def _listed(self, directory: str) -> set[str]:
        below = {other for other in self.directories if other} if not directory else set()
        return {name for where, name in self.files if where == directory} | below

    def _compare(self, path: Path, content: Content, status: os.stat_result) -> None:
        names = sum(other is content for other in self.files.values())
        expected = (len(content.data), content.mode, names)
        assert (status.st_size, status.st_mode & 0o7777, status.st_nlink) == expected, path

    def _any(self, rng: random.Random) -> tuple[str, str]:
        return rng.choice(self.directories), rng.choice(_NAMES)

    # -- steps -------------------------------------------------------------------------------------------------------

    def _write(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        content = self.files.setdefault(place, Content(b""))
        content.data = rng.randbytes(rng.randrange(_LARGEST))
        path = _path(top, place)
        with open(path, "wb") as file:
            file.write(content.data)
            if rng.random() < 0.02:
                file.flush()
                os.fsync(file.fileno())
        path.chmod(content.mode)

    def _append(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        if place in self.files and len(self.files[place].data) < _LARGEST:
            more = rng.randbytes(rng.randrange(2000))
            with open(_path(top, place), "ab") as file:
                file.write(more)
            self.files[place].data += more

    def _truncate(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        if place in self.files:
            content, size = self.files[place], rng.randrange(_LARGEST)
            os.truncate(_path(top, place), size)
            content.data = content.data[:size].ljust(size, b"\0")

    def _read(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        path = _path(top, place)
        if place in self.files:
            assert path.read_bytes() == self.files[place].data, path
        else:
            assert not path.exists(), path

    def _look(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        if place in self.files:
            path = _path(top, place)
            self._compare(path, self.files[place], os.stat(path))

    def _list(self, top: Path, rng: random.Random) -> None:
        directory = rng.choice(self.directories)
        names = os.listdir(top / directory)
        assert len(names) == len(set(names)), f"{top / directory}: a name twice in {names}"
        assert set(names) == self._listed(directory), top / directory

    def _chmod(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        if place in self.files:
            self.files[place].mode = rng.choice([0o600, 0o640, 0o644, 0o755])
            _path(top, place).chmod(self.files[place].mode)

    def _rename(self, top: Path, rng: random.Random) -> None:
        one, other = self._any(rng), self._any(rng)
        if one in self.files:
            _path(top, one).rename(_path(top, other))
            # rename(2): two names of one file both stay.
            if self.files.get(other) is not self.files[one]:
                self.files[other] = self.files.pop(one)

    def _link(self, top: Path, rng: random.Random) -> None:
        one, other = self._any(rng), self._any(rng)
        if one in self.files and other not in self.files:
            os.link(_path(top, one), _path(top, other))
            self.files[other] = self.files[one]

    def _unlink(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        if place in self.files:
            del self.files[place]
            _path(top, place).unlink()

    def _unlink_open(self, top: Path, rng: random.Random) -> None:
        place = self._any(rng)
        if place in self.files:
            content = self.files.pop(place)
            path = _path(top, place)
            with open(path, "rb") as file:
                path.unlink()
                assert file.read() == content.data, path

    def _rename_directory(self, top: Path, rng: random.Random) -> None:
        old = self.directories.pop(rng.randrange(1, len(self.directories)))
        new = rng.choice([name for name in ("a", "b", "c", "d") if name not in self.directories])
        if new != old:
            (top / old).rename(top / new)
        self.directories.append(new)
        self.files = {(new if where == old else where, name): file for (where, name), file in self.files.items()}


def lower_files(number: int) -> dict[str, bytes]:
    """What a tree begins with: path and content of each file."""
    return {
        f"{directory}{name}": f"{number} {directory}{name} ".encode() * 100
        for directory in ("", "a/", "b/")
        for name in _NAMES[:3]
    }


def _path(top: Path, place: tuple[str, str]) -> Path:
    return top.joinpath(*place)


# A change to a directory of a lower copies all of it, so that is the rarest.
_STEPS = (
    *("write", "append", "truncate", "read", "read", "look", "look", "list", "chmod"),
    *("rename", "rename", "link", "unlink", "unlink_open"),
) * 4 + ("rename_directory",)
