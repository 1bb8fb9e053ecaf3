"""The self-contained directory runs where nothing is installed, from wherever it lies, and starts quickly."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.bundle.conftest import BUILT, DIST, NAME, Machine
from tests.support.mountinfo import mount_at

pytestmark = pytest.mark.root

OLDEST = (2, 31)
"""glibc of Debian 11."""

FUSEUNION = f"./{NAME}/bin/fuseunion"

USE = """
cat merged/file; echo more >>merged/file; mkdir merged/new; mv merged/new merged/newer; rm merged/file
{fuseunion} umount merged
test ! -e merged/file; test -d upper/newer; cat lower/file
"""


def _needs(file: Path) -> tuple[int, int]:
    """The newest glibc whose symbols a file asks for; (0, 0) for one that is no ELF file."""
    if file.read_bytes()[:4] != b"\x7fELF":
        return 0, 0
    symbols = subprocess.run(["objdump", "-T", file], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\(?GLIBC_(\d+)\.(\d+)", symbols)
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def test_the_directory_needs_no_newer_glibc(unpacked: Path) -> None:
    files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
    needs = {str(path.relative_to(unpacked)): _needs(path) for path in files}
    assert (0, 0) < max(needs.values()) <= OLDEST, {name: need for name, need in needs.items() if need > OLDEST}
    assert any("libfuse3" in name for name in needs), "libfuse is inside"


def test_the_wheels_need_no_newer_glibc(tmp_path: Path) -> None:
    wheels = sorted(DIST.glob("*.whl"))
    assert {path.name.split("-")[0] for path in wheels} == {"fuseunion", "pyfuse3"}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(tmp_path / wheel.name)
        needs = [_needs(path) for path in (tmp_path / wheel.name).rglob("*.so*")]
        assert (0, 0) < max(needs) <= OLDEST, wheel.name


def test_there_is_nothing_on_the_machine(machine: Machine) -> None:
    """Else the next tests would prove nothing."""
    said = machine.run("command -v python3 python gcc cc fusermount3 || true; ldconfig -p | grep fuse || true; id -u")
    assert said.split() == ["1234"]


def test_in_a_user_namespace(machine: Machine) -> None:
    script = f"{FUSEUNION} lower upper merged" + USE.format(fuseunion=FUSEUNION)
    said = machine.run(f"unshare --user --map-root-user --mount sh -euc '{script}'; rm -rf upper")
    assert said.split() == ["text", "text"]


def test_through_fusermount3(machine: Machine) -> None:
    """Which is set-user-ID root, and cannot be in a directory that a user unpacks."""
    helper = machine.root / "usr/bin/fusermount3"
    shutil.copy(BUILT / "usr/local/bin/fusermount3", helper)
    helper.chmod(0o4755)
    try:
        said = machine.run(f"{FUSEUNION} lower upper merged" + USE.format(fuseunion=FUSEUNION) + "rm -rf upper")
    finally:
        helper.unlink()
    assert said.split() == ["text", "text"]


def test_without_any_mount(machine: Machine) -> None:
    """What remains is said in one line; --engine fuse says what to install."""
    said = machine.run(
        f"{FUSEUNION} --engine fuse lower upper merged || echo status $?\n"
        f"{FUSEUNION} --allow-writable-lower lower upper merged\n"
        f"echo more >merged/new; {FUSEUNION} umount merged; cat upper/new; rm -rf upper"
    )
    lines = said.splitlines()
    assert "install the package fuse3" in lines[0]
    assert lines[1] == "status 5"
    assert lines[2].startswith("fuseunion: the ranch engine is used (not fuse: an ordinary user mounts through")
    assert lines[3:] == ["more"]


def test_a_command_over_the_machine_itself(machine: Machine) -> None:
    """The user has one id, and may not write to the tree; the program lies in it."""
    said = machine.run(
        f"{FUSEUNION} exec / changes -- sh -euc 'id -u; ls -A ~someone/changes; echo new >/etc/new; cat /etc/new'\n"
        f"{FUSEUNION} exec / changes -- cat /etc/new; test ! -e /etc/new; cat changes/etc/new; rm -rf changes\n"
        "unshare --user --map-root-user --mount sh -euc '\n"
        f"{FUSEUNION} lower upper merged; {FUSEUNION} status merged | grep reads\n"
        f"{FUSEUNION} umount merged; rm -rf upper'"
    )
    assert said.splitlines()[:4] == ["0", "new", "new", "new"]
    assert said.splitlines()[4].split()[1:] == ["/dev/fuse", "by", "the", "C", "extension"]


def test_wherever_it_lies_and_whatever_it_is_called(machine: Machine) -> None:
    """Moved, and by a link, whose name counts."""
    said = machine.run(
        f"mkdir -p 'a place' bin; mv {NAME} 'a place/here'; ln -s '../a place/here/bin/fuseunion' bin/fuse-overlayfs\n"
        "bin/fuse-overlayfs --version; PYTHONHOME=/nowhere PYTHONPATH=/nowhere bin/fuse-overlayfs --version\n"
        "unshare --user --map-root-user --mount sh -euc '\n"
        "bin/fuse-overlayfs -o lowerdir=lower,upperdir=up,workdir=work,unknown merged; cat merged/file\n"
        "bin/fuse-overlayfs umount merged' 2>&1\n"
        f"bin/fuse-overlayfs doctor | grep python; mv 'a place/here' {NAME}; rm -rf up work bin"
    )
    assert said.count("fuseunion ") >= 2
    assert "text" in said


def test_it_starts_hardly_slower_than_a_virtual_environment(unpacked: Path, scratch: Path) -> None:
    """From the command to a mount that answers, by turns in one run; the least of each counts.

    It has no file of bytecode (fuseunion/bytecode), which an owner's first mount makes of a virtual environment.
    """
    place = scratch / "start"
    for name in ("lower", "merged"):
        (place / name).mkdir(parents=True)
    environment = Path(sys.executable).with_name("fuseunion")
    bundle = unpacked / "bin/fuseunion"
    times: dict[Path, list[float]] = {bundle: [], environment: []}
    for _ in range(30):
        for program, taken in times.items():
            start = time.perf_counter()
            subprocess.run([program, "lower", "upper", "merged"], cwd=place, check=True)
            taken.append(time.perf_counter() - start)
            assert mount_at(place / "merged") is not None
            subprocess.run([program, "umount", "merged"], cwd=place, check=True)
    least = {program: min(taken) * 1000 for program, taken in times.items()}
    middle = {program: statistics.median(taken) * 1000 for program, taken in times.items()}
    print(
        f"start of a mount, ms, least and median of 30: bundle {least[bundle]:.0f} {middle[bundle]:.0f}, "
        f"virtual environment {least[environment]:.0f} {middle[environment]:.0f}"
    )
    assert least[bundle] <= least[environment] * 1.2
