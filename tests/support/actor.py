"""Who runs a test: root, an ordinary user, the root of a user namespace, or a user to whom all that is denied.

One test body serves all of them. The body of an actor that is not the one who runs pytest is run in a forked child that
became that actor first; what it raises is reported by the parent. A body therefore keeps to its arena, and makes its
mounts itself instead of getting them from fixtures (fixtures run in the parent).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from tests.support import libc
from tests.support.user import OTHER_GROUP, User


class Role(Enum):
    """The ways in which people run the product."""

    ROOT = "root"
    USER = "user"
    NAMESPACE = "userns"
    """Root of a user namespace that knows the user's subordinate ids."""
    LONE = "lone"
    """Root of a user namespace that knows no id but the user's own, as `unshare --map-root-user --mount` makes it."""
    DENIED = "denied"
    """A user who may open no /dev/fuse, make no user namespace and gain nothing from set-user-id programs."""


USUAL = (Role.ROOT, Role.USER, Role.NAMESPACE)
"""Who can mount with FUSE, and so runs a test that names nobody."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A role and the account behind it."""

    role: Role
    user: User

    @property
    def is_native(self) -> bool:
        """Whether pytest itself already runs as this actor."""
        match self.role:
            case Role.ROOT:
                return True
            case Role.USER:
                return os.geteuid() != 0
            case Role.NAMESPACE | Role.LONE | Role.DENIED:
                return False

    @property
    def in_namespace(self) -> bool:
        """Whether the actor is root of a user namespace."""
        return self.role in (Role.NAMESPACE, Role.LONE)

    @property
    def has_devices(self) -> bool:
        """Whether the actor may make and see devices other than 0/0."""
        return self.role is Role.ROOT

    @property
    def may_chown(self) -> bool:
        """Whether the actor owns more than one id."""
        return self.role in (Role.ROOT, Role.NAMESPACE)

    @property
    def xattr_prefix(self) -> str:
        """The overlay xattr prefix that the actor can write."""
        return "trusted.overlay." if self.role is Role.ROOT else "user.overlay."

    def own(self, path: Path) -> None:
        """Give a directory to the actor."""
        if self.role is not Role.ROOT and os.geteuid() == 0:
            os.chown(path, self.user.uid, self.user.gid)

    def run(self, body: Callable[[], None]) -> None:
        """Run a test body as the actor, in a child; fail the test with what it raises."""
        ready_read, ready_write = os.pipe()
        mapped_read, mapped_write = os.pipe()
        report_read, report_write = os.pipe()
        child = os.fork()
        if child == 0:
            _close(ready_read, mapped_write, report_read)
            self._child(body, ready_write, mapped_read, report_write)
        _close(ready_write, mapped_read, report_write)
        if os.read(ready_read, 1) and self.in_namespace:
            self._map_ids(child)
        _close(mapped_write, ready_read)
        report = b""
        while piece := os.read(report_read, 65536):
            report += piece
        _close(report_read)
        _, status = os.waitpid(child, 0)
        if report:
            pytest.fail(report.decode(errors="replace"), pytrace=False)
        if status:
            pytest.fail(f"the child that ran as {self.role.value} ended with status {status:#x}", pytrace=False)

    def _child(self, body: Callable[[], None], ready: int, mapped: int, report: int) -> None:
        """Precondition: called in the child; never returns."""
        try:
            self._become(ready, mapped)
            body()
        except BaseException:  # noqa: BLE001 - reported by the parent, whatever it is
            with contextlib.suppress(OSError):
                os.write(report, traceback.format_exc().encode(errors="surrogateescape"))
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(0)

    def _become(self, ready: int, mapped: int) -> None:
        if os.geteuid() == 0:
            os.setgroups([self.user.gid, OTHER_GROUP])
            os.setresgid(self.user.gid, self.user.gid, self.user.gid)
            os.setresuid(self.user.uid, self.user.uid, self.user.uid)
            libc.become_dumpable()
        os.environ.update(HOME=self.user.home, USER=self.user.name, LOGNAME=self.user.name)
        if self.in_namespace:
            libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNS)
        os.write(ready, b"1")
        os.read(mapped, 1)
        if self.in_namespace:
            os.setgroups([])
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            libc.become_dumpable()
            libc.mount("none", "/", "none", libc.MS_REC | libc.MS_PRIVATE)
        if self.role is Role.DENIED:
            _deny_everything()

    def _map_ids(self, child: int) -> None:
        """Map the user to 0 and, but for who is alone, its subordinate ids from 1 on, as `unshare --map-root-user
        --map-auto` does."""
        for kind, own, subordinate in (
            ("uid", self.user.uid, self.user.subuids),
            ("gid", self.user.gid, self.user.subgids),
        ):
            ranges = [(0, own, 1)]
            if self.role is Role.NAMESPACE:
                ranges.append((1, subordinate.first, subordinate.size))
            if os.geteuid() == 0:
                lines = "".join("{} {} {}\n".format(*triple) for triple in ranges)
                Path(f"/proc/{child}/{kind}_map").write_text(lines)
            else:
                numbers = [str(number) for triple in ranges for number in triple]
                subprocess.run([f"new{kind}map", str(child), *numbers], check=True)


def _deny_everything() -> None:
    """Leave the process what a shell account in a strict container has: no mounts, and no way to get any.

    A user namespace is needed once, to take /dev/fuse away and to set the limit of namespaces to none. Its
    capabilities go with the first program that is started (capabilities(7): execve by a user who is not root).
    """
    uid, gid = os.geteuid(), os.getegid()
    libc.unshare(libc.CLONE_NEWUSER | libc.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path("/proc/self", name).write_text(text)
    libc.mount("none", "/", "none", libc.MS_REC | libc.MS_PRIVATE)
    with tempfile.NamedTemporaryFile() as closed:
        os.chmod(closed.name, 0)
        libc.mount(closed.name, "/dev/fuse", "none", libc.MS_BIND)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    libc.forbid_new_privileges()
    libc.drop_capabilities()
    libc.become_dumpable()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
