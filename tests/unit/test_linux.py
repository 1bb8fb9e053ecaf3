"""What is read from /proc, and namespaces of our own (fuseunion/linux/)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuseunion.linux import mountinfo, syscalls
from fuseunion.linux.mountinfo import _parse
from fuseunion.linux.proc import processes

OVERLAY = rb"""36 35 0:45 / /m\040x rw,noatime shared:7 - overlay fuse\040union rw,lowerdir=/a:/b,upperdir=/c\134\054d
"""


def test_a_line_of_mountinfo() -> None:
    mount = _parse(OVERLAY)
    assert (mount.mount_id, mount.device) == (36, os.makedev(0, 45))
    assert (mount.target, mount.fstype, mount.source) == ("/m x", "overlay", "fuse union")
    assert mount.option("lowerdir") == "/a:/b"
    assert mount.option("upperdir") == "/c\\,d"
    assert mount.option("workdir") is None
    assert mount.option("rw") is None


def test_a_line_without_optional_fields() -> None:
    mount = _parse(b"22 1 254:0 /root / ro - ext4 /dev/vda rw\n")
    assert (mount.target, mount.fstype, mount.source, mount.raw_options) == ("/", "ext4", "/dev/vda", b"rw")


def test_mounts_of_this_and_of_another_process() -> None:
    proc = mountinfo.mount_at("/proc")
    assert proc is not None and proc.fstype == "proc"
    assert mountinfo.filesystem_of("/proc/self/stat") == "proc"
    assert mountinfo.filesystem_type(proc.device) == "proc"
    assert proc in list(mountinfo.mounts(os.getpid()))
    assert mountinfo.mount_at("/proc/self") is None
    with pytest.raises(FileNotFoundError):
        next(mountinfo.mounts(2**22))


def test_a_process(tmp_path: Path) -> None:
    (tmp_path / "held").touch()
    with (tmp_path / "held").open() as file:
        assert (str(file.fileno()), str(tmp_path / "held")) in processes.opened(os.getpid())
        (said,) = processes.descriptors_of(os.getpid(), str(tmp_path / "held"))
        assert said["ino"] == str((tmp_path / "held").stat().st_ino)
        assert file.fileno() in processes.own_descriptors()
        assert processes.own_descriptors() == processes.own_descriptors()
    assert not processes.descriptors_of(os.getpid(), str(tmp_path / "held"))
    assert not processes.descriptors_of(2**22, "/")
    assert os.getpid() in processes.process_ids()
    assert processes.mount_namespace() == processes.mount_namespace(os.getpid())


def test_waiting_for_the_end_of_a_process() -> None:
    with subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL) as child:
        pidfd = os.pidfd_open(child.pid)
        assert not processes.wait_for_end(pidfd, 0)
        assert processes.name(child.pid) in ("sleep", Path(sys.executable).name)
        child.kill()
        assert processes.wait_for_end(pidfd, 30)
        os.close(pidfd)
    assert processes.name(2**22) == "?"


NAMESPACE = """
import os
from fuseunion.linux import namespaces, syscalls
before = os.geteuid(), os.getegid()
namespaces.enter_user_namespace()
namespaces.keep_mounts_private()
syscalls.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"")
assert (os.geteuid(), os.getegid()) == before
assert not namespaces.in_first_user_namespace()
"""


def test_a_user_namespace_of_our_own() -> None:
    """The ids stay, mounts are allowed, and root there is not the machine's."""
    done = subprocess.run([sys.executable, "-c", NAMESPACE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", ["/", "/proc", "/dev/null"])
def test_the_device_of_an_open_object(path: str) -> None:
    fd = os.open(path, os.O_PATH)
    try:
        assert syscalls.device(fd) == os.fstat(fd).st_dev
    finally:
        os.close(fd)
