"""`fuseunion diff`: every kind of change and every form of saying it; with the lowers, without them, of a mount."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.layers.commands import done, fuseunion
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node, Symlink
from tests.support.mounts import escaped

LOWER = {
    "etc/a": File(b"one\ntwo\n"),
    "etc/b": File(b"b"),
    "etc/c": File(b"c"),
    "etc/same": File(b"same"),
    "gone/x": File(b"x"),
    "link": Symlink("a"),
    "d": Dir(mode=0o755),
    "binary": File(b"\0"),
}

PLAIN = """\
M binary  (content, 1 B -> 2 B)
M d/  (mode 0755 -> 0700)
M etc/a  (content, 8 B -> 9 B)
M etc/b  (mode 0644 -> 0600, attributes)
T etc/c/  (file, 1 B -> directory)
A etc/c/z  (file, 2 B)
D gone/
M link  (target)
A n/
A n/y  (file, 1 B)
"""

TREE = """\
M binary  (content, 1 B -> 2 B)
M d/  (mode 0755 -> 0700)
  etc/
M   a  (content, 8 B -> 9 B)
M   b  (mode 0644 -> 0600, attributes)
T   c/  (file, 1 B -> directory)
A     z  (file, 2 B)
D gone/
M link  (target)
A n/
A   y  (file, 1 B)
"""

ALONE = """\
P binary  (file, 2 B)
P d/
P etc/
P etc/a  (file, 9 B)
P etc/b  (file, 1 B)
P etc/c/  (opaque)
P etc/c/z  (file, 2 B)
P etc/same  (file, 4 B)
D gone
P link  (link)
P n/
P n/y  (file, 1 B)
"""

CONTENT = """\
M etc/a  (content, 8 B -> 9 B)
--- a/etc/a
+++ b/etc/a
@@ -1,2 +1,2 @@
 one
-two
+three
\\ No newline at end of file
"""


def _change(merged: os.PathLike[str]) -> None:
    os.chdir(merged)
    for name, data in (("etc/a", b"one\nthree"), ("binary", b"\0\1"), ("etc/same", b"same")):
        with open(name, "wb") as file:
            file.write(data)
    os.chmod("etc/b", 0o600)
    os.setxattr("etc/b", "user.x", b"1")
    os.chmod("d", 0o700)
    os.unlink("gone/x")
    os.rmdir("gone")
    os.unlink("etc/c")
    os.mkdir("etc/c")
    os.unlink("link")
    os.symlink("b", "link")
    os.mkdir("n")
    for name, data in (("etc/c/z", b"z\n"), ("n/y", b"y")):
        with open(name, "wb") as file:
            file.write(data)
    os.chdir("/")


@pytest.mark.actors("root", "user")
def test_forms(arena: Arena) -> None:
    lower = arena.lower(LOWER)
    with arena.mount(lower) as mount:
        _change(mount.merged)
        assert done("diff", mount.merged) == PLAIN
    given = ["diff", arena.upper, "--lower", escaped(lower)]
    assert done(*given) == PLAIN
    assert done(*given, "--tree") == TREE
    assert CONTENT in done(*given, "--content")
    assert "Binary or long files a/binary and b/binary differ\n" in done(*given, "--content")
    assert done("diff", arena.upper) == ALONE
    found = json.loads(done(*given, "--json"))
    assert found["summary"]["added"] == {"count": 3, "bytes": 3}
    assert [change["path"] for change in found["changes"] if change["change"] == "replaced"] == ["etc/c"]
    (mode,) = [change for change in found["changes"] if change["path"] == "d"]
    assert (mode["aspects"], mode["before"]["mode"], mode["after"]["mode"]) == (["mode"], "0755", "0700")
    assert done(*given, "--stat").split() == [
        *("3", "added", "3", "B"),
        *("5", "modified", "12", "B"),
        *("1", "replaced", "0", "B"),
        *("1", "deleted", "0", "B"),
    ]
    # Nothing of ours stays beside it, and nothing in it has changed.
    assert sorted(path.name for path in arena.root.iterdir()) == ["logs", "lower0", "merged", "upper"]


@pytest.mark.actors("user")
def test_exit_status(arena: Arena) -> None:
    lower, upper = arena.lower(LOWER), arena.directory("upper")
    given = ["diff", upper, "--lower", escaped(lower), "--exit-code"]
    assert fuseunion(*given) == (0, "", "")
    (upper / "new").touch()
    assert fuseunion(*given) == (1, "A new  (file, 0 B)\n", "")
    assert fuseunion(*given[:-1]).code == 0
    # What cannot be told is no difference.
    (upper / "new").chmod(0)
    (arena.directory("upper") / "d").mkdir(mode=0)
    assert fuseunion(*given).code == 1
    assert fuseunion("diff", arena.root / "nothing", "--exit-code").code == 3
    (upper / "d").chmod(0o700)


@pytest.mark.actors("root")
def test_a_renamed_directory(arena: Arena) -> None:
    """A redirect shows what the lower has elsewhere; without the lower it cannot be told."""
    lower = arena.lower({"old/a": File(b"a"), "other/b": File(b"b")})
    with arena.mount(lower, options=["redirect_dir=on"]) as mount:
        os.rename(mount / "old", mount / "new")
        os.rename(mount / "other", mount / "old")
    assert done("diff", arena.upper, "--lower", escaped(lower)).splitlines() == [
        "A new/",
        "A new/a  (file, 1 B)",
        "D old/a  (file, 1 B)",
        "A old/b  (file, 1 B)",
        "D other/",
    ]
    said = fuseunion("diff", arena.upper)
    assert said.code == 3 and "give the lower directories with --lower" in said.err


@pytest.mark.actors("user")
def test_a_deep_tree(arena: Arena) -> None:
    """Deeper than a path may be long, and than Python's stack."""
    upper = arena.directory("upper")
    os.chdir(upper)
    for _ in range(1050):
        os.mkdir("dddd")
        os.chdir("dddd")
    os.chdir("/")
    assert len(done("diff", upper).splitlines()) == 1050
    done("export", upper, "-o", arena.root / "deep.tar")
    done("import", arena.root / "deep.tar", arena.root / "deep")
    assert len(done("diff", arena.root / "deep").splitlines()) == 1050


@pytest.mark.actors("root", "user")
def test_content_is_a_patch(arena: Arena) -> None:
    """What goes to a file is byte for byte: tabs, other encodings, line ends, odd names."""
    before: dict[Name, Node] = {
        "Makefile": File(b"all:\n\tcc\n"),
        "latin": File(b"caf\xe9\nend"),
        "dos": File(b"one\r\ntwo\r\n"),
        "two words": File(b"1\n2\n3\n"),
        "d/gone": File(b"\x0c page\n\xc2\xa0\n"),
        b'odd"\t\xff': File(b"odd\n"),
        "compressed": File(b"\x01\xfe\xff\x80"),
    }
    lower = arena.lower(before)
    with arena.mount(lower) as mount:
        os.chdir(mount.merged)
        for name, data in {
            b"Makefile": b"all:\n\tcc -O\n",
            b"latin": b"caf\xe9s\nend\n",
            b"dos": b"one\r\n2\r\n",
            b"two words": b"1\n3\n",
            b'odd"\t\xff': b"even\n",
            b"new file": b"\ttab",
            b"compressed": b"\x02\xfe\xff\x80",
        }.items():
            with open(name, "wb") as file:
                file.write(data)
        os.unlink("d/gone")
        os.chdir("/")
        command = arena.place.interpreter.command("diff", str(mount.merged), "--content")
        said = subprocess.run(command, env=arena.place.environment(), cwd="/", capture_output=True)
    assert said.returncode == 0 and b"Binary or long files a/compressed" in said.stdout
    copy = arena.root / "copy"
    subprocess.run(["cp", "-r", lower, copy], check=True)
    patched = subprocess.run(["patch", "-p1", "-E", "--binary"], cwd=copy, input=said.stdout, capture_output=True)
    assert patched.returncode == 0, patched.stdout
    (copy / "compressed").write_bytes(b"\x02\xfe\xff\x80")
    with arena.mount(lower) as mount:
        shown = {os.fsencode(path.name): path.read_bytes() for path in mount.merged.iterdir() if path.is_file()}
    assert shown == {os.fsencode(path.name): path.read_bytes() for path in copy.iterdir() if path.is_file()}
    assert not (copy / "d/gone").exists()
