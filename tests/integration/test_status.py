"""`fuseunion status`: what is mounted is listed, with what is so of it, whatever state it is in and wherever it is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import libc, processes
from tests.support.arena import Arena
from tests.support.layers import File
from tests.support.mountinfo import mount_at
from tests.support.mounts import FuseunionMount
from tests.support.waiting import wait_until

Report = dict[str, Any]


def run(arena: Arena, *arguments: str | Path, runtime: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command; with a runtime directory of its own."""
    environment = arena.place.environment()
    if runtime is not None:
        environment["XDG_RUNTIME_DIR"] = str(runtime)
    return subprocess.run(
        arena.place.interpreter.command(*map(str, arguments)),
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def reports(arena: Arena, *, code: int = 0, runtime: Path | None = None) -> dict[str, Report]:
    """What `status --json` says of the mounts of this test, by their names."""
    done = run(arena, "status", "--json", runtime=runtime)
    assert done.stderr == ""
    found = [report for report in json.loads(done.stdout)["mounts"] if report["merged"].startswith(f"{arena.root}/")]
    assert code == 0 or done.returncode == code
    assert len({report["merged"] for report in found}) == len(found), "each is listed once"
    return {Path(report["merged"]).name: report for report in found}


def report_of(arena: Arena, mount: FuseunionMount, code: int = 0) -> Report:
    """What is said of one mount."""
    done = run(arena, "status", "--json", mount.merged)
    assert (done.returncode, done.stderr) == (code, "")
    (report,) = json.loads(done.stdout)["mounts"]
    assert isinstance(report, dict)
    return report


def sockets(arena: Arena, pid: int) -> list[Path]:
    """The status sockets of a daemon, wherever the actor's runtime directory is."""
    places = [
        Path("/run/fuseunion"),
        Path(f"/run/user/{os.geteuid()}/fuseunion"),
        Path(f"/tmp/fuseunion-{os.geteuid()}"),
    ]
    return [path for place in places if os.access(place, os.R_OK) for path in place.glob(f"{pid}-*.socket")]


@pytest.mark.parametrize("wire", ["1", "0"], ids=["extension", "pyfuse3"])
@pytest.mark.actors("root", "user")
def test_the_numbers(arena: Arena, wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers, options and counters are those of the mount, in both ways of reading /dev/fuse."""
    monkeypatch.setenv("FUSEUNION_WIRE", wire)
    below, above = arena.lower({"f": File(b"x"), "g": File(b"y")}), arena.lower({"d/h": File(b"z")})
    with arena.mount(above, below, options=["noacl"], arguments=["--volatile"]) as mount:
        first = report_of(arena, mount)
        assert first["state"] == "live" and first["engine"] == "fuse" and first["remedy"] is None
        assert first["lowers"] == [str(above), str(below)]
        assert first["upper"] == str(arena.upper)
        assert first["work"] == str(arena.root / ".upper.fuseunion-work")
        assert first["pid"] == mount.daemon and first["namespace"] is None
        assert first["reading"] == {"1": "extension", "0": "pyfuse3"}[wire]
        assert first["copy_ups"] == 0
        assert {"volatile", "acl=off"} <= set(first["options"])
        assert 5 << 20 < first["memory"] < 200 << 20 and 5 < first["descriptors"] < 100
        assert 0 <= first["age"] < 60
        (mount / "f").write_bytes(b"changed")
        (mount / "g").chmod(0o600)
        (mount / "d/new").mkdir()
        for name in ("no", "none"):
            with pytest.raises(FileNotFoundError):
                (mount / name).read_bytes()
        for _ in range(3):
            with pytest.raises(OSError, match="Directory not empty"):
                (mount / "d").rmdir()
        second = report_of(arena, mount)
        assert second["copy_ups"] == 2
        assert second["errors"]["ENOTEMPTY"] == 3
        more = {name: count - first["requests"].get(name, 0) for name, count in second["requests"].items()}
        assert more["mkdir"] == 1 and more["rmdir"] == 3 and more["setattr"] >= 1 and more["write"] == 1
        assert second["inodes"] > first["inodes"]
        said = run(arena, "status", mount.merged).stdout
        assert said.startswith(f"{mount.merged}: live for ")
        assert f"    lower     {above}\n    lower     {below}\n" in said and "copy-ups  2\n" in said


@pytest.mark.actors("root", "user")
def test_every_state(arena: Arena) -> None:
    """Live, dead and silent mounts are told apart, each with a remedy that helps."""
    lower = arena.lower({"f": File(b"x")})
    names = ("live", "dead", "silent")
    mounts = {name: arena.mount(lower, upper=arena.root / f"upper-{name}", merged=name) for name in names}
    for mount in mounts.values():
        mount.start()
    os.kill(mounts["dead"].daemon, signal.SIGKILL)
    wait_until(lambda: mounts["dead"].daemon not in processes.with_token(arena.place.token), "the daemon's end")
    os.kill(mounts["silent"].daemon, signal.SIGSTOP)
    try:
        found = reports(arena, code=1)
    finally:
        os.kill(mounts["silent"].daemon, signal.SIGCONT)
    assert {name: report["state"] for name, report in found.items()} == {name: name for name in names}
    assert found["silent"]["pid"] == mounts["silent"].daemon
    assert found["dead"]["remedy"] == f"fuseunion umount {mounts['dead'].merged}"
    assert found["dead"]["lowers"] == [str(lower)]
    assert f"kill {mounts['silent'].daemon}" in found["silent"]["remedy"]
    assert report_of(arena, mounts["dead"], code=1)["state"] == "dead"
    # What it names helps; the socket of the dead one has gone already.
    done = run(arena, "umount", "--", *(mount.merged for mount in mounts.values()))
    assert (done.returncode, done.stderr) == (0, "")
    assert reports(arena) == {}
    assert not any(sockets(arena, mount.daemon) for mount in mounts.values())


@pytest.mark.actors("root", "user")
def test_without_a_socket(arena: Arena) -> None:
    """A mount whose socket was removed, or that never had one, is told of by /proc and its own attributes."""
    lower = arena.lower({"f": File(b"x")})
    with arena.mount(lower) as mount:
        (path,) = sockets(arena, mount.daemon)
        path.unlink()
        (mount / "f").stat()
        report = report_of(arena, mount)
        assert report["state"] == "live" and report["pid"] == mount.daemon
        assert report["lowers"] == [str(lower)] and report["inodes"] == 2
        assert report["memory"] > 0 and report["age"] is not None
        os.kill(mount.daemon, signal.SIGSTOP)
        try:
            assert report_of(arena, mount, code=1)["state"] == "silent"
        finally:
            os.kill(mount.daemon, signal.SIGCONT)


@pytest.mark.actors("root", "user")
def test_where_no_runtime_directory_can_be_had(arena: Arena) -> None:
    """What somebody else put in its place is not touched; the next place is taken."""
    lower = arena.lower({"f": File(b"x")})
    merged, elsewhere = arena.directory("merged"), arena.directory("elsewhere")
    for number, make in enumerate(
        (
            lambda path: path.symlink_to(elsewhere),
            lambda path: os.mkfifo(path),
            lambda path: path.write_bytes(b"a file"),
            lambda path: path.mkdir(0o777) or path.chmod(0o777),
        )
    ):
        runtime = arena.directory(f"runtime{number}")
        make(runtime / "fuseunion")
        before = (runtime / "fuseunion").lstat()
        assert run(arena, lower, arena.upper, merged, runtime=runtime).returncode == 0
        assert list(reports(arena, runtime=runtime)) == ["merged"]
        assert run(arena, "umount", merged, runtime=runtime).returncode == 0
        assert (runtime / "fuseunion").lstat() == before
        assert os.listdir(elsewhere) == []


@pytest.mark.actors("user")
def test_the_directory_that_is_given(arena: Arena) -> None:
    """XDG_RUNTIME_DIR is used, and left empty. What else lies there, or is none of ours, disturbs nobody."""
    lower, merged, runtime = arena.lower({"f": File(b"x")}), arena.directory("merged"), arena.directory("runtime")
    place = runtime / "fuseunion"
    place.mkdir(0o700)
    os.mkfifo(place / "1-fifo.socket")
    (place / "2-link.socket").symlink_to("1-fifo.socket")
    (place / "3-file.socket").write_bytes(b"")
    (place / "4-directory.socket").mkdir()
    strange = sorted(os.listdir(place))
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(place / "5-dead.socket"))
    left.close()
    assert run(arena, lower, arena.upper, merged, runtime=runtime).returncode == 0
    assert len(list(place.glob("*-????????????.socket"))) == 1
    assert reports(arena, runtime=runtime)["merged"]["requests"]
    assert not (place / "5-dead.socket").is_socket(), "what nobody listens at is removed"
    assert run(arena, "umount", merged, runtime=runtime).returncode == 0
    assert sorted(os.listdir(place)) == strange


@pytest.mark.actors("user")
def test_somebody_listens_and_says_nothing(arena: Arena) -> None:
    """A process of the same user, with a socket that no daemon made, costs two seconds and is told of as silent."""
    runtime = arena.directory("runtime")
    (runtime / "fuseunion").mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime / "fuseunion/1-other.socket"))
        listener.listen()
        done = run(arena, "status", "--json", runtime=runtime)
    assert done.returncode == 1
    assert [report["state"] for report in json.loads(done.stdout)["mounts"] if report["merged"] == "?"] == ["silent"]


@contextmanager
def hidden_mount(arena: Arena, runtime: Path, lower: Path) -> Iterator[Path]:
    """A mount in a namespace of its own, as podman's are."""
    merged = arena.directory("hidden")
    command = arena.place.interpreter.command(str(lower), str(arena.upper), str(merged))
    script = '"$@" && echo mounted && read -r line; umount "$0"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(merged), *command]
    environment = {**arena.place.environment(), "XDG_RUNTIME_DIR": str(runtime)}
    with subprocess.Popen(
        inside, env=environment, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdin is not None and shell.stdout is not None
        try:
            assert shell.stdout.readline() == "mounted\n"
            yield merged
        finally:
            shell.stdin.close()
            shell.wait(20)


@pytest.mark.actors("user")
def test_a_mount_in_another_namespace(arena: Arena) -> None:
    """It is found through the runtime directory."""
    lower, runtime = arena.lower({"f": File(b"x")}), arena.directory("runtime")
    with hidden_mount(arena, runtime, lower) as merged:
        assert mount_at(merged) is None
        report = reports(arena, runtime=runtime)["hidden"]
        assert report["state"] == "live" and report["namespace"] is not None and report["lowers"] == [str(lower)]
        assert report["upper"] == str(arena.upper) and report["requests"]
        assert run(arena, "status", merged, runtime=runtime).returncode == 0
        done = run(arena, lower, arena.upper, arena.directory("merged"), runtime=runtime)
        assert done.returncode == 4 and f"mount at '{merged}' (process {report['pid']}" in done.stderr
        (path,) = (runtime / "fuseunion").glob("*.socket")
        path.unlink()
        assert "hidden" not in reports(arena, runtime=runtime), (
            "a daemon that left (apart.py) is found by its socket alone"
        )
    wait_until(lambda: "hidden" not in reports(arena, runtime=runtime), "the daemon's end")


@pytest.mark.actors("root", "userns")
def test_the_other_engines(arena: Arena) -> None:
    """Overlays and ranches are listed with their layers; a ranch that lost its mount has a remedy."""
    lower = arena.lower({"f": File(b"x")})
    for engine in ("kernel", "ranch"):
        merged = arena.directory(engine)
        upper = arena.root / f"upper-{engine}"
        assert run(arena, "--engine", engine, lower, upper, merged).returncode == 0
        report = reports(arena)[engine]
        assert report["engine"] == engine and report["state"] == "live"
        assert report["lowers"] == [str(lower)] and report["upper"] == str(upper)
        assert run(arena, "status", merged).stdout.startswith(f"{merged}: live, {engine} engine\n")
        if engine == "ranch":
            libc.umount(str(merged))
            report = reports(arena, code=1)[engine]
            assert report["state"] == "dead" and f"fuseunion doctor --repair {upper}" in report["remedy"]
            assert run(arena, "doctor", "--repair", upper).returncode == 0
        else:
            assert run(arena, "umount", merged).returncode == 0
        assert engine not in reports(arena)


@pytest.mark.actors("root", "user")
def test_what_is_not_there(arena: Arena) -> None:
    """A directory that shows nothing of ours is a mistake; it is not as if nothing were mounted."""
    done = run(arena, "status", arena.directory("merged"))
    assert done.returncode == 3 and done.stdout == ""
    assert done.stderr == (
        f"fuseunion: nothing of yours is mounted at '{arena.root}/merged'; see all with: fuseunion status\n"
    )


@pytest.mark.actors("root", "user")
def test_asking_without_end(arena: Arena) -> None:
    """Hundreds who connect and read nothing: requests are answered, no descriptor stays, and status works again."""
    lower = arena.lower({str(number): File(b"x") for number in range(200)})
    with arena.mount(lower) as mount:
        (path,) = sockets(arena, mount.daemon)
        held = []
        for number in range(200):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError):  # sixteen wait there already
                connection.connect(str(path))
            held.append(connection)
            assert (mount / str(number)).read_bytes() == b"x"
        for connection in held:
            connection.close()
        assert len(os.listdir(f"/proc/{mount.daemon}/fd")) < 160  # of which 128 files are kept
        assert report_of(arena, mount)["state"] == "live"
