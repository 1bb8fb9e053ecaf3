"""What is known of a ranch: one directory beside UPPER, so that another process, or the next boot, can go on.

    .NAME.fuseunion-ranch/
        state.json     the Record below, replaced by one rename
        lower/0, 1...  the lowers, topmost first, and lower/upper: bind mounts, or links to them (aside.py)
        farm/          the tree of links, where it is mounted over MERGED; without mounts MERGED itself is the farm
        lent           permissions that a killed collecting had lent itself in the farm (ledger.py)

The phases say what may be done to the farm after a crash:

    building   everything in the farm was made by us: build again, or remove it
    live       the user works in it
    collecting UPPER is being written; the farm is untouched, and collecting again from the beginning is harmless
    collected  everything is in UPPER, or is to be thrown away: remove it

The directory is opened once, and only where it is the user's alone (linux/owned.py): what it says is believed, and what
lies in it is reached through that descriptor. Its name may lie in a directory of somebody else.

Only flock(2) on the directory keeps two commands apart; between commands nobody holds it, and UPPER is protected by
the record alone: a mount that finds one refuses (mounting/checks/ranches.py).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from fuseunion.engines.ranch.record.owners import Owners
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned
from fuseunion.mounting.checks import same_lowers
from fuseunion.mounting.checks.ranches import RECORD, VERSION, damaged, open_state, read_fields
from fuseunion.mounting.options import LinkStyle

MODE = 0o711
"""Of the state directory: every user who may see MERGED follows its links, which lead through here."""

LENT = "lent"
FARM = "farm"


class Phase(Enum):
    """How far a ranch has come."""

    BUILDING = "building"
    LIVE = "live"
    COLLECTING = "collecting"
    COLLECTED = "collected"


class Mode(Enum):
    """What makes the links safe."""

    MOUNTED = "mounted"
    """The lowers are mounted aside read-only, the farm is mounted over MERGED."""
    PLAIN = "plain"
    """No mounts: MERGED is the farm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One ranch. Paths are absolute and without symbolic links.

    Attributes:
        upper: None for an ephemeral ranch.
        depth: how many levels of directories are real; None for all.
        injected: (path in the ranch, target of the link) of every link that --inject made.
        merged_mode: of the plain MERGED before it became a farm.
        owners: who made the farm; None in a record that an older version wrote.
        upper_identity: by what UPPER is recognised (same_lowers.lasting_identity); None where it cannot be, and in a
            record that an older version wrote.
    """

    phase: Phase
    mode: Mode
    merged: str
    upper: str | None
    work: str | None
    lowers: tuple[str, ...]
    links: LinkStyle = LinkStyle.ABSOLUTE
    depth: int | None = None
    copies: tuple[str, ...] = ()
    injected: tuple[tuple[str, str], ...] = ()
    allow_writable_lower: bool = False
    volatile: bool = False
    merged_mode: int = 0o755
    owners: Owners | None = None
    upper_identity: tuple[int, int] | None = None


class Ranch:
    """The directory of one ranch, locked.

    Attributes:
        path: of the directory, as links and messages name it.
        fd: of the directory.
        record: what it said when it was last read or written; None for a new one.
    """

    def __init__(self, path: Path, fd: int, record: Record | None) -> None:
        self.path = path
        self.fd = fd
        self.record_or_none = record

    @property
    def inside(self) -> Path:
        """The way to what is in the directory, which nobody can lead elsewhere by renaming what is above it."""
        return Path(f"/proc/self/fd/{self.fd}")

    @property
    def record(self) -> Record:
        """The record of a ranch that has one."""
        assert self.record_or_none is not None
        return self.record_or_none

    @property
    def farm(self) -> str:
        """The tree of links, for messages."""
        return str(self.path / FARM) if self.record.mode is Mode.MOUNTED else self.record.merged

    def open_farm(self) -> int:
        """An O_RDONLY descriptor of the tree of links.

        Raises:
            OSError: ELOOP where a link has the place of a directory on the way to MERGED; ENOENT.
        """
        if self.record.mode is Mode.MOUNTED:
            return owned.open_without_links(FARM, dir_fd=self.fd)
        return self.open_merged()

    def open_merged(self, flags: int = os.O_RDONLY | os.O_DIRECTORY) -> int:
        """A descriptor of MERGED. Arguments and errors as of `open_farm`."""
        return owned.open_without_links(self.record.merged, flags)

    def refuse_exchanged(self) -> None:
        """Refuse to go on where the name of the directory, through which links lead, is now another's.

        Raises:
            UserError: LAYERS.
        """
        try:
            same = os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self.fd))
        except OSError:
            same = False
        if not same:
            raise UserError(f"'{self.path}' was moved or exchanged; put it back", ExitCode.LAYERS)

    def refuse_other_upper(self, fd: int) -> None:
        """Refuse an UPPER that was put in the place of the one that the ranch was made over.

        What was changed would be collected into it, and what it hides would be taken for changes.

        Args:
            fd: of the directory that has the name.

        Raises:
            UserError: LAYERS.
        """
        known, found = self.record.upper_identity, same_lowers.lasting_identity(fd)
        if known is not None and found is not None and known != found:
            raise UserError(
                f"'{self.record.upper}' is not the upper directory that the ranch at '{self.record.merged}' was made "
                f"over; put that back, or move '{self.path}' away to give the ranch up",
                ExitCode.LAYERS,
            )

    def aside(self, layer: int | str) -> str:
        """Where a layer can be reached: the number of a lower, or "upper"."""
        return str(self.path / "lower" / str(layer))

    def write(self, record: Record) -> None:
        """Replace the record, durably.

        Raises:
            OSError: the directory cannot be written.
        """
        fields: dict[str, Any] = {"version": VERSION, **asdict(record)}
        for name in ("phase", "mode", "links"):
            fields[name] = fields[name].value
        temporary = f"{RECORD}.new"
        with open(owned.new_file(temporary, self.fd), "w", encoding="ascii") as file:
            json.dump(fields, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, RECORD, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        self.record_or_none = record

    def enter(self, phase: Phase) -> None:
        """Go on to the next phase."""
        self.write(replace(self.record, phase=phase))

    def remove(self) -> None:
        """Forget the ranch; its farm and what is aside must be gone."""
        for name in (RECORD, f"{RECORD}.new", LENT):
            (self.inside / name).unlink(missing_ok=True)
        os.rmdir(self.path)


def read(path: Path) -> Record | None:
    """The record in a state directory; None where there is none.

    Raises:
        UserError: LAYERS, when it cannot be understood, or is not this user's alone.
    """
    fd = open_state(path)
    if fd is None:
        return None
    try:
        return _read(path, fd)
    finally:
        os.close(fd)


def _read(path: Path, fd: int) -> Record | None:
    fields = read_fields(path, fd)
    if fields is None:
        return None
    try:
        owners, upper_identity = fields.get("owners"), fields.get("upper_identity")
        return Record(
            **{
                **fields,
                "phase": Phase(fields["phase"]),
                "mode": Mode(fields["mode"]),
                "links": LinkStyle(fields["links"]),
                "lowers": tuple(fields["lowers"]),
                "copies": tuple(fields["copies"]),
                "injected": tuple((path, target) for path, target in fields["injected"]),
                "owners": Owners(**{**owners, "groups": tuple(owners["groups"])}) if owners is not None else None,
                "upper_identity": _pair(upper_identity) if upper_identity is not None else None,
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise damaged(path) from None


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return int(first), int(second)


@contextmanager
def opened(path: Path, *, make: bool = False) -> Iterator[Ranch]:
    """A state directory, locked for one command.

    Args:
        make: make it where it is missing.
    Raises:
        UserError: BUSY while another command works on it, LAYERS when it is missing or not the user's.
    """
    if make:
        try:
            path.mkdir(MODE)
        except FileExistsError:
            pass  # an earlier ranch: the record in it says what to do
        except OSError as error:
            raise UserError(f"cannot make '{path}': {error.strerror}; choose another UPPER", ExitCode.LAYERS) from None
    fd = open_state(path)
    if fd is None:
        raise UserError(f"the state of the ranch, '{path}', is missing", ExitCode.LAYERS)
    try:
        if make:
            os.fchmod(fd, MODE)  # the umask took something away
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command works on the ranch in '{path}'; wait for it", ExitCode.BUSY) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        yield Ranch(path, fd, _read(path, fd))
    finally:
        os.close(fd)
        if make:
            try:
                os.rmdir(path)
            except OSError:
                pass  # something came of it
