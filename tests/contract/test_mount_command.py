"""mount(8), mount.fuse3 and fstab: `PROGRAM SOURCE TARGET -o ...`, with the program found by its name.

mount.fuse3 runs `fuseunion SOURCE TARGET -o dev,suid,...` through a shell (libfuse util/mount.fuse.c). In fstab the
program stands either before `#` in the source, with type `fuse`, or in the type, `fuse.fuseunion`. mount(8) drops PATH,
so the program is then looked for in the system's directories, or is named with its whole path before the `#`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.arena import Arena
from tests.support.caller import WRITE_LIMIT, Caller
from tests.support.layers import File
from tests.support.mountinfo import mount_at, mounts_under
from tests.support.waiting import wait_until

pytestmark = pytest.mark.actors("root")


class Layers:
    """A lower, an upper, a work directory and a mount point."""

    def __init__(self, arena: Arena) -> None:
        self.lower = arena.lower({"file": File(b"x")})
        self.upper = arena.directory("upper")
        self.work = arena.directory("work")
        self.merged = arena.directory("merged")

    @property
    def options(self) -> str:
        """The options that name them."""
        return f"lowerdir={self.lower},upperdir={self.upper},workdir={self.work}"

    def check(self) -> None:
        """The mount is there and writable."""
        assert mount_at(self.merged) is not None
        (self.merged / "file").write_text("y")
        assert (self.upper / "file").read_text() == "y"


@pytest.fixture
def layers(arena: Arena) -> Layers:
    """Layers to mount."""
    return Layers(arena)


@pytest.fixture
def program(caller: Caller) -> Iterator[str]:
    """The name of the program under test, in the system's directories as long as the test runs."""
    installed = Path("/usr/local/bin") / f"fuseunion-{caller.arena.place.token}"
    installed.symlink_to(caller.program)
    yield installed.name
    installed.unlink()


def run(arena: Arena, *command: str | Path) -> None:
    """Run a command; it must be silent."""
    environment = arena.place.environment()
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def unmount(arena: Arena, merged: Path) -> None:
    """By umount(8), which does not wait for the daemon."""
    run(arena, "umount", merged)
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end", WRITE_LIMIT)


def test_mount_fuse3(arena: Arena, layers: Layers, program: str) -> None:
    run(arena, "mount.fuse3", f"{program}#{layers.lower}", layers.merged, "-o", layers.options)
    layers.check()
    unmount(arena, layers.merged)


def test_mount_fuse3_with_a_type(arena: Arena, layers: Layers, program: str) -> None:
    """containerd's fuse-overlayfs snapshotter: `mount.fuse3 overlay TARGET -o ... -o ... -t fuse-overlayfs`."""
    separate = [word for option in layers.options.split(",") for word in ("-o", option)]
    run(arena, "mount.fuse3", "overlay", layers.merged, *separate, "-o", "writeback=0", "-t", program)
    layers.check()
    unmount(arena, layers.merged)


def test_mount_with_a_type(arena: Arena, layers: Layers, program: str) -> None:
    run(arena, "mount", "-t", f"fuse.{program}", "-o", layers.options, "overlay", layers.merged)
    layers.check()
    unmount(arena, layers.merged)


def test_remount_is_refused(arena: Arena, layers: Layers, program: str) -> None:
    """mount(8) calls the program for it, which must not mount a second time over the first."""
    run(arena, "mount", "-t", f"fuse.{program}", "-o", layers.options, "overlay", layers.merged)
    command = ["mount", "-t", f"fuse.{program}", "-o", f"remount,ro,{layers.options}", "overlay", layers.merged]
    done = subprocess.run(command, env=arena.place.environment(), capture_output=True, text=True, timeout=20)
    assert done.returncode != 0
    assert done.stderr.startswith("fuseunion: remount: a mount cannot be changed; unmount it")
    assert [mount.target for mount in mounts_under(arena.root)] == [str(layers.merged)]
    layers.check()
    unmount(arena, layers.merged)


@pytest.mark.parametrize(
    "line",
    [
        "{program}#overlay {merged} fuse {options},noauto,nofail 0 0",
        "{path}#overlay {merged} fuse {options},noauto,_netdev,x-systemd.automount 0 0",
        "overlay {merged} fuse.{program} {options},noauto,allow_other 0 0",
    ],
    ids=["hash", "path", "type"],
)
def test_fstab(arena: Arena, layers: Layers, caller: Caller, program: str, line: str) -> None:
    fstab = arena.root / "fstab"
    values = {"merged": layers.merged, "options": layers.options, "program": program, "path": caller.program}
    fstab.write_text(line.format(**values) + "\n")
    run(arena, "mount", "--fstab", fstab, layers.merged)
    layers.check()
    unmount(arena, layers.merged)


def test_mount_all_twice(arena: Arena, layers: Layers, program: str) -> None:
    """`mount -a` finds a line that is mounted by its source and target (libmount, mnt_table_is_fs_mounted)."""
    fstab = arena.root / "fstab"
    fstab.write_text(f"overlay {layers.merged} fuse.{program} {layers.options} 0 0\n")
    for _ in range(2):
        run(arena, "mount", "--fstab", fstab, "--all")
        assert [mount.target for mount in mounts_under(arena.root)] == [str(layers.merged)]
    layers.check()
    unmount(arena, layers.merged)
