"""What this machine and this user have that no engine, or more than one, asks for."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from fuseunion.doctor import trials
from fuseunion.engines import choose
from fuseunion.engines.finding import Finding


def kernel() -> Finding:
    """Whether the kernel has what every engine needs."""
    release, lacking = f"Linux {os.uname().release}", choose.missing()
    if lacking is None:
        return Finding("kernel", True, release)
    return Finding("kernel", False, f"{release}: {lacking}", "a kernel from Linux 5.6 on, outside of such a sandbox")


_KNOBS = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns",
    ),
)


def namespaces() -> Finding:
    """Whether this user can make a user namespace, and what forbids it if not."""
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


def subordinate_ids() -> Iterator[Finding]:
    """Which ids of others an ordinary user may map (subuid(5)); nothing for root, who may map all."""
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
            ranges = _ranges(Path(path).read_text())
        except OSError:
            ranges = []
        count = sum(size for owner, _, size in ranges if owner in names)
        name = f"subordinate {'users' if path.endswith('uid') else f'groups (your group is {groups})'}"
        option = "--add-subuids" if path.endswith("uid") else "--add-subgids"
        if not count:
            yield Finding(name, False, f"none in {path}", f"usermod {option} {free_range(ranges)} {user}")
        elif shutil.which(tool) is None:
            yield Finding(name, False, f"{tool} is missing", "install uidmap (or shadow-utils)")
        else:
            yield Finding(name, True, f"{count} in {path}")


Range = tuple[str, int, int]
"""Whose it is, the first id, how many."""


def _ranges(text: str) -> list[Range]:
    """The lines of subuid(5) that say something."""
    lines = (line.strip().split(":") for line in text.splitlines())
    return [(f[0], int(f[1]), int(f[2])) for f in lines if len(f) == 3 and f[1].isdigit() and f[2].isdigit()]


def free_range(ranges: Iterable[Range]) -> str:
    """65536 ids that nobody has, as usermod(8) takes them: who shares ids with others can reach their files."""
    first = max([100_000, *(start + size for _, start, size in ranges)])
    return f"{first}-{first + 65535}"
