"""fuseunion chown: whose the files of an upper are, with everything that chown(2) would lose kept."""

from __future__ import annotations

import io
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from fuseunion.cli import progress
from fuseunion.cli.commands import chown
from fuseunion.core.ids import acl, capability
from fuseunion.core.ids.acl import Entry, Tag
from fuseunion.core.ids.capability import Capability
from fuseunion.core.ownership.database_store import DatabaseStore
from fuseunion.core.ownership.facts import Facts
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.objects.real_object import RealObject
from fuseunion.mounting.prepare import default_work_path
from fuseunion.offline.owner_change import Step
from fuseunion.offline.walk import Found
from tests.support.arena import Arena

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"
CAPABILITY = "security.capability"
OVERRIDE = "user.containers.override_stat"

WHEN = 1_234_567_890_123_456_789


def _acl(uid: int, gid: int) -> bytes:
    return acl.unparse(
        (
            Entry(Tag.USER_OBJ, 7),
            Entry(Tag.USER, 6, uid),
            Entry(Tag.GROUP_OBJ, 5),
            Entry(Tag.GROUP, 4, gid),
            Entry(Tag.MASK, 7),
            Entry(Tag.OTHER, 0),
        )
    )


def _cap(rootid: int) -> bytes:
    return capability.unparse(Capability(1 << 13, 0, True, rootid))


def _fill(upper: Path) -> None:
    """One of each kind, all of 1000:1001 unless the name says otherwise."""
    (upper / "dir").mkdir(mode=0o755)
    (upper / "dir" / "file").write_bytes(b"content")
    (upper / "suid").write_bytes(b"program")
    (upper / "acl").write_bytes(b"")
    (upper / "cap").write_bytes(b"")
    (upper / "other").write_bytes(b"")
    (upper / "link").symlink_to("dir/file")
    os.link(upper / "dir" / "file", upper / "hard")
    os.mkfifo(upper / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(upper / "socket"))
    if os.geteuid() == 0:
        os.mknod(upper / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(upper / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
        os.link(upper / "whiteout", upper / "dir" / "whiteout")


def _lchown(upper: Path) -> None:
    for path in [upper, *upper.rglob("*")]:
        os.chown(path, 1000, 1001, follow_symlinks=False)
    os.chown(upper / "other", 1002, 0)


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    made = tmp_path / "upper"
    made.mkdir(mode=0o755)
    _fill(made)
    _lchown(made)
    (made / "suid").chmod(0o6755)
    os.setxattr(made / "acl", ACCESS, _acl(1000, 1001))
    os.setxattr(made / "dir", DEFAULT, _acl(1000, 1001))
    os.setxattr(made / "cap", CAPABILITY, _cap(0))
    for path in [*made.rglob("*"), made]:
        os.utime(path, ns=(WHEN, WHEN), follow_symlinks=False)
    return made


def _owners(upper: Path) -> dict[str, tuple[int, int]]:
    paths = [upper, *upper.rglob("*")]
    return {str(p.relative_to(upper)): (p.lstat().st_uid, p.lstat().st_gid) for p in paths}


def _rest(upper: Path) -> dict[str, tuple[int, ...]]:
    """What must not change."""
    found: dict[str, tuple[int, ...]] = {}
    for path in [upper, *upper.rglob("*")]:
        st = path.lstat()
        found[str(path.relative_to(upper))] = (
            st.st_mode,
            st.st_ino,
            st.st_nlink,
            st.st_size,
            st.st_rdev,
            st.st_mtime_ns,
        )
    return found


def _refused(*argv: str) -> UserError:
    with pytest.raises(UserError) as refused:
        chown.main([*map(str, argv)])
    assert "\n" not in refused.value.message
    return refused.value


# -- one owner ---------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize(("text", "owner"), [("root", (0, 0)), ("5:6", (5, 6))])
def test_everything_gets_the_owner_and_keeps_the_rest(
    upper: Path, text: str, owner: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = _rest(upper)
    assert chown.main([str(upper), "--to", text, "--keep-set-id"]) == ExitCode.OK
    assert set(_owners(upper).values()) == {owner}
    assert _rest(upper) == before
    assert os.getxattr(upper / "cap", CAPABILITY) == _cap(0)
    assert os.getxattr(upper / "acl", ACCESS) == _acl(1000, 1001)
    assert os.getxattr(upper / "dir", DEFAULT) == _acl(1000, 1001)
    assert capsys.readouterr().out == "changed 12 of 12 objects\n"
    assert chown.main([str(upper), f"--to={text}", "--keep-set-id"]) == ExitCode.OK
    assert capsys.readouterr().out == "changed 0 of 12 objects\n"


@pytest.mark.root
def test_links_out_of_the_tree_are_not_followed(upper: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (upper / "out").symlink_to(outside)
    (upper / "file-out").symlink_to(outside / "file")
    chown.main([str(upper), "--to", "5:6"])
    assert (outside.stat().st_uid, (outside / "file").stat().st_uid) == (0, 0)
    assert (upper / "out").lstat().st_uid == 5


@pytest.mark.root
def test_a_dry_run_tells_and_changes_nothing(upper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _owners(upper), _rest(upper)
    assert chown.main([str(upper), "--to", "1000:1001", "--dry-run", "--keep-set-id"]) == ExitCode.OK
    assert capsys.readouterr().out == "1002:0 -> 1000:1001  'other'\n1 of 12 objects would change\n"
    assert (_owners(upper), _rest(upper)) == before


# -- a map -------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_a_map_moves_owners_qualifiers_and_roots(upper: Path) -> None:
    before = _rest(upper)
    owners = _owners(upper)
    assert chown.main([str(upper), "--map", "0:100000:65536"]) == ExitCode.OK
    assert _owners(upper) == {path: (uid + 100_000, gid + 100_000) for path, (uid, gid) in owners.items()}
    assert os.getxattr(upper / "acl", ACCESS) == _acl(101_000, 101_001)
    assert os.getxattr(upper / "dir", DEFAULT) == _acl(101_000, 101_001)
    assert os.getxattr(upper / "cap", CAPABILITY) == _cap(100_000)
    assert _rest(upper) == before
    assert chown.main([str(upper), "--map", "100000:0:65536"]) == ExitCode.OK
    assert _owners(upper) == owners
    assert os.getxattr(upper / "acl", ACCESS) == _acl(1000, 1001)
    assert os.getxattr(upper / "cap", CAPABILITY) == _cap(0)


@pytest.mark.root
def test_what_was_moved_before_is_not_moved_again(upper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(upper / "other", 101_002, 100_000)
    chown.main([str(upper), "--map", "0:100000:65536"])
    assert capsys.readouterr().out == "changed 11 of 12 objects\n"
    assert _owners(upper)["other"] == (101_002, 100_000)


@pytest.mark.root
def test_several_maps_are_one(upper: Path) -> None:
    chown.main([str(upper), "--map", "1000:0:1:1001:2:1", "--map", "1002:1:1"])
    assert _owners(upper)["suid"] == (0, 2)
    assert _owners(upper)["other"] == (1, 0)


@pytest.mark.root
@pytest.mark.parametrize(
    ("ids", "number", "name"),
    [("1000:100000:2", 1002, "/other"), ("1002:100000:1:0:100001:1", 1000, ""), ("0:100000:500", 1000, "")],
)
def test_an_uncovered_id_is_found_before_anything_changes(upper: Path, ids: str, number: int, name: str) -> None:
    before = _owners(upper)
    refused = _refused(str(upper), "--map", ids)
    assert refused.exit_code is ExitCode.LAYERS
    assert refused.message == (
        f"id {number} of '{upper}{name}' is not covered by --map; add a range for it, nothing was changed"
    )
    assert _owners(upper) == before


@pytest.mark.root
def test_a_qualifier_must_be_covered_too(upper: Path) -> None:
    os.setxattr(upper / "acl", ACCESS, _acl(70_000, 1001))
    assert "id 70000 of" in _refused(str(upper), "--map", "0:100000:65536").message


# -- stored ownership --------------------------------------------------------------------------------------------


def test_stored_ownership_changes_in_its_attributes(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    _fill(upper)
    real = _owners(upper)
    os.setxattr(upper, OVERRIDE, b"0:0:0555:dir")
    os.setxattr(upper / "suid", OVERRIDE, b"1000:1001:104755")
    os.setxattr(upper / "acl", OVERRIDE, b"1000:1001:0660:block-8:1")
    os.setxattr(upper / "cap", "user.containers.override_security.capability", _cap(0))
    assert chown.main([str(upper), "--to", "5:6", "--keep-set-id"]) == ExitCode.OK
    assert _owners(upper) == real
    assert os.getxattr(upper, OVERRIDE) == b"5:6:0555:dir"
    assert os.getxattr(upper / "suid", OVERRIDE) == b"5:6:4755:file"
    assert os.getxattr(upper / "acl", OVERRIDE) == b"5:6:0660:block-8-1"
    # What had no stored owner until now has one, since the real one cannot be changed by everybody.
    assert os.getxattr(upper / "cap", OVERRIDE).startswith(b"5:6:")
    assert os.getxattr(upper / "cap", "user.containers.override_security.capability") == _cap(0)


@pytest.mark.parametrize("given", [True, False], ids=["--work", "default work directory"])
def test_stored_ownership_changes_in_the_database(tmp_path: Path, given: bool) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    link = upper / "link"
    link.symlink_to("nowhere")
    os.setxattr(upper, OVERRIDE, b"0:0:0555:dir")
    work = tmp_path / "work" if given else Path(default_work_path(str(upper)))
    work.mkdir()
    fd = os.open(work, os.O_RDONLY)
    held = RealObject(os.open(upper, os.O_PATH), b"link")
    try:
        store = DatabaseStore(fd)
        store.store(held, link.lstat(), Facts(1000, 1001, 0o777, stat.S_IFLNK))
        store.close()
        extra = ["--work", str(work)] if given else []
        assert chown.main([str(upper), "--map", "0:50:1:1000:60:2", *extra]) == ExitCode.OK
        store = DatabaseStore(fd)
        assert store.find(held, link.lstat()) == Facts(60, 61, 0o777, stat.S_IFLNK)
        store.close()
    finally:
        os.close(fd)
        os.close(held.fd)
    assert os.getxattr(upper, OVERRIDE) == b"50:50:0555:dir"


@pytest.mark.actors("user", "userns")
def test_without_privileges(arena: Arena) -> None:
    """An ordinary user changes what is stored; the root of a namespace changes what the kernel allows."""
    upper = arena.directory("upper")
    (upper / "file").touch(mode=0o644)
    if arena.actor.may_chown:
        chown.main([str(upper), "--to", "5:6"])
        assert (upper / "file").stat().st_uid == 5
        refused = _refused(str(upper), "--map", "5:1000000000:2")
        assert (
            refused.message == f"cannot change the owner of '{upper}': Invalid argument"
            "; run it as root, or in a user namespace that maps both owners"
        )
        chown.main([str(upper), "--to", "root"])
    else:
        refused = _refused(str(upper), "--to", "root")
        assert refused.exit_code is ExitCode.FAILURE
        assert "cannot change the owner of" in refused.message
        assert "run it as root" in refused.message
    os.setxattr(upper, OVERRIDE, b"1000:1000:0755:dir")
    chown.main([str(upper), "--to", "7:8"])
    assert os.getxattr(upper / "file", OVERRIDE) == b"7:8:0644:file"


# -- a long run ----------------------------------------------------------------------------------------------------


def _signal_after(monkeypatch: pytest.MonkeyPatch, count: int, number: int) -> None:
    """Send ourselves a signal while object number `count` is being changed."""
    apply = Step.apply
    done = 0

    def changed(step: Step, found: Found) -> None:
        nonlocal done
        done += 1
        if done == count:
            signal.raise_signal(number)
        apply(step, found)

    monkeypatch.setattr(Step, "apply", changed)


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_can_be_completed(
    upper: Path, monkeypatch: pytest.MonkeyPatch, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _rest(upper)
    argv = [str(upper), "--map", "0:100000:65536"]
    with monkeypatch.context() as patched:
        _signal_after(patched, 5, number)
        refused = _refused(*argv)
    assert refused.message == "stopped after 5 of 12 objects; the same command completes it"
    assert chown.main(argv) == ExitCode.OK
    assert capsys.readouterr().out == "changed 7 of 12 objects\n"
    assert min(uid for uid, _gid in _owners(upper).values()) >= 100_000
    assert _rest(upper) == before


@pytest.mark.root
def test_a_run_that_could_not_be_completed_is_not_interrupted(upper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = _owners(upper)
    with monkeypatch.context() as patched:
        _signal_after(patched, 5, signal.SIGINT)
        assert chown.main([str(upper), "--map", "0:1:65536"]) == ExitCode.OK
    assert _owners(upper) == {path: (uid + 1, gid + 1) for path, (uid, gid) in owners.items()}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.root
@pytest.mark.parametrize(("after", "shown"), [(0.0, True), (3600.0, False)], ids=["long", "short"])
def test_a_bar_is_shown_on_a_terminal_for_long_work(
    upper: Path, monkeypatch: pytest.MonkeyPatch, after: float, shown: bool
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "_AFTER", after)
    monkeypatch.setattr(progress, "_EVERY", 1)
    monkeypatch.setenv("TERM", "xterm")
    assert chown.main([str(upper), "--to", "root"]) == ExitCode.OK
    assert ("chown" in terminal.getvalue()) is shown


# -- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one directory and either --to or --map; see fuseunion chown --help"),
        (["u"], "give one directory and either --to or --map; see fuseunion chown --help"),
        (["u", "v", "--to", "root"], "give one directory and either --to or --map; see fuseunion chown --help"),
        (
            ["u", "--to", "root", "--map", "0:1:1"],
            "give one directory and either --to or --map; see fuseunion chown --help",
        ),
        (["u", "--to"], "--to needs a value; see fuseunion chown --help"),
        (["u", "--owner", "root"], "unknown option '--owner'; see fuseunion chown --help"),
        (["u", "--to", "alice"], "--to alice: expected root or UID:GID, in numbers"),
        (["u", "--to", "1:4294967295"], "--to 1:4294967295: expected root or UID:GID, in numbers"),
        (["u", "--map", "1:2"], "--map=1:2: expected triples DISK:SHOWN:LEN, found 2 numbers"),
        (
            ["u", "--map", "0:1:5", "--map", "4:9:1"],
            "--map: id map: 0:1:5 and 4:9:1 both show disk id 4; let the ranges be disjoint",
        ),
    ],
)
def test_bad_arguments_are_told_in_one_line(argv: list[str], message: str) -> None:
    refused = _refused(*argv)
    assert refused.message == message
    assert refused.exit_code is ExitCode.USAGE


def test_a_missing_upper_is_told(tmp_path: Path) -> None:
    refused = _refused(str(tmp_path / "nowhere"), "--to", "root")
    assert refused.exit_code is ExitCode.LAYERS


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert chown.main(["--help"]) == ExitCode.OK
    assert "fuseunion chown upper --to root" in capsys.readouterr().out
