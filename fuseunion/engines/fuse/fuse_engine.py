"""The FUSE engine, as the commands see it."""

from __future__ import annotations

import gc
import os
import signal
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fuseunion.engines.engine import Engine, Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.proc import processes
from fuseunion.mounting.options import EngineChoice, Options

if TYPE_CHECKING:
    from fuseunion.engines.finding import Finding
    from fuseunion.engines.live import LiveMount
    from fuseunion.engines.status import Status
    from fuseunion.linux.runtime.conversation import Conversation


class FuseEngine(Engine):
    """A daemon that answers the kernel through /dev/fuse."""

    choice = EngineChoice.FUSE
    losses = ("slower than the kernel where many small requests are made",)

    def refusals(self, options: Options) -> list[str]:
        """See Engine."""
        wishes = (
            (options.ranch.inject, "it cannot inject files"),
            (
                options.wants_access_times,
                f"it cannot keep access times ({options.wants_access_times}): reads of what the kernel has cached "
                "never reach it",
            ),
        )
        return [reason for wish, reason in wishes if wish]

    def start(self, options: Options, progress: Progress) -> ExitCode:
        """See Engine. What the caller left open by mistake is noted before anything of ours is opened.

        SIGINT stays blocked when it is done: a ^C that comes too late must not look as if it had come in time.
        """
        inherited = processes.own_descriptors()
        # ^C waits until there is a child, which ends in order (daemon.py): whatever was made is undone or finished.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        # Nothing of what start-up makes is garbage: looking for some would take 8 ms now, and time at every later look.
        gc.disable()
        try:
            return self._start(options, inherited)
        except BaseException:
            gc.enable()  # another engine may follow
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            raise

    @staticmethod
    def _start(options: Options, inherited: frozenset[int]) -> ExitCode:
        from fuseunion.mounting.prepare import prepare

        prepared = prepare(options)
        from fuseunion.engines.fuse import daemon

        try:
            return daemon.run(prepared, options, inherited)
        except BaseException:
            # Another engine may follow, and needs the locks; after ^C nothing that was made stays.
            prepared.close()
            raise

    def preload(self) -> None:
        """See Engine."""
        import contextlib

        from fuseunion.engines.fuse import daemon, end_daemon  # noqa: F401
        from fuseunion.mounting import prepare  # noqa: F401

        with contextlib.suppress(ImportError):
            daemon.load()

    def find(self, given: str, path: str, entry: Mount | None) -> LiveMount | None:
        """See Engine."""
        from fuseunion.engines.fuse import mount_point
        from fuseunion.engines.live import LiveMount

        return LiveMount(given, path, entry) if entry is not None and entry.fstype == mount_point.TYPE else None

    def flush(self, live: LiveMount, progress: Progress) -> None:
        """See Engine. Of a volatile mount too."""
        from fuseunion.engines.fuse.asking import questions
        from fuseunion.engines.live import cannot_write_out

        try:
            questions.write_out(live.path, questions.SYNC)
        except OSError as error:
            raise cannot_write_out(live, error) from None

    def stop(self, live: LiveMount, progress: Progress, *, lazy: bool, discard: bool) -> None:
        """See Engine. Returns when the daemon has gone."""
        from fuseunion.engines.fuse import end_daemon

        end_daemon.stop(live, lazy=lazy)

    def statuses(self, path: str | None = None) -> Iterator[Status]:
        """See Engine."""
        from fuseunion.engines.fuse.asking import mounts

        return mounts.statuses()

    def reach(self, path: str) -> tuple[Status, Conversation | None] | None:
        """See Engine."""
        from fuseunion.engines.fuse.asking import reaching

        return reaching.reach(path)

    def needs(self) -> Iterator[Finding]:
        """Two Python packages, /dev/fuse, and for ordinary users fusermount3."""
        from importlib.util import find_spec

        from fuseunion.engines.finding import Finding

        for package in ("pyfuse3", "trio"):
            found = find_spec(package) is not None
            name, remedy = f"python package {package}", "pip install 'fuseunion[fuse]'"
            yield Finding(name, True, "installed") if found else Finding(name, False, "missing", remedy)
        yield _extension()
        yield _device()
        yield _fusermount()


def _extension() -> Finding:
    from importlib.util import find_spec

    from fuseunion.engines.finding import Finding

    if find_spec("fuseunion.engines.fuse.wire.native._device") is None:
        remedy = "install a C compiler, then this package once more"
        return Finding("extension module", None, "was not built: mounts are slower", remedy)
    if os.environ.get("FUSEUNION_WIRE") == "0":
        return Finding("extension module", None, "switched off by FUSEUNION_WIRE=0: mounts are slower")
    return Finding("extension module", True, "requests are read from /dev/fuse directly")


def _device() -> Finding:
    from fuseunion.engines.finding import Finding, refused
    from fuseunion.engines.fuse import mount_point

    try:
        os.close(mount_point.open_device())
    except UserError as error:
        return refused(mount_point.DEVICE, error.message, "modprobe fuse")
    return Finding(mount_point.DEVICE, True, "can be opened")


def _fusermount() -> Finding:
    import shutil
    from pathlib import Path

    from fuseunion.engines.finding import Finding
    from fuseunion.engines.fuse.mount_point import MTAB

    name = "fusermount3"
    path = shutil.which("fusermount3") or shutil.which("fusermount")
    if os.geteuid() == 0:
        return Finding(name, True, path or "missing; root mounts without it")
    if path is None:
        return Finding(name, False, "missing; only root mounts without it", "install fuse3")
    if not os.stat(path).st_mode & stat.S_ISUID:
        return Finding(name, False, f"{path} is not set-user-id root", f"chmod u+s {path}")
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        return Finding(name, False, "set-user-id has no effect here (no_new_privs)", "allow new privileges")
    if not os.access(MTAB, os.R_OK):
        return Finding(name, False, f"cannot unmount without {MTAB}", f"ln -s /proc/self/mounts {MTAB}")
    return Finding(name, True, path)
