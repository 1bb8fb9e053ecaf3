"""The mount command as its callers see it: how the daemon detaches, what is refused, what is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseunion import __version__
from tests.support import libc, processes
from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.far import far, stopped
from tests.support.interpreter import own
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.waiting import wait_until

ONCE = pytest.mark.actors("user")
"""For what does not depend on who mounts."""


def run(arena: Arena, *arguments: str | Path, code: int = 0) -> str:
    """Run a command, check its exit code and that it says at most one line; returns that line."""
    result = arena.place.fuseunion(*arguments, cwd=arena.root)
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == (1 if code else 0), result.stderr
    return result.stderr.rstrip("\n")


def daemon_of(arena: Arena) -> int:
    """The one daemon of this test."""
    (pid,) = processes.with_token(arena.place.token)
    return pid


@contextlib.contextmanager
def kept_busy(merged: Path) -> Iterator[None]:
    """Hold the root of a mount open; unlike a file's, its descriptor can be closed after the daemon's end."""
    fd = os.open(merged, os.O_RDONLY)
    try:
        yield
    finally:
        os.close(fd)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@ONCE
def test_a_name_that_the_terminal_has_no_characters_for(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    lower = arena.lower({})
    arena.directory("upper").joinpath("\u4e2d").touch()
    done = arena.place.fuseunion("diff", "--lower", lower, arena.upper)
    assert (done.returncode, done.stdout, done.stderr) == (0, "A \\u4e2d  (file, 0 B)\n", "")


# -- start-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_version_imports_next_to_nothing(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *own().command(*arguments)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == f"fuseunion {__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"pyfuse3", "trio", "fuseunion.cli", "fuseunion.mounting.options", "argparse", "ctypes"}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["umount", "--help"]])
def test_help_has_examples(arguments: list[str]) -> None:
    done = subprocess.run(own().command(*arguments), capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0
    assert "Usage: fuseunion" in done.stdout
    assert "Example" in done.stdout


@ONCE
@pytest.mark.parametrize("arguments", [["diff", "--lower", "lower", "upper"], ["status"], ["--help"]])
def test_who_reads_may_have_read_enough(arena: Arena, arguments: list[str]) -> None:
    """As `| head` does: nothing is wrong, and nothing is said."""
    for name in ("lower", "upper"):
        arena.directory(name)
    (arena.root / "upper/new").write_bytes(b"")
    environment = {**arena.place.environment(), "PYTHONUNBUFFERED": "1"}
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        own().command(*arguments),
        env=environment,
        cwd=arena.root,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


def test_refusals_come_before_pyfuse3_is_imported(arena: Arena) -> None:
    program = (
        "import sys; from fuseunion.cli.main import run\n"
        "code = run(['fuseunion', *sys.argv[1:]]); assert code == 3, code\n"
        "assert not {'pyfuse3', 'trio'} & set(sys.modules)"
    )
    command = [arena.place.interpreter.executable, "-c", program, str(arena.root / "missing"), "u", "m"]
    arena.directory("m")
    subprocess.run(command, check=True, cwd=arena.root, env=arena.place.environment(), stderr=subprocess.DEVNULL)


# -- the daemon --------------------------------------------------------------------------------------------------------


def test_daemon_is_on_its_own(arena: Arena) -> None:
    """Its own session, / as working directory, /dev/null on 0-2, nothing inherited, stderr let go at once."""
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    inherited_read, inherited_write = os.pipe()
    command = arena.place.interpreter.command(str(lower), "upper", str(merged))
    done = subprocess.run(
        command,
        env=arena.place.environment(),
        cwd=arena.root,
        stdin=subprocess.PIPE,
        capture_output=True,
        pass_fds=[inherited_write],
    )
    os.close(inherited_write)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (merged / "f").read_bytes() == b"x"
    daemon = daemon_of(arena)
    assert os.getsid(daemon) == daemon
    assert os.readlink(f"/proc/{daemon}/cwd") == "/"
    opened = processes.descriptors(daemon)
    assert {opened[fd] for fd in (0, 1, 2)} == {"/dev/null"}
    ready, _, _ = select.select([inherited_read], [], [], 0)
    assert ready, "the daemon holds a pipe that it inherited"
    assert os.read(inherited_read, 1) == b""
    os.close(inherited_read)
    limits = Path(f"/proc/{daemon}/limits").read_text().splitlines()
    (soft, hard) = next(line for line in limits if line.startswith("Max open files")).split()[3:5]
    assert soft == hard
    run(arena, "umount", merged)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_foreground_ends_cleanly_on_a_signal(arena: Arena, number: signal.Signals) -> None:
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    command = arena.place.interpreter.command("-f", str(lower), "upper", str(merged))
    with subprocess.Popen(
        command, env=arena.place.environment(), cwd=arena.root, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: mount_at(merged) is not None, "the mount")
        assert (merged / "f").read_bytes() == b"x"
        process.send_signal(number)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "")
    assert mount_at(merged) is None
    assert names(arena.root) == ["logs", "lower0", "merged", "upper"]


def test_debug_traces_requests(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    command = arena.place.interpreter.command("-d", str(lower), "upper", str(merged))
    with subprocess.Popen(
        command, env=arena.place.environment(), cwd=arena.root, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: mount_at(merged) is not None, "the mount")
        (merged / "f").stat()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "lookup" in said


def test_busy_mount_leaves_the_tree_on_a_signal(arena: Arena) -> None:
    """Somebody keeps a file open: the mount goes at once all the same, and so does the daemon."""
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    run(arena, lower, "upper", merged)
    daemon = daemon_of(arena)
    with kept_busy(merged):
        os.kill(daemon, signal.SIGTERM)
        wait_until(lambda: mount_at(merged) is None, "the unmount")
        wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")


def test_old_daemon_never_touches_a_newer_mount(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    run(arena, lower, "upper", merged)
    old = daemon_of(arena)
    with kept_busy(merged):
        run(arena, "umount", "--lazy", merged)
        run(arena, lower, "other-upper", merged)
        (merged / "new").touch()
        os.kill(old, signal.SIGTERM)
        wait_until(lambda: old not in processes.with_token(arena.place.token), "the old daemon's end")
    assert (merged / "new").exists()
    run(arena, "umount", merged)


def test_exits_soon_after_a_plain_unmount(arena: Arena) -> None:
    """Container engines call umount2 or fusermount3 and give the program a second; the disk may take longer."""
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    run(arena, "--volatile", lower, "upper", merged)
    descriptor = os.pidfd_open(daemon_of(arena))
    subprocess.run(["fusermount3", "-u", str(merged)], check=True)
    ended, _, _ = select.select([descriptor], [], [], 1.0)
    os.close(descriptor)
    assert ended


def test_log_file(arena: Arena) -> None:
    lower = arena.lower({})
    log = arena.root / "logs/daemon.log"
    run(arena, "--log-file", "logs/daemon.log", lower, "upper", arena.directory("merged"))
    os.kill(daemon_of(arena), signal.SIGTERM)
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")
    assert "SIGTERM: unmounting" in log.read_text()
    said = run(arena, "--log-file", "missing/log", lower, "upper", "merged", code=2)
    assert said == "fuseunion: --log-file 'missing/log' cannot be opened: No such file or directory"


# -- kinds of mounts ---------------------------------------------------------------------------------------------------


def test_read_only(arena: Arena) -> None:
    top, bottom = arena.lower({"f": File(b"top")}), arena.lower({"f": File(b"x"), "g": File(b"g")})
    with arena.mount_read_only(top, bottom) as mount:
        assert (mount / "f").read_bytes() == b"top"
        assert (mount / "g").read_bytes() == b"g"
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (mount / "new").touch()


def test_read_only_with_an_upper_shows_it(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x"), "g": File(b"g")})
    with arena.mount(lower) as mount:
        (mount / "f").write_bytes(b"changed")
        (mount / "g").unlink()
    merged = arena.directory("merged")
    run(arena, "-o", f"ro,lowerdir={lower},upperdir=upper,workdir=nowhere", merged)
    assert names(merged) == ["f"]
    assert (merged / "f").read_bytes() == b"changed"
    run(arena, "umount", merged)


@pytest.mark.parametrize("words", [["--read-only"], ["-r"], ["-o", "ro"]])
def test_read_only_takes_an_upper_to_show(arena: Arena, words: list[str]) -> None:
    lower, upper, merged = arena.lower({"f": File(b"x")}), arena.lower({"g": File(b"g")}), arena.directory("merged")
    run(arena, *words, lower, upper, merged)
    assert names(merged) == ["f", "g"]
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (merged / "new").touch()
    run(arena, "umount", merged)


def test_merged_need_not_be_empty(arena: Arena) -> None:
    """What is in it is hidden, and is there again afterwards."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.lower({"own": File(b"own")}, "merged")
    run(arena, lower, "upper", merged)
    assert names(merged) == ["f"]
    run(arena, "umount", merged)
    assert names(merged) == ["own"]
    assert names(arena.upper) == []


def test_an_upper_that_its_mode_closes(arena: Arena) -> None:
    """It is shown as it is; its owner may open it there."""
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    arena.directory("upper").chmod(0o500)
    run(arena, lower, "upper", merged)
    assert (names(merged), stat.S_IMODE(merged.stat().st_mode)) == (["f"], 0o500)
    if arena.actor.role is Role.USER:
        with pytest.raises(PermissionError):
            (merged / "new").touch()
    merged.chmod(0o700)
    (merged / "new").touch()
    run(arena, "umount", merged)
    assert names(arena.upper) == ["new"]


@pytest.mark.actors("user")
def test_an_upper_of_somebody_else(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    said = run(arena, "--work", "work", lower, "/usr", arena.directory("merged"), code=3)
    assert "upper directory '/usr' belongs to another user (0), and you may not write there" in said
    assert names(arena.root) == ["logs", "lower0", "merged"]


@pytest.mark.parametrize("size", [None, "1m"])
def test_ephemeral(arena: Arena, size: str | None) -> None:
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    before = names(arena.root)
    run(arena, "--ephemeral", *(["--size", size] if size else []), lower, merged)
    (merged / "f").write_bytes(b"changed")
    (merged / "d").mkdir()
    assert (merged / "f").read_bytes() == b"changed"
    if size:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (merged / "big").write_bytes(bytes(2 << 20))
    assert names(arena.root) == before
    run(arena, "umount", merged)
    assert names(arena.root) == before


def test_ephemeral_leaves_nothing_after_kill(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in TMPDIR, or where all keep what is in memory."""
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    temporary = arena.directory("tmp")
    monkeypatch.setenv("TMPDIR", str(temporary))

    def left() -> list[list[str]]:
        ours = [name for name in names(Path("/dev/shm")) if name.startswith("fuseunion-")]
        return [names(arena.root), [name for name in names(temporary) if name != f"fuseunion-{os.geteuid()}"], ours]

    before = left()
    run(arena, "--ephemeral", lower, merged)
    (merged / "f").write_bytes(b"changed")
    os.kill(daemon_of(arena), signal.SIGKILL)
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")
    run(arena, "umount", merged)
    assert left() == before


def test_options_and_operands_mix(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    for arguments in (
        ["-o", f"lowerdir={lower}", "upper", merged],
        ["-o", "upperdir=upper", lower, merged],
        [lower, merged, "-o", "upperdir=upper", "-o", "noacl,timeout=0"],
        ["-o", f"lowerdir={lower},upperdir=upper,workdir=work", merged],
    ):
        run(arena, *arguments)
        assert (merged / "f").read_bytes() == b"x"
        run(arena, "umount", merged)


def test_mount_program_reports_and_ignores_what_it_does_not_know(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    done = arena.place.fuseunion("-o", f"lowerdir={lower},upperdir=upper,,bogus=1,private", merged, cwd=arena.root)
    assert (done.returncode, done.stderr) == (0, "unknown argument ignored: bogus=1\n")
    run(arena, "umount", merged)
    said = run(arena, "-o", "bogus=1", lower, "upper", merged, code=2)
    assert said == "fuseunion: unknown or unavailable option 'bogus=1'; see fuseunion --help"


@pytest.mark.actors("root", "userns")
def test_target_is_a_mounted_descriptor(arena: Arena) -> None:
    """Apptainer mounts /dev/fuse itself and passes /dev/fd/N."""
    lower = arena.lower({"f": File(b"x")})
    merged = arena.directory("merged")
    fd = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    libc.mount("fuse", str(merged), "fuse", 0, data)
    command = arena.place.interpreter.command("-o", f"lowerdir={lower}", f"/dev/fd/{fd}")
    subprocess.run(command, env=arena.place.environment(), cwd=arena.root, check=True, pass_fds=[fd])
    os.close(fd)
    assert (merged / "f").read_bytes() == b"x"
    libc.umount(str(merged))
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")


@ONCE
@pytest.mark.parametrize("target", ["/dev/fd/77", "/dev/fd/0"])
def test_target_descriptor_must_be_fuse(arena: Arena, target: str) -> None:
    said = run(arena, "-o", f"lowerdir={arena.lower({})}", target, code=3)
    assert target in said


# -- upper and work ----------------------------------------------------------------------------------------------------


def test_new_upper_looks_like_the_lower(arena: Arena) -> None:
    """The merged root shows the upper's attributes, so a new upper takes the lower's."""
    lower = arena.lower({})
    lower.chmod(0o751)
    arena.guard(lower)
    merged = arena.directory("merged")
    run(arena, lower, "upper", merged)
    assert stat.S_IMODE(merged.stat().st_mode) == 0o751
    assert merged.stat().st_uid == os.geteuid()
    run(arena, "umount", merged)


def test_default_work_directory_is_hidden_and_goes(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    before = names(arena.root)
    run(arena, lower, "upper", arena.directory("merged"))
    assert ".upper.fuseunion-work" in names(arena.root)
    run(arena, "umount", "merged")
    assert names(arena.root) == sorted([*before, "upper", "merged"])


def test_given_work_directory_stays(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    arena.directory("merged")
    for _ in range(2):
        run(arena, "--work", "work", lower, "upper", "merged")
        run(arena, "umount", "merged")
    assert names(arena.root / "work") == ["work"]


def test_work_directories_of_other_programs_are_accepted(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    arena.directory("merged")
    for name in ("work", "index", "links"):
        arena.directory(f"work/{name}")
    (arena.root / "work/work").chmod(0)
    run(arena, "--work", "work", lower, "upper", "merged")
    run(arena, "umount", "merged")


def test_volatile_mark(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    arena.directory("merged")
    mark = arena.root / "work/work/incompat/volatile"
    mount = ["--work", "work", lower, "upper", "merged"]
    run(arena, "--volatile", *mount)
    assert mark.is_dir()
    run(arena, "umount", "merged")
    # The same boot: nothing can have been lost.
    run(arena, *mount)
    run(arena, "umount", "merged")
    (mark / "boot_id").write_text("another boot\n")
    said = run(arena, *mount, code=3)
    assert "not synced" in said
    assert str(mark) in said
    (mark / "boot_id").unlink()
    run(arena, *mount, code=3)
    mark.rmdir()
    run(arena, *mount)
    run(arena, "umount", "merged")


def test_failed_mount_takes_back_what_it_made(arena: Arena) -> None:
    lower = arena.lower({"f": File(b"x")})
    arena.directory("merged")
    arena.directory("work/foreign")
    before = names(arena.root)
    run(arena, "--work", "work", lower, "upper", "merged", code=3)
    assert names(arena.root) == before
    if arena.actor.role is Role.USER and "\nuser_allow_other" not in Path("/etc/fuse.conf").read_text():
        said = run(arena, "-o", "allow_other", lower, "upper", "merged", code=1)
        assert "user_allow_other" in said
        assert names(arena.root) == before


# -- refusals ----------------------------------------------------------------------------------------------------------


def prepare_refusals(arena: Arena) -> None:
    for name in ("lower/inner", "upper/inner", "work", "merged"):
        arena.directory(name)
    (arena.root / "file").touch()
    (arena.root / "link").symlink_to("lower/inner")
    arena.directory("foreign/data")


@ONCE
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("missing upper merged", "lower directory 'missing' does not exist"),
        ("lower:missing upper merged", "lower directory 'missing' does not exist"),
        ("file upper merged", "lower directory 'file' is not a directory"),
        ("lower file merged", "upper directory 'file' is not a directory"),
        ("lower upper file", "merged directory 'file' is not a directory"),
        ("lower upper missing", "merged directory 'missing' does not exist; check the path or make it with: mkdir"),
        ("lower missing/upper merged", "upper directory 'missing/upper' cannot be made: make the directory"),
        ("lower lower/inner merged", "upper directory 'lower/inner' lies inside the lower directory 'lower'"),
        ("lower lower/new merged", "upper directory 'lower/new' lies inside the lower directory 'lower'"),
        ("lower link merged", "upper directory 'link' lies inside the lower directory 'lower'"),
        ("lower lower merged", "upper directory 'lower' is the same directory as the lower directory 'lower'"),
        ("upper/inner upper merged", "lower directory 'upper/inner' lies inside the upper directory 'upper'"),
        ("lower:upper/inner upper merged", "lower directory 'upper/inner' lies inside the upper directory 'upper'"),
        ("lower upper upper/inner", "merged directory 'upper/inner' lies inside the upper directory 'upper'"),
        ("--work upper/work lower upper merged", "work directory 'upper/work' lies inside the upper directory"),
        ("--work upper lower upper merged", "work directory 'upper' is the same directory as the upper directory"),
        ("--work lower/work lower upper merged", "work directory 'lower/work' lies inside the lower directory"),
        ("--work /dev/shm/fuseunion-test-work lower upper merged", "is on another filesystem than the upper 'upper'"),
        ("--work foreign lower upper merged", "work directory 'foreign' holds foreign files ('data')"),
        ("--work merged lower upper merged", "work directory 'merged' is the merged directory too"),
        ("lower:upper:./lower work/u merged", "lower directory './lower' is the same directory as the lower directory"),
        ("lower:link:lower/inner work/u merged", "lower directory 'lower/inner' is the same directory as the lower"),
    ],
)
def test_refused_with_value_and_remedy(arena: Arena, arguments: str, says: str) -> None:
    prepare_refusals(arena)
    before = {path: path.stat().st_mtime_ns for path in arena.root.rglob("*") if "log" not in path.name}
    said = run(arena, *arguments.split(), code=3)
    assert said.startswith("fuseunion: ")
    assert says in said
    after = {path: path.stat().st_mtime_ns for path in arena.root.rglob("*") if "log" not in path.name}
    assert after == before
    assert not Path("/dev/shm/fuseunion-test-work").exists()


@ONCE
def test_unreadable_lower(arena: Arena) -> None:
    arena.directory("merged")
    arena.directory("closed").chmod(0)
    assert "may not be read" in run(arena, "closed", "upper", "merged", code=3)


@ONCE
def test_too_many_lowers(arena: Arena) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    assert "501" in run(arena, ":".join([str(lower)] * 501), "upper", merged, code=3)


@ONCE
def test_bad_map_is_refused(arena: Arena) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    said = run(arena, "--uid-map", "0:1:5", "--uid-map", "3:9:1", lower, "upper", merged, code=2)
    assert "0:1:5" in said
    assert names(arena.root) == ["logs", "lower0", "merged"]


@ONCE
def test_stored_ownership_that_needs_root(arena: Arena) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    said = run(arena, "-o", "xattr_permissions=1", lower, "upper", merged, code=3)
    assert "owners cannot be stored in upper" in said
    assert names(arena.root) == ["logs", "lower0", "merged"]


def test_upper_and_work_of_a_live_mount(arena: Arena) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    other = arena.directory("other")
    run(arena, "--work", "work", lower, "upper", merged)
    said = run(arena, "--work", "work2", lower, "upper", other, code=4)
    assert "upper directory 'upper' is in use by another live fuseunion mount" in said
    assert "work directory 'work' is in use" in run(arena, "--work", "work", lower, "upper2", other, code=4)
    assert names(arena.root) == ["logs", "lower0", "merged", "other", "upper", "work"]
    run(arena, "umount", merged)


@pytest.mark.actors("root")
def test_upper_of_a_live_kernel_overlay(arena: Arena) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    upper = arena.directory("an upper, with: signs")
    with arena.kernel(lower, upper=arena.directory("upper")):
        assert "in use by another live kernel overlayfs mount" in run(arena, lower, "upper", merged, code=4)
    kernel = arena.directory("kernel-merged")
    escaped = str(upper).replace(",", "\\,")
    libc.mount(
        "overlay", str(kernel), "overlay", 0, f"lowerdir={lower},upperdir={escaped},workdir={arena.directory('w')}"
    )
    run(arena, lower, upper, merged, code=4)
    libc.umount(str(kernel))


# -- umount ------------------------------------------------------------------------------------------------------------


def test_busy_umount_names_the_holder(arena: Arena) -> None:
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    with subprocess.Popen(["sleep", "1000"], cwd=merged, env=arena.place.environment()) as holder:
        said = run(arena, "umount", merged, code=4)
        assert f"{holder.pid} sleep (its working directory)" in said
        holder.kill()
    with (merged / "f").open("rb"):
        said = run(arena, "umount", merged, code=4)
        assert f"{os.getpid()} " in said
        assert "merged/f open" in said
    run(arena, "umount", merged)
    assert not processes.with_token(arena.place.token)


@pytest.mark.actors("root", "userns")
def test_busy_umount_does_not_wait_for_what_others_have_open(arena: Arena) -> None:
    """Those are looked at as well, and what they lie on may not answer: a server that has gone."""
    lower, merged, slow = arena.lower({"f": File(b"x")}), arena.directory("merged"), arena.directory("slow")
    run(arena, lower, "upper", merged)
    with far(slow, lower, kept=0) as server:
        command = ["sh", "-c", "exec < f; echo; exec sleep 1000"]
        with subprocess.Popen(command, cwd=slow, stdout=subprocess.PIPE, env=arena.place.environment()) as one:
            assert one.stdout is not None
            one.stdout.readline()
            with stopped(server), kept_busy(merged):
                said = run(arena, "umount", merged, code=4)
            one.kill()
        assert f"{os.getpid()} " in said
        assert f"{one.pid} " not in said
    run(arena, "umount", merged)


@pytest.mark.actors("root", "userns")
def test_umount_names_another_mount_namespace(arena: Arena) -> None:
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=arena.place.environment()) as other:
        assert other.stdout is not None
        other.stdout.readline()
        said = run(arena, "umount", merged, code=4)
        assert f"still serves it to {other.pid} sleep (in another mount namespace)" in said
        assert mount_at(merged) is None
        other.kill()
    wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")


def test_umount_of_a_dead_mount(arena: Arena) -> None:
    lower, merged = arena.lower({"f": File(b"x")}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    with kept_busy(merged):
        os.kill(daemon_of(arena), signal.SIGKILL)
        wait_until(lambda: not processes.with_token(arena.place.token), "the daemon's end")
        said = run(arena, lower, "upper", merged, code=3)
        remedy = f"remove it with: fuseunion umount '{merged}'"
        assert said == f"fuseunion: merged directory '{merged}' is a dead mount of fuseunion; {remedy}"
        run(arena, "umount", merged)
    assert mount_at(merged) is None
    run(arena, lower, "upper", merged)
    run(arena, "umount", merged)


@ONCE
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "fuseunion umount MERGED"),
        (["--frobnicate", "a"], 2, "--frobnicate"),
        (["missing"], 3, "'missing' does not exist"),
        (["."], 3, "'.' is not a mount point"),
        (["/proc"], 3, "'/proc' is mounted by 'proc'"),
    ],
)
def test_umount_refuses(arena: Arena, arguments: list[str], code: int, says: str) -> None:
    assert says in run(arena, "umount", *arguments, code=code)


@ONCE
@pytest.mark.parametrize("command", ["umount", "sync", "doctor", "promote", "chown"])
def test_no_command_takes_an_empty_name_for_the_working_directory(arena: Arena, command: str) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    done = arena.place.fuseunion(command, "", cwd=merged)
    expected = f"fuseunion: argument 1 of 'fuseunion {command}' is empty; is a variable not set?\n"
    assert (done.returncode, done.stderr) == (2, expected)
    assert mount_at(merged) is not None
    run(arena, "umount", merged)


def test_umount_through_a_symbolic_link(arena: Arena) -> None:
    lower, merged = arena.lower({}), arena.directory("merged")
    run(arena, lower, "upper", merged)
    (arena.root / "link").symlink_to("merged")
    run(arena, "umount", "link")
    assert mount_at(merged) is None


@pytest.mark.actors("root")
def test_root_unmounts_and_waits_for_a_users_mount(arena: Arena) -> None:
    """Without allow_other the mount answers root nothing, so root asks as its owner who serves it."""
    user = arena.actor.user
    lower, merged = arena.lower({}), arena.directory("merged")
    for path in (arena.root, merged):
        os.chown(path, user.uid, user.gid)
    command = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--"]
    subprocess.run(
        [*command, *arena.place.interpreter.command(str(lower), str(arena.root / "upper"), str(merged))],
        env=arena.place.environment(),
        check=True,
        cwd="/",
    )
    run(arena, "umount", merged)
    assert not processes.with_token(arena.place.token)
