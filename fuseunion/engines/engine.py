"""What every engine can be asked.

The commands, the doctor and the choice of an engine know engines by this protocol alone (registry.py finds them), so
that a fourth one is a folder and a line in the registry. An engine's own module imports nothing heavy at its top: a
mount loads the one engine that it tries, and of it only what the mount needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fuseunion.engines.finding import Finding
    from fuseunion.engines.live import LiveMount
    from fuseunion.engines.status import Status
    from fuseunion.errors import ExitCode
    from fuseunion.linux.mountinfo import Mount
    from fuseunion.linux.proc.holders import Holder
    from fuseunion.linux.runtime.conversation import Conversation
    from fuseunion.mounting.options import EngineChoice, Options

Report = Callable[[int], None]
"""Told after each object how many are done."""

Progress = Callable[[str], "AbstractContextManager[Report]"]
"""Given what is done, such as "linked", shows the user how far it has come for as long as the context lasts."""


Wish = tuple[object, str]
"""Whether something is asked for, and why an engine cannot give it."""


def for_a_daemon(options: Options) -> tuple[Wish, ...]:
    """What only an engine can give that answers each request itself, for the refusals of the others."""
    from fuseunion.mounting.options import XattrPermissions

    return (
        (options.uid_map or options.gid_map, "it has no id maps"),
        (options.mine, "it cannot show everything as yours (--mine)"),
        (
            (options.squash_uid is not None or options.squash_gid is not None) and not options.mine,
            "it cannot squash ids",
        ),
        (options.xattr_permissions is not XattrPermissions.OFF, "it keeps no owners in attributes (--fakeroot)"),
        (options.foreground or options.trace, "there is no daemon to stay in the foreground"),
        (options.log_file is not None, "there is no daemon to write a log"),
        (options.list_layers, "it lists no layers of files (list_layers)"),
        (options.allow_root, "it cannot let root in alone (allow_root)"),
    )


def has_image(options: Options) -> bool:
    """Whether a layer is a file: its mount is in no tree, and so has no path that a link could name."""
    import os

    return any(map(os.path.isfile, (*options.lowers, *filter(None, [options.upper]))))


class Engine(ABC):
    """One way to show the union.

    Attributes:
        choice: its word for `--engine`.
        losses: what the user does without, for the doctor.
        can_discard: what was written there can be thrown away instead of being kept in UPPER.
    """

    choice: ClassVar[EngineChoice]
    losses: ClassVar[tuple[str, ...]]
    can_discard: ClassVar[bool] = False

    @abstractmethod
    def refusals(self, options: Options) -> list[str]:
        """Why it cannot honour these options, whatever the machine is and is in the layers; empty when it can."""

    @abstractmethod
    def start(self, options: Options, progress: Progress) -> ExitCode:
        """Show the union; returns when it can be used, or with --foreground when it has ended.

        Raises:
            UserError: UNAVAILABLE where this engine cannot be had here, so that another may be tried; every other code
                where none could. Nothing is left behind.
        """

    @abstractmethod
    def find(self, given: str, path: str, entry: Mount | None) -> LiveMount | None:
        """Recognise what this engine shows at a path.

        Args:
            given: the path as the user wrote it.
            path: absolute, without symbolic links.
            entry: the mount that lies there, if one does.
        """

    @abstractmethod
    def flush(self, live: LiveMount, progress: Progress) -> None:
        """Bring everything that was changed into UPPER and to disk; the mount goes on.

        Raises:
            UserError: FAILURE where it cannot be written.
        """

    @abstractmethod
    def stop(self, live: LiveMount, progress: Progress, *, lazy: bool, discard: bool) -> None:
        """Write everything out and take the mount away; with `lazy` without waiting for that.

        Args:
            live: the mount.
            progress: for what takes long.
            lazy: do not wait for those who use it.
            discard: throw away what was changed; only where `can_discard`.
        Raises:
            BusyError: it is used; never with `lazy`.
            UserError: BUSY where it is used in another mount namespace; FAILURE; what cannot be written, by name.
        """

    def preload(self) -> None:  # noqa: B027 - an engine may have nothing that is worth it
        """Import what `start` would, for a process that starts several mounts one after another, each in a child.

        Whatever cannot be imported is left for `start` to tell.
        """

    def holders(self, live: LiveMount) -> list[Holder]:
        """The processes that use it, as far as this user may see them."""
        from fuseunion.linux.proc.holders import holders

        return holders(live.entry.device) if live.entry is not None else []

    def statuses(self, path: str | None = None) -> Iterator[Status]:
        """How everything is doing that this engine shows for this user (for root: for anybody, as far as it is seen).

        Args:
            path: absolute, without symbolic links: what is asked for most. More may be said, and what stands there is
                found even where no list has it.
        """
        return iter(())

    def reach(self, path: str) -> tuple[Status, Conversation | None] | None:
        """How what this engine shows at a path is doing, and a conversation with who serves it.

        Args:
            path: absolute.
        Returns:
            None where it shows nothing there; no conversation where nobody can be spoken to.
        """
        return next(((status, None) for status in self.statuses(path) if status.merged == path), None)

    def needs(self) -> Iterator[Finding]:
        """What the machine must have for this engine, looked at without changing anything."""
        return iter(())

    def claims(self, upper: str) -> Iterator[Finding]:
        """What this engine keeps beside an upper directory, and what is in the way of other engines there.

        Args:
            upper: absolute, without symbolic links.
        """
        return iter(())

    def repair(self, given: str, path: str, progress: Progress) -> str | None:
        """Finish what a killed command left at an upper or merged directory.

        Args:
            given: the path as the user wrote it.
            path: absolute, without symbolic links.
            progress: for what takes long.
        Returns:
            What was done, or that nothing had to be; None where this engine has left nothing.
        Raises:
            UserError: what cannot be repaired.
        """
        return None
