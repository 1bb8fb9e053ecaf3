"""As a user who has one id and no subordinate ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.exec.stage import SINGLE, Stage, tree
from tests.support.arena import Arena
from tests.support.layers import Dir, File

pytestmark = pytest.mark.actors("root")


def test_root_may_change_what_root_owns(arena: Arena, single: Stage) -> None:
    """The lower belongs to the machine's root; inside, everything belongs to the user who is root there."""
    lower = arena.lower(tree())
    script = "stat -c %u:%g /data /etc/passwd; echo new >>/etc/passwd; mkdir /data/d; mv /data/file /data/d; id -u"
    assert single.shell([lower, arena.upper], script) == ["0:0", "0:0", "0"]
    assert (arena.upper / "data/d/file").stat().st_uid == SINGLE


def test_owners_are_taken_and_not_kept(arena: Arena, single: Stage) -> None:
    lower = arena.lower(tree())
    script = """
        chown 33:44 /data/file; touch /data/new; chown -R 1:2 /data; chgrp 9 /data/new; ln -s x /data/link
        chown -h 5 /data/link
        tar -C / -cf /tmp/data.tar data; tar -C /tmp -xpf /tmp/data.tar; stat -c %u:%g /data/file /tmp/data/file
    """
    assert single.shell([lower, arena.upper], script) == ["0:0", "0:0"]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_programs_that_become_others_go_on(arena: Arena, single: Stage) -> None:
    lower = arena.lower(tree())
    said = single.shell(
        [lower], "setpriv --reuid=33 --regid=33 --clear-groups id -u; echo $APT_CONFIG; cat $APT_CONFIG"
    )
    assert said == ["0", "/dev/fuseunion-apt.conf", 'APT::Sandbox::User "root";']


def test_it_can_be_another_user(arena: Arena, single: Stage) -> None:
    lower = arena.lower({**tree(), "home/app": Dir()})
    assert single.shell(["--user", "1500:1500", lower], "id -u; id -g; echo $HOME") == ["1500", "1500", "/home/app"]


def test_what_belongs_to_root_and_is_closed_stays_closed(arena: Arena, single: Stage) -> None:
    lower = arena.lower({**tree(), "etc/secret": File(b"secret\n", mode=0o600)})
    code, output, errors = single.run(lower, "--", "cat", "/etc/secret")
    assert (code, output) == (1, "") and "Permission denied" in errors


def test_the_set_id_bits_of_root_do_not_become_the_users(arena: Arena, single: Stage) -> None:
    """A copy of a set-user-ID program of root would be one of the user's, for everybody who reaches the upper."""
    lower = arena.lower({**tree(), "data/tool": File(b"#!/bin/sh\n", mode=0o4755)})
    assert single.shell([lower, arena.upper], "stat -c %a:%u /data/tool; echo >>/data/tool; stat -c %u /data/tool") == [
        "4755:0",
        "0",
    ]
    assert os.stat(arena.upper / "data/tool").st_mode & 0o6000 == 0


def test_the_ids_of_others_are_not_reached(arena: Arena, single: Stage) -> None:
    other = Path(arena.root, "other")
    other.write_text("x")
    other.chmod(0o600)
    lower = arena.lower(tree())
    code, _, errors = single.run("--bind", f"{other}:/data/file", lower, "--", "cat", "/data/file")
    assert code == 1 and "Permission denied" in errors
