"""What `fuseunion doctor` finds out: each point with an answer and, for every "no", a remedy."""

from __future__ import annotations

import grp
import importlib.util
import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fuseunion.doctor import trials
from fuseunion.engines import choose
from fuseunion.engines.fuse.mount_point import DEVICE
from fuseunion.engines.ranch.record.record import read
from fuseunion.errors import UserError
from fuseunion.linux.mountinfo import filesystem_of
from fuseunion.mounting.checks.ranches import beside
from fuseunion.mounting.options import EngineChoice, Options

ENGINES = (EngineChoice.FUSE, EngineChoice.KERNEL, EngineChoice.RANCH)

LOSSES = {
    EngineChoice.FUSE: ("slower than the kernel where many small requests are made",),
    EngineChoice.KERNEL: (
        "renaming a directory of a lower answers EXDEV",
        "names of one lower file become separate files when one of them is written",
        "no id maps, no --fakeroot",
    ),
    EngineChoice.RANCH: (
        "files of the lower are symbolic links: lstat, realpath and programs that refuse links see them",
        "a file of the lower has to be promoted before it can be written",
        "a file of the lower that is moved or linked becomes a copy",
        "set-user-id files of others lose that bit in copies",
    ),
}


class Finding(NamedTuple):
    """One point. `ok` None is a mere fact."""

    name: str
    ok: bool | None
    says: str
    remedy: str = ""


class EngineReport(NamedTuple):
    """One engine."""

    engine: EngineChoice
    works: bool
    why_not: str
    losses: tuple[str, ...]


class Diagnosis(NamedTuple):
    """Everything that was found."""

    findings: list[Finding]
    engines: list[EngineReport]
    chosen: EngineChoice | None


def examine(options: Options | None) -> Diagnosis:
    """Look at the machine, and at the layers of a mount if there is one in question. Changes nothing."""
    findings = [*_machine(), *(_layers(options) if options is not None else ())]
    place = _beside(options)
    reports = []
    for engine in ENGINES:
        refused = choose.refusals(options, engine) if options is not None else []
        outcome = trials.Outcome(False, ", ".join(refused)) if refused else trials.engine(engine, place)
        reports.append(EngineReport(engine, outcome.worked, outcome.said, LOSSES[engine]))
    order = choose.order(options.engine if options is not None else EngineChoice.AUTO)
    working = {report.engine for report in reports if report.works}
    return Diagnosis(findings, reports, next((engine for engine in order if engine in working), None))


def _beside(options: Options | None) -> str | None:
    """A directory on the upper's filesystem that can be written, or None for the usual temporary directory."""
    if options is None or options.upper is None:
        return None
    parent = os.path.dirname(os.path.realpath(options.upper))
    return parent if os.access(parent, os.W_OK | os.X_OK) else None


def _machine() -> Iterator[Finding]:
    release, lacking = f"Linux {os.uname().release}", choose.missing()
    if lacking is None:
        yield Finding("kernel", True, release)
    else:
        yield Finding("kernel", False, f"{release}: {lacking}", "a kernel from Linux 5.6 on, outside of such a sandbox")
    for package in ("pyfuse3", "trio"):
        found = importlib.util.find_spec(package) is not None
        yield Finding(f"python package {package}", found, "installed" if found else "missing", f"pip install {package}")
    yield _device()
    yield _fusermount()
    yield _namespaces()
    yield from _subordinate_ids()


def _device() -> Finding:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        remedy = "modprobe fuse; in a container: --device /dev/fuse; for every user: chmod 666 /dev/fuse"
        return Finding(DEVICE, False, f"cannot be opened: {error.strerror}", remedy)
    return Finding(DEVICE, True, "can be opened")


def _fusermount() -> Finding:
    path = shutil.which("fusermount3") or shutil.which("fusermount")
    if path is None:
        return Finding("fusermount3", os.geteuid() == 0, "missing; only root mounts without it", "install fuse3")
    if not os.stat(path).st_mode & stat.S_ISUID and os.geteuid() != 0:
        return Finding("fusermount3", False, f"{path} is not set-user-id root", f"chmod u+s {path}")
    if "NoNewPrivs:\t1" in Path("/proc/self/status").read_text() and os.geteuid() != 0:
        return Finding("fusermount3", False, "set-user-id has no effect here (no_new_privs)", "allow new privileges")
    return Finding("fusermount3", True, path)


_KNOBS = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns",
    ),
)


def _namespaces() -> Finding:
    outcome = trials.user_namespace()
    if outcome.worked:
        return Finding("user namespaces", True, "can be made, and mounted in")
    for path, forbids, remedy in _KNOBS:
        try:
            value = Path(path).read_text().strip()
        except OSError:
            continue  # another distribution's knob
        if value == forbids:
            return Finding("user namespaces", False, f"{outcome.said} ({path} is {value})", remedy)
    remedy = "a seccomp filter or a container forbids them; in docker or podman: --security-opt seccomp=unconfined"
    return Finding("user namespaces", False, outcome.said, remedy)


def _subordinate_ids() -> Iterator[Finding]:
    if os.geteuid() == 0:
        return
    try:
        names = {pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid())}
        groups = grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        names, groups = {str(os.geteuid())}, str(os.getegid())
    user = sorted(names)[-1]
    for path, tool in (("/etc/subuid", "newuidmap"), ("/etc/subgid", "newgidmap")):
        try:
            lines = [line.split(":") for line in Path(path).read_text().splitlines()]
        except OSError:
            lines = []
        count = sum(int(fields[2]) for fields in lines if fields[0] in names and len(fields) == 3)
        name = f"subordinate {'users' if path.endswith('uid') else f'groups (your group is {groups})'}"
        option = "--add-subuids" if path.endswith("uid") else "--add-subgids"
        if not count:
            yield Finding(name, False, f"none in {path}", f"usermod {option} 100000-165535 {user}")
        elif shutil.which(tool) is None:
            yield Finding(name, False, f"{tool} is missing", "install uidmap (or shadow-utils)")
        else:
            yield Finding(name, True, f"{count} in {path}")


def _layers(options: Options) -> Iterator[Finding]:
    for path in options.lowers:
        yield _directory("lower", path)
    if options.upper is not None:
        yield from _upper(options.upper)
    if not options.target.startswith("/dev/fd/"):
        yield _directory("merged", options.target)


def _directory(part: str, path: str) -> Finding:
    if not os.path.isdir(path):
        return Finding(f"{part} {path}", False, "is not a directory", f"mkdir '{path}', or correct the path")
    if not os.access(path, os.R_OK | os.X_OK):
        return Finding(f"{part} {path}", False, "may not be read by you", f"chmod +rx '{path}', or use another")
    return Finding(f"{part} {path}", True, f"on {filesystem_of(path)}")


def _upper(upper: str) -> Iterator[Finding]:
    path = os.path.realpath(upper)
    parent = path if os.path.isdir(path) else os.path.dirname(path)
    if not os.path.isdir(parent):
        yield Finding(f"upper {upper}", False, "cannot be made", f"mkdir '{parent}'")
        return
    yield Finding(f"upper {upper}", True, f"on {filesystem_of(parent)}" + ("" if parent == path else " (to be made)"))
    try:
        record = read(beside(path))
    except UserError as error:
        yield Finding("ranch", False, error.message, "see there")
        record = None
    if record is not None:
        says = f"one at '{record.merged}' stands on this upper ({record.phase.value})"
        yield Finding("ranch", None, says, f"fuseunion umount '{record.merged}'")
    found = trials.capabilities(os.path.dirname(path))
    if found is None:
        remedy = f"use an UPPER in a directory that you can write, or --work; '{os.path.dirname(path)}' is not"
        yield Finding("upper's filesystem", False, "could not be tried: no directory can be made beside it", remedy)
        return
    abilities = (
        (
            "whiteout devices",
            found.whiteout_devices,
            "nothing needed: .wh. files are written instead (not with kernel)",
        ),
        ("trusted attributes", found.trusted_xattrs, "only real root has them; user attributes do"),
        ("user attributes", found.user_xattrs, "mount with user_xattr, or use another filesystem (not with kernel)"),
        ("exchanging renames", found.exchange, "nothing needed: a slower way is taken"),
        ("renames that do not replace", found.noreplace, "nothing needed: a slower way is taken"),
        ("renames that leave a whiteout", found.whiteout, "nothing needed: a slower way is taken (not with kernel)"),
    )
    for name, able, remedy in abilities:
        yield Finding(f"upper: {name}", able, "yes" if able else "no", "" if able else remedy)
