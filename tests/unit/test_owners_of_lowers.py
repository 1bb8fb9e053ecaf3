"""When a person is told that a lower is another's: only where it is so, and nothing else says whose everything is."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fuseunion.mounting.checks import owners
from fuseunion.mounting.options import Options, XattrPermissions

ME, MY_GROUP, OTHER, NOBODY = 1000, 1000, 7, 65534


def _objection(uid: int, gid: int, mode: int, **options: Any) -> str | None:
    st = os.stat_result((0o040000 | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))
    return owners.objection(st, Options(target="", lowers=(), **options))


@pytest.fixture(autouse=True)
def me(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ME)
    monkeypatch.setattr(os, "getegid", lambda: MY_GROUP)
    monkeypatch.setattr(os, "getgroups", lambda: [50])
    monkeypatch.setattr(owners, "overflow_id", lambda _: NOBODY)
    monkeypatch.setattr(owners, "in_first_user_namespace", lambda: True)


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "told"),
    [
        (ME, OTHER, 0o700, False),
        (0, 0, 0o755, True),
        (OTHER, MY_GROUP, 0o755, True),
        (OTHER, MY_GROUP, 0o775, False),
        (OTHER, 50, 0o2775, False),
        (OTHER, 51, 0o2775, True),
        (0, 0, 0o1777, False),
    ],
)
def test_an_ordinary_user(uid: int, gid: int, mode: int, told: bool) -> None:
    says = _objection(uid, gid, mode)
    assert (says is not None) is told
    assert says is None or says.startswith(f"belongs to another user ({uid}), ")


@pytest.mark.parametrize(
    "options",
    [
        {"uid_map": ((0, 0, 1),)},
        {"gid_map": ((0, 0, 1),)},
        {"squash_uid": 0},
        {"squash_gid": 0},
        {"xattr_permissions": XattrPermissions.CONTAINERS},
    ],
)
def test_options_that_say_whose_it_is(options: dict[str, Any]) -> None:
    assert _objection(0, 0, 0o755, **options) is None


@pytest.mark.parametrize(
    ("first", "uid", "gid", "told"),
    [
        (True, OTHER, OTHER, False),
        (True, NOBODY, NOBODY, False),
        (False, OTHER, OTHER, False),
        (False, NOBODY, OTHER, True),
        (False, OTHER, NOBODY, True),
    ],
)
def test_root(monkeypatch: pytest.MonkeyPatch, first: bool, uid: int, gid: int, told: bool) -> None:
    """Of the machine it may do anything; of a user namespace, with what has a number there."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(owners, "in_first_user_namespace", lambda: first)
    assert (_objection(uid, gid, 0o755) is not None) is told
