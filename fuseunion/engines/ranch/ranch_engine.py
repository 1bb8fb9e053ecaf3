"""The symlink ranch, as the commands see it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fuseunion.engines.engine import Engine, Progress, for_a_daemon, has_image
from fuseunion.engines.finding import Finding, refused
from fuseunion.engines.live import BusyError, LiveMount
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.proc.holders import Holder, holders_beneath
from fuseunion.linux.runtime import notes
from fuseunion.mounting.checks.ranches import beside
from fuseunion.mounting.options import EngineChoice, Form, Options

if TYPE_CHECKING:
    from fuseunion.engines.ranch.record.record import Ranch
    from fuseunion.engines.status import Status


class RanchEngine(Engine):
    """A tree of links, for where nothing can be mounted."""

    choice = EngineChoice.RANCH
    losses = (
        "files of the lower are symbolic links: lstat, realpath and programs that refuse links see them",
        "a file of the lower has to be promoted before it can be written",
        "a file of the lower that is moved or linked becomes a copy",
        "set-user-id files of others lose that bit in copies",
    )
    can_discard = True

    def refusals(self, options: Options) -> list[str]:
        """See Engine."""
        wishes = (
            (options.form is Form.MOUNT_PROGRAM, "the caller needs a mount"),
            (options.read_only, "a tree of links cannot be read-only"),
            (options.size is not None, "it cannot limit its size"),
            *for_a_daemon(options),
            (has_image(options), "it cannot show image files"),
            (not options.exec, "it cannot forbid to execute (noexec)"),
            (not options.acl, "it cannot leave ACLs out (noacl)"),
            (not options.xattrs, "it cannot leave attributes out (noxattrs)"),
            (options.wants_access_times, f"it keeps no access times ({options.wants_access_times})"),
            (options.static_nlink, "it shows the links that a directory has (static_nlink)"),
            (options.target.startswith("/dev/fd/"), "it needs a directory"),
        )
        return [reason for wish, reason in wishes if wish]

    def start(self, options: Options, progress: Progress) -> ExitCode:
        """See Engine."""
        from fuseunion.engines.ranch import corral

        with progress("linked") as report:
            state = corral.create(options, report)
        notes.leave(str(state))
        return ExitCode.OK

    def find(self, given: str, path: str, entry: Mount | None) -> LiveMount | None:
        """See Engine."""
        return LiveMount(given, path, entry) if _marked(path) is not None else None

    def holders(self, live: LiveMount) -> list[Holder]:
        """See Engine."""
        return holders_beneath(live.path)

    def flush(self, live: LiveMount, progress: Progress) -> None:
        """See Engine.

        Raises:
            UserError: LAYERS for a ranch without an UPPER, or one that is not complete; what cannot be collected.
        """
        from fuseunion.engines.ranch import corral

        with ranch_at(live.given) as ranch, progress("collected") as report:
            corral.sync(ranch, report)

    def stop(self, live: LiveMount, progress: Progress, *, lazy: bool, discard: bool) -> None:
        """See Engine.

        Raises:
            BusyError: it is used.
            UserError: what cannot be collected, by name.
        """
        from fuseunion.engines.ranch import corral
        from fuseunion.engines.ranch.farm import aside
        from fuseunion.engines.ranch.record.record import Mode

        with ranch_at(live.given) as ranch, progress("collected") as report:
            # Without a mount nothing but this look keeps files from being written while they are collected.
            if ranch.record.mode is Mode.PLAIN and not lazy and self.holders(live):
                raise BusyError
            try:
                corral.take_down(ranch, report, discard=discard, lazy=lazy)
            except OSError as error:
                if error.errno != errno.EBUSY or not aside.is_mounted(ranch):
                    raise
                raise BusyError from None
        notes.forget(str(ranch.path))

    def statuses(self, path: str | None = None) -> Iterator[Status]:
        """See Engine. Those that were noted since the machine came up, and the one at `path`."""
        from fuseunion.engines.ranch.record import standing

        marked = _marked(path) if path is not None else None
        states = dict.fromkeys((*notes.found(), *([str(marked)] if marked is not None else [])))
        return standing.statuses(map(Path, states))

    def claims(self, upper: str) -> Iterator[Finding]:
        """See Engine. A ranch on this upper."""
        from fuseunion.engines.ranch.record.record import read

        try:
            record = read(beside(upper))
        except UserError as error:
            yield refused("ranch", error.message, f"look at '{beside(upper)}'")
            return
        if record is not None:
            says = f"one at '{record.merged}' stands on this upper ({record.phase.value})"
            yield Finding("ranch", None, says, f"fuseunion umount '{record.merged}'")

    def repair(self, given: str, path: str, progress: Progress) -> str | None:
        """See Engine. What was changed in the ranch is brought into its UPPER."""
        from fuseunion.engines.ranch import corral
        from fuseunion.engines.ranch.farm import aside
        from fuseunion.engines.ranch.record.record import Mode, Phase, opened

        marked = _marked(path)
        state = beside(path) if marked is None else marked
        if not state.is_dir():
            return None
        with opened(state) as ranch, progress("collected") as report:
            known = ranch.record_or_none
            if (known is None and marked is not None) or (known and path not in (known.merged, known.upper)):
                raise UserError(f"the ranch in '{state}' does not stand at '{given}'; was it moved?", ExitCode.LAYERS)
            if known is None:
                ranch.remove()
                return f"removed '{ranch.path}', which a killed command left"
            record = known
            if record.phase is Phase.LIVE and (record.mode is Mode.PLAIN or aside.is_mounted(ranch)):
                how = f"take it down with: fuseunion umount '{record.merged}'"
                return f"the ranch at '{record.merged}' is whole; {how}"
            corral.take_down(ranch, report)
            notes.forget(str(ranch.path))
            return f"collected the ranch at '{record.merged}' into '{record.upper or 'nothing (it was ephemeral)'}'"


@contextmanager
def ranch_at(given: str) -> Iterator[Ranch]:
    """The ranch that a directory shows, locked.

    Args:
        given: the directory, as the user wrote it.

    Raises:
        UserError: LAYERS when there is none.
    """
    from fuseunion.engines.ranch.record.record import opened

    path = os.path.realpath(given)
    state = _marked(path)
    if state is None:
        raise UserError(
            f"'{given}' is not a ranch; give the MERGED of a mount that was made with --engine ranch", ExitCode.LAYERS
        )
    with opened(state) as ranch:
        if ranch.record_or_none is None or ranch.record.merged != path:
            raise UserError(f"the ranch in '{state}' does not stand at '{given}'; was it moved?", ExitCode.LAYERS)
        yield ranch


def _marked(path: str) -> Path | None:
    """The state that a directory is marked with: where to look, no more (marker.py)."""
    from fuseunion.engines.ranch.record import marker

    try:
        fd = owned.open_without_links(path)
    except OSError:
        return None
    try:
        return marker.find(fd)
    finally:
        os.close(fd)
