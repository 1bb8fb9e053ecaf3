"""`fuseunion which`, and the attributes that say the same: which layer shows what, and what it hides."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Mark, Symlink, Whiteout
from tests.support.mounts import FuseunionMount

LAYER, PATH = "user.fuseunion.layer", "user.fuseunion.path"


def which(
    arena: Arena, mount: FuseunionMount, *paths: str | Path, cwd: Path | None = None
) -> dict[str, dict[str, Any]]:
    """What `which --json` says, by path."""
    done = arena.place.fuseunion("which", "--json", mount.merged, *paths, cwd=cwd or "/")
    assert done.stderr == ""
    found = {each["path"]: each for each in json.loads(done.stdout)["paths"]}
    missing = any(each["kind"] is None for each in found.values())
    assert done.returncode == (1 if missing else 0)
    return found


def parts(said: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Role, last name of the layer, path."""
    return [(part["role"], Path(part["layer"]).name, part["path"]) for part in said["parts"]]


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_every_place(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of each layer, merged directories, what hides what, what was deleted, moved and copied up."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    bottom = arena.lower(
        {
            "both": File(b"1"),
            "only": File(b"2"),
            "d/x": File(b"3"),
            "gone": File(b"4"),
            "odd": Dir(),
            "w": File(b"5"),
        }
    )
    top = arena.lower(
        {"both": File(b"6"), "d/y": File(b"7"), "odd": File(b"8"), "link": Symlink("d"), "w": Whiteout(Mark.WH_FILE)}
    )
    low, high, up = bottom.name, top.name, arena.upper.name
    with arena.mount(top, bottom) as mount:
        subprocess.run(["chmod", "600", mount / "both"], check=True)
        (mount / "gone").unlink()
        (mount / "d/z").write_bytes(b"new")
        (mount / "d/x").rename(mount / "d/moved")
        said = which(
            arena, mount, ".", "both", "only", "d", "d/x", "d/moved", "d/z", "gone", "odd", "link", "no", "w", "no/no"
        )
        assert parts(said[""]) == [("shown", up, ""), ("merged", high, ""), ("merged", low, "")]
        assert parts(said["both"]) == [("shown", up, "both"), ("hidden", high, "both"), ("hidden", low, "both")]
        assert said["both"]["copied_up"] and said["both"]["log"]["program"] == "chmod"
        assert parts(said["only"]) == [("shown", low, "only")] and not said["only"]["copied_up"]
        assert parts(said["d"]) == [("shown", up, "d"), ("merged", high, "d"), ("merged", low, "d")]
        assert said["d"]["kind"] == "directory" and said["d"]["copied_up"]
        assert parts(said["d/x"]) == [("whiteout", up, "d/x"), ("hidden", low, "d/x")] and said["d/x"]["kind"] is None
        assert parts(said["d/moved"]) == [("shown", up, "d/moved")] and said["d/moved"]["log"]["path"] == "d/x"
        assert parts(said["d/z"]) == [("shown", up, "d/z")] and not said["d/z"]["copied_up"]
        assert parts(said["gone"]) == [("whiteout", up, "gone"), ("hidden", low, "gone")]
        assert parts(said["odd"]) == [("shown", high, "odd"), ("hidden", low, "odd")]
        assert (said["link"]["kind"], parts(said["link"])) == ("symbolic link", [("shown", high, "link")])
        assert parts(said["no"]) == [] and said["no/no"]["error"] == "No such file or directory"
        assert parts(said["w"]) == [("whiteout", high, ".wh.w"), ("hidden", low, "w")]
        text = arena.place.fuseunion("which", mount.merged, "both").stdout
        assert text.startswith("both: file of the upper, copied up\n    shown     upper  ")
        assert f"    hidden    lower  {bottom}/both\n    copied    " in text and " setattr by chmod (" in text
        for name, layer, path in (
            ("both", "upper", "both"),
            ("only", str(bottom), "only"),
            ("odd", str(top), "odd"),
            ("d", "upper", "d"),
            ("", "upper", "."),
        ):
            assert os.getxattr(mount / name, LAYER) == layer.encode()
            assert os.getxattr(mount / name, PATH) == path.encode()


@pytest.mark.actors("root", "user")
def test_how_a_path_is_said(arena: Arena) -> None:
    """From where one is, if that leads into the mount; else from the mount's root. Links on the way are followed."""
    lower = arena.lower({"d/f": File(b"x"), "l": Symlink("d"), "out": Symlink("/usr")})
    with arena.mount(lower) as mount:
        inside = mount / "d"
        for said, cwd in (
            ("d/f", Path("/")),
            ("/d/f", Path("/")),
            ("f", inside),
            ("../d/f", inside),
            (f"{mount.merged}/d/f", inside),
            (f"{mount.merged.name}/d/f", mount.merged.parent),
            ("l/f", mount.merged),
            ("d//./f", Path("/")),
        ):
            assert list(which(arena, mount, said, cwd=cwd)) == ["d/f"], said
        for said in ("../f", "out/bin"):
            done = arena.place.fuseunion("which", mount.merged, said)
            assert (done.returncode, done.stderr) == (3, f"fuseunion: '{said}' leads out of '{mount.merged}'\n")
        done = arena.place.fuseunion("which", mount.merged)
        assert done.returncode == 2 and "which MERGED PATH" in done.stderr


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_the_attributes(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lists them or sets them, and who may not read the file is not told. An option lists them."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    lower = arena.lower({"f": File(b"x", xattrs={LAYER: b"forged", "user.own": b"1"}), "closed": File(b"y", mode=0)})
    with arena.mount(lower) as mount:
        assert os.listxattr(mount / "f") == ["user.own"]
        assert os.getxattr(mount / "f", LAYER) == str(lower).encode()
        for call in (
            lambda: os.setxattr(mount / "f", LAYER, b"upper"),
            lambda: os.setxattr(mount / "f", PATH, b"x"),
            lambda: os.removexattr(mount / "f", PATH),
        ):
            with pytest.raises(PermissionError) as caught:
                call()
            assert caught.value.errno == errno.EPERM
        assert not (arena.upper / "f").exists()
        if arena.actor.role is not Role.ROOT:
            with pytest.raises(PermissionError) as caught:
                os.getxattr(mount / "closed", LAYER)
            assert caught.value.errno == errno.EACCES
    with arena.mount(lower, options=["list_layers"]) as mount:
        assert os.listxattr(mount / "closed") == [LAYER, PATH]
        assert set(os.listxattr(mount.merged)) == {LAYER, PATH}
