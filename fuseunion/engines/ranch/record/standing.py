"""How ranches are doing, by their records alone: nothing of a ranch is touched, and no lock is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from shlex import quote

from fuseunion.engines.ranch.record.record import FARM, Mode, Phase, Record, read
from fuseunion.engines.status import State, Status
from fuseunion.errors import UserError
from fuseunion.linux import mountinfo
from fuseunion.linux.proc import processes
from fuseunion.mounting.options import EngineChoice, LinkStyle


def statuses(states: Iterable[Path]) -> Iterator[Status]:
    """The ranches with these state directories."""
    for state in states:
        try:
            record = read(state)
        except UserError as error:
            yield Status(EngineChoice.RANCH, str(state), State.UNKNOWN, remedy=error.message)
            continue
        if record is not None:
            yield _status(state, record)


def _status(path: Path, record: Record) -> Status:
    namespace, state, remedy = None, State.LIVE, ""
    repair = f"fuseunion doctor --repair {quote(record.upper or record.merged)}"
    if record.phase is not Phase.LIVE:
        state = State.UNFINISHED
        remedy = repair
    elif record.mode is Mode.MOUNTED and not _is_mounted(path, record, None):
        namespace = next((pid for pid in processes.mount_namespaces() if _is_mounted(path, record, pid)), None)
        if namespace is None:
            state = State.DEAD
            remedy = f"bring it into UPPER: {repair}; or mount it again, as before"
    return Status(
        EngineChoice.RANCH,
        record.merged,
        state,
        namespace=namespace,
        lowers=record.lowers,
        upper=record.upper,
        work=record.work,
        options=tuple(_words(record)),
        remedy=remedy,
    )


def _is_mounted(path: Path, record: Record, pid: int | None) -> bool:
    """Whether the farm lies over MERGED, as a process sees it, or this one."""
    try:
        found = [mount for mount in mountinfo.mounts(pid or "self") if mount.target == record.merged]
    except OSError:
        return False  # ended meanwhile
    return bool(found) and found[-1].root.endswith(f"/{path.name}/{FARM}")


def _words(record: Record) -> Iterator[str]:
    if record.upper is None:
        yield "ephemeral"
    if record.volatile:
        yield "volatile"
    if record.links is not LinkStyle.ABSOLUTE:
        yield f"links={record.links.value}"
    if record.depth is not None:
        yield f"depth={record.depth}"
    yield from (f"copy={pattern}" for pattern in record.copies)
    yield from (f"inject={path}" for path, _ in record.injected)
    if record.allow_writable_lower:
        yield "allow_writable_lower"
