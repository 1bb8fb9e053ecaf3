"""Copy-ups in one call leave the same upper as those in Python, and none of what they could not finish."""

from __future__ import annotations

import errno
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuseunion.core.format import xattr_names
from fuseunion.core.ops.attributes import Change
from fuseunion.core.tree.file import File
from fuseunion.engines.fuse.serving import copy_ups
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire import layouts
from fuseunion.engines.fuse.wire.answers import Answers
from fuseunion.engines.fuse.wire.layouts import ENTRY
from fuseunion.engines.fuse.wire.native import device
from fuseunion.linux import syscalls
from tests.support.inprocess import InProcess, in_process
from tests.support.product import WITH_EXTENSION
from tests.support.wire_union import union_in

pytestmark = pytest.mark.skipif(not WITH_EXTENSION, reason="there is nothing to compare")

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep (include/uapi/linux/capability.h, struct vfs_cap_data)."""

NOW = 1_700_000_000_123_456_789

CHANGES = {
    "none": None,
    "mode": Change(mode=0o100604),
    "owner": Change(uid=1234, gid=4321),
    "group": Change(gid=77),
    "times": Change(atime_ns=NOW, mtime_ns=NOW + 5),
    "mtime": Change(mtime_ns=1),
    "set-id": Change(mode=0o104755),
    "size": Change(size=3),
    "touch": Change(touch=True),
    "before 1970": Change(mtime_ns=-1),
    "after 2262": Change(atime_ns=(1 << 63) + 5, mtime_ns=1 << 63),
}


def _make_lower(lower: Path) -> None:
    directory = lower / "d"
    directory.mkdir(parents=True)
    (directory / "plain").write_bytes(b"contents" * 100)
    (directory / "empty").write_bytes(b"")
    (directory / "full").write_bytes(os.urandom(1 << 16))
    (directory / "large").write_bytes(os.urandom((1 << 16) + 1))
    (directory / "closed").write_bytes(b"x")
    (directory / "closed").chmod(0o400)
    (directory / "set-id").write_bytes(b"x")
    (directory / "set-id").chmod(0o6755)
    (directory / "attributes").write_bytes(b"x")
    os.setxattr(directory / "attributes", "user.name", b"value")
    (directory / "two").write_bytes(b"x")
    (directory / "names").hardlink_to(directory / "two")
    with open(directory / "holes", "wb") as file:
        file.truncate(30_000)
        file.seek(10_000)
        file.write(b"x")
    for number, path in enumerate(sorted(directory.iterdir())):
        os.utime(path, ns=(NOW + number, NOW - number))
    os.utime(directory, ns=(NOW, NOW + 1))


ENTRY_FIELDS = (
    *("nodeid", "generation", "entry_valid", "attr_valid", "entry_valid_nsec", "attr_valid_nsec"),
    *("ino", "size", "blocks", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec"),
    *("mode", "nlink", "uid", "gid", "rdev", "blksize", "flags"),
)
"""Of struct fuse_entry_out with its struct fuse_attr."""

NAMES = ("plain", "empty", "full", "large", "closed", "set-id", "attributes", "two", "holes")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of copy_plain copied something, where no filesystem has a disk."""
    monkeypatch.setattr(syscalls, "is_in_memory", lambda fd: True)
    found: list[bool] = []
    real = copy_ups.device

    class Device:
        @staticmethod
        def copy_plain(*arguments: Any) -> Any:
            assert real is not None
            made = real.copy_plain(*arguments)
            found.append(made is not None)
            return made

    monkeypatch.setattr(copy_ups, "device", Device)
    return found


def _described(path: Path) -> dict[str, Any]:
    """What is in an upper, with the numbers of its objects left out."""
    found = {}
    for each in sorted(path.rglob("*")):
        st = each.lstat()
        marks = {name: os.getxattr(each, name)[9:] for name in os.listxattr(each) if name.endswith("origin")}
        others = {name: os.getxattr(each, name) for name in os.listxattr(each) if name not in marks}
        data = each.read_bytes() if each.is_file() else b""
        facts = (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_size, min(st.st_mtime_ns, NOW + 10**9))
        found[str(each.relative_to(path))] = (*facts, data, marks, others)
    return found


def _copied(top: Path, change: Change | None) -> dict[str, Any]:
    top.mkdir()
    upper, work = top / "upper", top / "work"
    upper.mkdir()
    work.mkdir()
    with in_process([top.parent / "lower"], upper, work) as inside:
        requests = Requests(inside.union)
        first = inside.find("d/closed")
        assert isinstance(first, File)
        assert requests.copy_ups.now(first) is True, "the directory is in the upper from now on"
        for name in NAMES:
            file = inside.find(f"d/{name}")
            assert isinstance(file, File)
            before = os.stat(upper / "d").st_mtime_ns
            if change is None:
                inside.copied(f"d/{name}")
            elif requests.copy_ups.now(file, change) is False:
                inside.union.setattr(file, change)
            if file.in_upper:
                assert os.stat(upper / "d").st_mtime_ns == before
                shown, real = inside.union.stat(file)[0], (upper / "d" / name).lstat()
                assert (shown.st_mode, shown.st_uid, shown.st_mtime_ns) == (real.st_mode, real.st_uid, real.st_mtime_ns)
        assert os.listdir(work / "work") == []
        inside.forget()
    return _described(upper)


@pytest.mark.root
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_same_upper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[bool], change: Change) -> None:
    _make_lower(tmp_path / "lower")
    plain = _copied(tmp_path / "plain", change)
    if change is not None and change.size is None and not change.touch and 0 <= (change.mtime_ns or 0) < 1 << 63:
        assert any(counted) != bool((change.mode or 0) & stat.S_ISUID)
    monkeypatch.setattr(copy_ups, "device", None)
    assert plain == _copied(tmp_path / "python", change)


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What copy_plain is called with."""
    for name in ("lower", "work", "upper"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/f").write_bytes(b"contents")
    st = (tmp_path / "lower/f").stat()
    fds = {name: os.open(tmp_path / name, os.O_PATH | os.O_DIRECTORY) for name in ("lower", "work", "upper")}
    yield {
        "lower": fds["lower"],
        "name": b"f",
        "device": st.st_dev,
        "number": st.st_ino,
        "work": fds["work"],
        "temporary": b"#0",
        "upper": fds["upper"],
        "new_name": b"f",
        "shown": 77,
        "mark": b"user.overlay.fuseunion.origin",
        "value": b"\1" + bytes(24),
        "uid": -1,
        "gid": -1,
        "mode": -1,
        "atime_ns": -1,
        "mtime_ns": -1,
        "waits": False,
        "keeps": False,
    }
    for fd in fds.values():
        os.close(fd)


def _call(arguments: dict[str, Any]) -> Any:
    assert copy_ups.device is not None
    *values, waits, keeps = arguments.values()
    return copy_ups.device.copy_plain(tuple(values[:-5]), tuple(values[-5:]), waits, keeps)


def test_one_call(arguments: dict[str, Any], tmp_path: Path) -> None:
    made = (tmp_path / "lower/f").stat()
    entry, device, number, size, times_kept, fd = _call(arguments)
    assert fd == -1
    copy = (tmp_path / "upper/f").stat()
    assert (device, number, size, times_kept) == (copy.st_dev, copy.st_ino, len(b"contents"), True)
    shown = dict(zip(ENTRY_FIELDS, ENTRY.unpack(entry), strict=True))
    assert (shown["nodeid"], shown["ino"], shown["nlink"], shown["mode"]) == (77, 77, 1, copy.st_mode)
    assert shown["ctime"] * 10**9 + shown["ctimensec"] == copy.st_ctime_ns, "the rename changes it"
    mark = os.getxattr(tmp_path / "upper/f", "user.overlay.fuseunion.origin")
    assert struct.unpack("<BQQq", mark) == (1, copy.st_ino, 77, made.st_ctime_ns)
    assert (copy.st_mode, copy.st_mtime_ns, copy.st_size) == (made.st_mode, made.st_mtime_ns, made.st_size)
    assert os.listdir(tmp_path / "work") == []


@pytest.mark.parametrize("path", [b"d/f", b"x" * 1024])
def test_the_path_in_the_mark(arguments: dict[str, Any], tmp_path: Path, path: bytes) -> None:
    assert _call(arguments | {"value": b"\1" + bytes(24) + path}) is not None
    mark = os.getxattr(tmp_path / "upper/f", "user.overlay.fuseunion.origin")
    numbers = (1, (tmp_path / "upper/f").stat().st_ino, 77, (tmp_path / "lower/f").stat().st_ctime_ns)
    assert mark == struct.pack("<BQQq", *numbers) + path


def test_a_copy_that_stays_open(arguments: dict[str, Any], tmp_path: Path) -> None:
    *_, fd = _call(arguments | {"keeps": True})
    os.pwrite(fd, b"C", 0)
    os.close(fd)
    assert (tmp_path / "upper/f").read_bytes() == b"Contents"


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": 1},
        {"device": 1},
        {"name": b"missing"},
        {"upper": -1},
        {"work": -1},
        {"new_name": b"there"},
        {"mark": b"user.overlay." + b"x" * 300},
        {"mark": b"unknown.name"},
    ],
    ids=str,
)
def test_what_fails_is_taken_back(arguments: dict[str, Any], tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "upper/there").write_bytes(b"not ours")
    assert _call(arguments | wrong) is None
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir(tmp_path / "upper") == ["there"]
    assert (tmp_path / "upper/there").read_bytes() == b"not ours"


def test_what_is_in_work_is_left_alone(arguments: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "work/#0").write_bytes(b"another's")
    assert _call(arguments) is None
    assert (tmp_path / "work/#0").read_bytes() == b"another's"


@pytest.mark.parametrize("make", ["fifo", "link", "directory"])
def test_another_kind_is_left_alone(arguments: dict[str, Any], tmp_path: Path, make: str) -> None:
    path = tmp_path / "lower/f"
    path.unlink()
    {"fifo": os.mkfifo, "link": lambda p: os.symlink("g", p), "directory": os.mkdir}[make](path)
    st = path.lstat()
    assert _call(arguments | {"device": st.st_dev, "number": st.st_ino}) is None
    assert os.listdir(tmp_path / "work") == []


def test_malformed_calls(arguments: dict[str, Any]) -> None:
    for value in (b"short", bytes(25 + 1025)):
        with pytest.raises(ValueError, match="mark"):
            _call(arguments | {"value": value})
    with pytest.raises(TypeError):
        _call(arguments | {"lower": None})
    with pytest.raises(TypeError):
        _call(arguments | {"another": 1})
    with pytest.raises(TypeError):
        _call({"waits": False, "keeps": False})
    with pytest.raises(TypeError):
        _call(arguments | {"name": "text"})
    with pytest.raises(OverflowError):
        _call(arguments | {"device": -1})
    with pytest.raises(ValueError, match="null"):
        _call(arguments | {"name": b"a\0b"})


def test_the_last_step_fails(arguments: dict[str, Any], tmp_path: Path) -> None:
    """A rename to another filesystem."""
    elsewhere = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        assert _call(arguments | {"upper": elsewhere}) is None
    finally:
        os.close(elsewhere)
    assert os.listdir(tmp_path / "work") == []


def _prepared(arguments: dict[str, Any]) -> Any:
    assert copy_ups.device is not None
    *values, waits, _ = arguments.values()
    return copy_ups.device.prepare_plain(tuple(values[:-5]), tuple(values[-5:]), waits)


def _shown(arguments: dict[str, Any]) -> Any:
    assert copy_ups.device is not None
    return copy_ups.device.show_plain(*(arguments[name] for name in ("work", "temporary", "upper", "new_name")))


def test_two_calls(arguments: dict[str, Any], tmp_path: Path) -> None:
    """They leave what one leaves."""
    os.utime(tmp_path / "upper", ns=(NOW, NOW))
    fd, device, number, size = _prepared(arguments | {"mode": 0o604})
    assert os.listdir(tmp_path / "upper") == []
    st = os.fstat(fd)
    assert (device, number, size) == (st.st_dev, st.st_ino, len(b"contents"))
    assert os.pread(fd, 100, 0) == b"contents"
    os.pwrite(fd, b"C", 0)
    os.close(fd)
    assert _shown(arguments) is True
    assert (tmp_path / "upper").stat().st_mtime_ns == NOW
    copy = (tmp_path / "upper/f").stat()
    assert (copy.st_ino, copy.st_mode & 0o7777) == (number, 0o604)
    mark = os.getxattr(tmp_path / "upper/f", "user.overlay.fuseunion.origin")
    assert struct.unpack("<BQQq", mark) == (1, number, 77, (tmp_path / "lower/f").stat().st_ctime_ns)
    assert os.listdir(tmp_path / "work") == []


@pytest.mark.parametrize(
    "wrong", [{"number": 1}, {"name": b"missing"}, {"work": -1}, {"mark": b"unknown.name"}], ids=str
)
def test_what_cannot_be_prepared(arguments: dict[str, Any], tmp_path: Path, wrong: dict[str, Any]) -> None:
    before = os.listdir("/proc/self/fd")
    assert _prepared(arguments | wrong) is None
    assert os.listdir(tmp_path / "work") == []
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("wrong", [{"new_name": b"there"}, {"upper": -1}, {"temporary": b"missing"}], ids=str)
def test_what_cannot_be_shown(arguments: dict[str, Any], tmp_path: Path, wrong: dict[str, Any]) -> None:
    """It stays in work, and what is there stays there."""
    (tmp_path / "upper/there").write_bytes(b"not ours")
    os.close(_prepared(arguments)[0])
    assert _shown(arguments | wrong) is None
    assert os.listdir(tmp_path / "work") == ["#0"]
    assert (tmp_path / "upper/there").read_bytes() == b"not ours"


def test_malformed_calls_of_the_two(arguments: dict[str, Any]) -> None:
    assert copy_ups.device is not None
    for wrong in ({"value": b"short"}, {"name": "text"}, {"another": 1}):
        with pytest.raises((ValueError, TypeError)):
            _prepared(arguments | wrong)
    with pytest.raises(TypeError):
        copy_ups.device.prepare_plain(())
    for wrong in ({"temporary": b"a\0b"}, {"work": None}):
        with pytest.raises((ValueError, TypeError)):
            _shown(arguments | wrong)


# -- by requests -----------------------------------------------------------------------------------------------------

REQUESTS = {
    "mode": (layouts.FATTR_MODE, {"mode": 0o100640}),
    "owner": (layouts.FATTR_UID | layouts.FATTR_GID, {"new_uid": 1234, "new_gid": 4321}),
    "group": (layouts.FATTR_GID, {"new_gid": 77}),
    "set-id": (layouts.FATTR_MODE, {"mode": 0o104755}),
    "times": (layouts.FATTR_ATIME | layouts.FATTR_MTIME, {"atime_ns": NOW, "mtime_ns": NOW + 5}),
    "before 1970": (layouts.FATTR_MTIME, {"mtime_ns": -1}),
    "after 2262": (layouts.FATTR_ATIME | layouts.FATTR_MTIME, {"atime_ns": (1 << 63) + 5, "mtime_ns": 1 << 63}),
    "size": (layouts.FATTR_SIZE, {"size": 3}),
    "touch": (0, {}),
}
SIMPLE = {"mode", "owner", "group", "times"}


def _setattr(answers: Answers, number: int, valid: int, fields: dict[str, int]) -> Any:
    wanted = dict.fromkeys(("mode", "new_uid", "new_gid", "size", "atime_ns", "mtime_ns"), 0) | fields
    return answers._setattr(number, 0, 0, os.getpid(), valid, *wanted.values())


@pytest.fixture
def inside(tmp_path: Path, counted: list[bool]) -> Iterator[InProcess]:
    """A union with the directory in the upper already, and no disk to wait for."""
    assert not counted
    _make_lower(tmp_path / "lower")
    for name in ("upper/d", "work"):
        (tmp_path / name).mkdir(parents=True)
    with union_in(tmp_path) as union:
        yield union


@pytest.mark.root
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_answer_is_what_is_there(
    inside: InProcess, tmp_path: Path, counted: list[bool], request_name: str, name: str
) -> None:
    """Whether it was one call or many."""
    valid, fields = REQUESTS[request_name]
    answers = Answers(Requests(inside.union), 1.0)
    inode = inside.find(f"d/{name}")
    entry = _setattr(answers, inode.ino, valid, fields)
    if not isinstance(entry, bytes):
        entry.close()
        pytest.fail("it takes no longer than a usual request")
    assert entry == answers._getattr(inode.ino)
    shown, real = dict(zip(ENTRY_FIELDS, ENTRY.unpack(entry), strict=True)), (tmp_path / "upper/d" / name).lstat()
    assert shown["ctime"] * 10**9 + shown["ctimensec"] == real.st_ctime_ns
    assert (shown["mode"], shown["uid"], shown["gid"]) == (real.st_mode, real.st_uid, real.st_gid)
    if name in ("plain", "empty", "full", "closed"):
        assert counted == ([True] if request_name in SIMPLE else [])
    assert True not in counted or inode.absent_xattrs == {xattr_names.CAPABILITY}


@pytest.mark.root
def test_a_capability_goes_with_the_owner(inside: InProcess, tmp_path: Path, counted: list[bool]) -> None:
    os.setxattr(tmp_path / "lower/d/plain", "security.capability", CAPABILITY)
    answers = Answers(Requests(inside.union), 1.0)
    number = inside.find("d/plain").ino
    assert answers._xattrs.getxattr(number, b"security.capability") == CAPABILITY
    assert isinstance(_setattr(answers, number, *REQUESTS["group"]), bytes)
    assert True not in counted
    with pytest.raises(OSError, match="No data"):
        os.getxattr(tmp_path / "upper/d/plain", "security.capability")
    assert answers._xattrs.getxattr(number, b"security.capability") == errno.ENODATA


def test_what_is_not_there_is_found_by_one_look(
    inside: InProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(Requests(inside.union), 1.0)
    plain, other = inside.find("d/plain").ino, inside.find("d/attributes").ino
    assert answers._xattrs.getxattr(plain, b"security.capability") == errno.ENODATA
    assert answers._xattrs.getxattr(other, b"security.capability") == errno.ENODATA
    monkeypatch.setattr(device.device, "lacks_attribute", None)
    assert answers._xattrs.getxattr(plain, b"system.posix_acl_access") == errno.ENODATA, "it has none at all"
    assert answers._xattrs.getxattr(other, b"security.capability") == errno.ENODATA, "it is remembered"
    assert answers._xattrs.getxattr(other, b"user.name") == b"value"


def test_a_capability_that_is_set_is_found(inside: InProcess) -> None:
    answers = Answers(Requests(inside.union), 1.0)
    number = inside.find("d/plain").ino
    assert answers._xattrs.getxattr(number, b"system.posix_acl_access") == errno.ENODATA
    acl = b"\2\0\0\0" + b"".join(struct.pack("<HHI", tag, 6, -1 & 0xFFFFFFFF) for tag in (1, 4, 0x10, 0x20))
    assert answers._xattrs.setxattr(number, 0, 0, os.getpid(), b"system.posix_acl_access", acl, 0) == 0
    assert answers._xattrs.getxattr(number, b"system.posix_acl_access") == acl


@pytest.mark.parametrize(
    ("wrong", "found"),
    [({}, "ALL"), ({"number": 1}, None), ({"device": 1}, None), ({"name": b"gone"}, None), ({"directory": -1}, None)],
    ids=str,
)
def test_one_look(arguments: dict[str, Any], wrong: dict[str, Any], found: str | None) -> None:
    assert copy_ups.device is not None
    where = {"directory": arguments["lower"]} | {key: arguments[key] for key in ("name", "device", "number")} | wrong
    answer = copy_ups.device.lacks_attribute(*where.values(), b"user.any")
    assert answer == (0 if found is None else copy_ups.device.ALL)


def test_one_look_at_what_has_another(arguments: dict[str, Any], tmp_path: Path) -> None:
    assert copy_ups.device is not None
    os.setxattr(tmp_path / "lower/f", "user.other", b"")
    where = [arguments[key] for key in ("lower", "name", "device", "number")]
    assert copy_ups.device.lacks_attribute(*where, b"user.other") == 0
    assert copy_ups.device.lacks_attribute(*where, b"user.any") not in (0, copy_ups.device.ALL)
    for malformed in (where, [*where, "text"], [*where, b"a\0b"], [None, *where]):
        with pytest.raises((TypeError, ValueError)):
            copy_ups.device.lacks_attribute(*malformed)


@pytest.mark.parametrize("name", ["plain", "attributes"])
def test_the_first_write_is_answered_at_once(inside: InProcess, tmp_path: Path, counted: list[bool], name: str) -> None:
    answers = Answers(Requests(inside.union), 1.0)
    number = inside.find(f"d/{name}").ino
    assert answers._contents.write(number, 0, 0, os.getpid(), 0, 1, b"data") == layouts.WRITTEN.pack(4, 0)
    assert (tmp_path / "upper/d" / name).read_bytes()[1:5] == b"data"
    answers.close_files()


@pytest.mark.parametrize("volatile", [False, True])
@pytest.mark.parametrize("where", ["disk", "memory"])
def test_little_data_is_copied_with_metacopy_too(tmp_path: Path, where: str, *, volatile: bool) -> None:
    """Where nothing has to be put on disk for that: it takes less time than to do without."""
    with tempfile.TemporaryDirectory(dir=tmp_path if where == "disk" else "/dev/shm") as base:
        lower, upper, work = (Path(base, name) for name in ("lower", "upper", "work"))
        _make_lower(lower)
        (upper / "d").mkdir(parents=True)
        work.mkdir()
        with open(upper / "d" / "beside", "wb") as file:
            at_once = volatile or syscalls.is_in_memory(file.fileno())
        with in_process([lower], upper, work, metacopy=True, volatile=volatile) as union:
            requests = Requests(union.union)
            for name in ("plain", "full", "large"):
                found = union.find(f"d/{name}")
                assert isinstance(found, File)
                assert requests.copy_ups.now(found, Change(mode=0o600))
                assert union.read(f"d/{name}") == (lower / "d" / name).read_bytes()
            union.forget()
        hollow = {
            name
            for name in os.listdir(upper / "d")
            if any("metacopy" in key for key in os.listxattr(upper / "d" / name))
        }
        assert hollow == ({"large"} if at_once else {"plain", "full", "large"})
