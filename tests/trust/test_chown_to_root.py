"""`fuseunion chown --to` gives nobody's set-id programs and capabilities to the new owner, unless it is asked to."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from fuseunion.cli.commands import chown
from fuseunion.errors import ExitCode, UserError
from tests.support.user import User

OVERRIDE = "user.containers.override_stat"
ESCAPED = "user.containers.override_security.capability"
CAPABILITY = "security.capability"
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture
def upper(tmp_path: Path, user: User) -> Path:
    """The upper of an ordinary user; but for one program, which was root's all the time."""
    made = tmp_path / "upper"
    made.mkdir()
    for name in ("setuid", "locked", "able", "roots"):
        (made / name).touch()
    (made / "shared").mkdir()
    for path in (made, *made.iterdir()):
        if path.name != "roots":
            os.chown(path, user.uid, user.gid)
    (made / "setuid").chmod(0o6755)
    (made / "locked").chmod(0o2644)  # which chown(2) leaves as it is
    (made / "roots").chmod(0o4755)
    (made / "shared").chmod(0o2775)
    os.setxattr(made / "able", CAPABILITY, NET_RAW)
    return made


def _modes(upper: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o7777 for path in upper.iterdir()}


@pytest.mark.root
@pytest.mark.parametrize("owner", ["root", "0:0", "7:8"])
def test_set_id_bits_and_capabilities_go(upper: Path, owner: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chown.main([str(upper), "--to", owner]) == ExitCode.OK
    assert "4 lost set-id bits or capabilities" in capsys.readouterr().out
    assert _modes(upper) == {"setuid": 0o755, "locked": 0o644, "able": 0o644, "roots": 0o755, "shared": 0o2775}
    assert os.listxattr(upper / "able") == []
    assert chown.main([str(upper), "--to", owner]) == ExitCode.OK
    assert capsys.readouterr().out == "changed 0 of 6 objects\n"


@pytest.mark.root
def test_they_stay_where_that_is_asked_for(upper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _modes(upper)
    assert chown.main([str(upper), "--to", "root", "--keep-set-id"]) == ExitCode.OK
    assert "lost" not in capsys.readouterr().out
    assert _modes(upper) == before
    assert os.getxattr(upper / "able", CAPABILITY) == NET_RAW
    assert {path.stat().st_uid for path in upper.iterdir()} == {0}


@pytest.mark.root
def test_a_dry_run_names_them(upper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _modes(upper)
    assert chown.main([str(upper), "--to", "root", "--dry-run"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert sum("loses set-id bits or capabilities" in line for line in lines) == 4
    assert _modes(upper) == before


def test_stored_ones_go_too(tmp_path: Path) -> None:
    """Those that say they are root's already as well: anybody can say so."""
    upper = tmp_path / "upper"
    upper.mkdir()
    for name in ("theirs", "forged"):
        (upper / name).touch()
    os.setxattr(upper, OVERRIDE, b"0:0:0755:dir")
    os.setxattr(upper / "theirs", OVERRIDE, b"5:6:6711:file")
    os.setxattr(upper / "forged", OVERRIDE, b"0:0:4755:file")
    os.setxattr(upper / "forged", ESCAPED, NET_RAW)
    assert chown.main([str(upper), "--to", "root"]) == ExitCode.OK
    assert os.getxattr(upper / "theirs", OVERRIDE) == b"0:0:0711:file"
    assert os.getxattr(upper / "forged", OVERRIDE) == b"0:0:0755:file"
    assert ESCAPED not in os.listxattr(upper / "forged")


def test_a_map_keeps_them_anyway(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    with pytest.raises(UserError) as refused:
        chown.main([str(tmp_path / "upper"), "--map", "0:1:1", "--keep-set-id"])
    assert refused.value.exit_code is ExitCode.USAGE
