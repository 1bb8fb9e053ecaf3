"""Memory and descriptors of the daemons: idle, after a walk, and after the kernel forgot what it had walked."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

from bench.row import Measurement, NotRun, Unit, Who, row
from bench.rows.growth import empty_files
from bench.rows.mounting import one_small_tree
from bench.stage import Stage

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
ENTRIES_AND_INODES = "2"  # proc(5)


@row("memory", "the daemon's memory (PSS) with {size:,} files", tiny=500, small=20_000,
     full=(10_000, 100_000, 1_000_000), prepare=empty_files, who=Who.DAEMONS)  # fmt: skip
def memory(stage: Stage, size: int) -> Iterator[Measurement]:
    """Idle, for each file, and what is left."""
    idle = stage.memory()
    yield stage.measured_memory("idle")
    names = stage.tools.look(stage.merged)
    yield stage.measured_memory("for each file", idle, size, names)
    yield Measurement("open", stage.descriptors(), None, Unit.DESCRIPTORS)
    _drop_caches()
    _wait_until_steady(stage)
    yield stage.measured_memory("for each file, when forgotten", idle, size)
    yield Measurement("open, when forgotten", stage.descriptors(), None, Unit.DESCRIPTORS)


def _drop_caches() -> None:
    try:
        DROP_CACHES.write_text(ENTRIES_AND_INODES)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise NotRun("only root of the machine can make the kernel forget (drop_caches)") from None


def _wait_until_steady(stage: Stage) -> None:
    """The kernel's FORGETs are answered one after the other: until the memory has been the same for 0.2 s."""
    last, since = stage.memory(), time.monotonic()
    give_up = since + stage.tools.timeout
    while time.monotonic() - since < 0.2 and time.monotonic() < give_up:
        time.sleep(0.02)
        if (current := stage.memory()) != last:
            last, since = current, time.monotonic()


@row("many-mounts", "{size} mounts at once, as podman keeps them", tiny=2, small=8, full=(28, 100),
     prepare=lambda ground, size: one_small_tree(ground, 10), mounted=False, who=Who.DAEMONS)  # fmt: skip
def many_mounts(stage: Stage, size: int) -> Iterator[Measurement]:
    """Until all are there, and what each costs."""
    yield Measurement("mount", sum(stage.mount(number) for number in range(size)))
    total = sum(stage.memory(merged) for merged in stage.mounts)
    yield Measurement("memory (PSS) of each", total / size, f"{len(stage.mounts)} mounts", Unit.BYTES)
