"""Every FUSE mount of this user, and how it is doing.

They are found in three places, and put together by the device number of the mount, which is the kernel's word for it in
each of them (`processes.served_mounts`; where the kernel does not tell, by the path):

* sockets in the runtime directory, where daemons say it themselves, from every namespace;
* the mounts that this process sees: of one whose daemon has no socket, its virtual attributes are asked;
* daemons that have /dev/fuse open, for those whose mounts cannot be seen from here.

No mount is touched but by a process of its own, which may be left waiting: who serves it may answer never.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Iterator
from shlex import quote
from typing import NamedTuple

from fuseunion.engines.fuse import mount_point
from fuseunion.engines.fuse.asking import questions
from fuseunion.engines.status import Latency, State, Status
from fuseunion.errors import UserError
from fuseunion.linux import mountinfo
from fuseunion.linux.mountinfo import Mount
from fuseunion.linux.proc import figures, processes
from fuseunion.linux.proc.holders import elsewhere
from fuseunion.linux.runtime.answers import Answer, Fields, answers
from fuseunion.mounting.options import EngineChoice
from fuseunion.mounting.options.values import parse_lowers

_PATIENCE = 2.0
_LARGEST = 1 << 12


def statuses() -> Iterator[Status]:
    """Each mount once, in no order."""
    return (status for status, _ in with_controls())


def with_controls() -> Iterator[tuple[Status, str]]:
    """Each mount once, in no order, with the name of its control socket if it has one."""
    visible = {mount.device: mount for mount in mountinfo.mounts() if _is_own(mount)}
    known: set[int] = set()
    for answer in answers():
        device = _device(answer, visible)
        if device is not None:
            known.add(device)
        yield _answered(answer, device, visible.get(device) if device is not None else None), answer.control
    serving = _serving()
    for device, mount in visible.items():
        if device not in known:
            yield _without_socket(mount, serving.get(device)), ""
    for device in serving.keys() - known - visible.keys():
        status = _hidden(device, serving[device])
        if status is not None:
            yield status, ""


def _is_own(mount: Mount) -> bool:
    uid = os.geteuid()
    return mount.fstype == mount_point.TYPE and (uid == 0 or mount.option("user_id") == str(uid))


# -- which mount a daemon serves ---------------------------------------------------------------------------------------


def _serving() -> dict[int, int]:
    """The daemons of this user (for root, all) by the device numbers of their mounts."""
    uid, found = os.geteuid(), {}
    for pid in processes.process_ids():
        try:
            if uid in (0, os.stat(f"/proc/{pid}").st_uid):
                found.update(dict.fromkeys(processes.served_mounts(pid), pid))
        except OSError:
            continue  # ended meanwhile
    return found


def _device(answer: Answer, visible: dict[int, Mount]) -> int | None:
    """The device number of the mount of a daemon that was asked."""
    served = processes.served_mounts(answer.pid) if answer.pid else []
    if served:
        return served[0]
    merged = _first(answer.fields or {}, "merged")
    return next((device for device, mount in visible.items() if mount.target == merged), None)


# -- how it is doing ---------------------------------------------------------------------------------------------------


def _answered(answer: Answer, device: int | None, mount: Mount | None) -> Status:
    """The status of a mount whose daemon has a socket.

    Args:
        mount: as it is seen from here; None where it is not.
    """
    fields = answer.fields or {}
    merged, namespace, seen = _first(fields, "merged") or "?", None, mount is not None
    if mount is not None:
        merged = mount.target
    elif device is not None and (found := _seen_elsewhere(answer.pid, device)) is not None:
        merged, namespace, seen = found.target, answer.pid, True
    elif device is not None:
        others = elsewhere(device)
        namespace, seen = (others[0].pid, True) if others else (None, False)
    state, remedy = State.LIVE, ""
    if answer.fields is None:
        state = State.SILENT
        remedy = f"let process {answer.pid} go on (kill -CONT), or end it: kill {answer.pid}" if answer.pid else ""
    elif device is not None and not seen:
        state = State.UNMOUNTED
        remedy = f"end what still has files of it open; process {answer.pid} ends with the last"
    used = figures.of(answer.pid) if answer.pid else figures.Figures(None, None, None)
    return Status(
        EngineChoice.FUSE,
        merged,
        state,
        namespace=namespace,
        lowers=tuple(fields.get("lower", ())) or (_lowers(mount) if mount is not None else ()),
        upper=_first(fields, "upper"),
        work=_first(fields, "work"),
        images=tuple(fields.get("image", ())),
        options=tuple(fields.get("option", ())),
        pid=answer.pid or None,
        age=_number(fields, "age") if fields else used.age,
        memory=used.memory,
        descriptors=used.descriptors,
        inodes=_number(fields, "inodes"),
        open_files=_number(fields, "open") if _first(fields, "reading") == "pyfuse3" else None,
        copy_ups=_number(fields, "copy_ups"),
        reading=_first(fields, "reading"),
        requests=_numbers(fields, "request."),
        errors={_error(name): count for name, count in _numbers(fields, "error.").items()},
        alone=_numbers(fields, "alone."),
        latencies=_latencies(fields),
        remedy=remedy,
    )


def _without_socket(mount: Mount, served_by: int | None) -> Status:
    """The status of a mount that is seen from here, by what /proc and its virtual attributes say."""
    said = _asked(mount.target)
    state, remedy = State.LIVE, ""
    if said is None:
        state, remedy = State.SILENT, f"end its daemon, then: fuseunion umount {quote(mount.target)}"
    elif said.error in (errno.ENOTCONN, errno.ECONNABORTED):
        state, remedy = State.DEAD, f"fuseunion umount {quote(mount.target)}"
    elif said.error and served_by is None:
        state = State.UNKNOWN
        remedy = f"only user {mount.option('user_id')} may ask it"
    pid = served_by or (said.pid if said is not None else None)
    used = figures.of(pid) if pid else figures.Figures(None, None, None)
    return Status(
        EngineChoice.FUSE,
        mount.target,
        state,
        lowers=_lowers(mount),
        pid=pid,
        age=used.age,
        memory=used.memory,
        descriptors=used.descriptors,
        inodes=said.inodes if said is not None else None,
        remedy=remedy,
    )


def _hidden(device: int, pid: int) -> Status | None:
    """The status of a mount that only another mount namespace shows, and whose daemon has no socket."""
    mount = _seen_elsewhere(pid, device)
    if mount is None:
        return None
    used = figures.of(pid)
    return Status(
        EngineChoice.FUSE,
        mount.target,
        State.LIVE,
        namespace=pid,
        lowers=_lowers(mount),
        pid=pid,
        age=used.age,
        memory=used.memory,
        descriptors=used.descriptors,
    )


def _seen_elsewhere(pid: int, device: int) -> Mount | None:
    """A mount of ours as a process sees it."""
    try:
        found = [mount for mount in mountinfo.mounts(pid) if mount.device == device]
    except OSError:
        return None
    return next((mount for mount in found if mount.fstype == mount_point.TYPE), None)


def _lowers(mount: Mount) -> tuple[str, ...]:
    """What the mount names as its source (mount_point.source)."""
    try:
        return parse_lowers(mount.source) if mount.source.startswith("/") else ()
    except UserError:
        return ()


# -- asking a mount that has no socket ---------------------------------------------------------------------------------


class _Said(NamedTuple):
    """What a mount answered.

    Attributes:
        error: an error number, 0 for none.
    """

    error: int
    pid: int | None
    inodes: int | None


def _asked(path: str) -> _Said | None:
    """Ask a mount for its daemon and its inodes; None where it does not answer in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, _ask(path))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        data = os.read(reader, _LARGEST) if poll.poll(_PATIENCE * 1000) else b""
    finally:
        os.close(reader)
        _end(child)
    if not data:
        return None
    error, pid, inodes = (int(number) for number in data.split())
    return _Said(error, pid or None, inodes or None)


def _ask(path: str) -> bytes:
    """The error number, the process id and the number of inodes; 0 for what is not known."""
    pid = inodes = 0
    try:
        os.statvfs(path)  # may be no answer of the daemon, where the kernel lets nobody but another user ask it
        pid = int(os.getxattr(path, questions.PID))
        inodes = int(os.getxattr(path, questions.COUNTS).split()[0])
    except OSError as error:
        return b"%d %d %d" % (error.errno or errno.EIO, pid, inodes)
    except ValueError:
        return b"%d %d %d" % (errno.EIO, pid, inodes)
    return b"0 %d %d" % (pid, inodes)


def _end(child: int) -> None:
    """End a process, if it can be ended: one whose request was read waits for the answer, whatever it is sent."""
    os.kill(child, signal.SIGKILL)
    end = time.monotonic() + 0.2
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end:
        time.sleep(0.005)


# -- fields ------------------------------------------------------------------------------------------------------------


def _first(fields: Fields, name: str) -> str | None:
    return next(iter(fields.get(name, ())), None)


def _number(fields: Fields, name: str) -> int | None:
    text = _first(fields, name)
    return int(text) if text is not None and text.isdigit() else None


def _numbers(fields: Fields, prefix: str) -> dict[str, int]:
    names = [name for name in fields if name.startswith(prefix)]
    return {name.removeprefix(prefix): _number(fields, name) or 0 for name in names}


def _latencies(fields: Fields) -> dict[str, Latency]:
    found = {}
    for name in fields:
        words = fields[name][0].split() if name.startswith("duration.") else []
        if len(words) > 2 and all(map(str.isdigit, words)):
            nanoseconds, *places = map(int, words)
            found[name.removeprefix("duration.")] = Latency(nanoseconds / 1e9, tuple(places))
    return found


def _error(number: str) -> str:
    return errno.errorcode.get(int(number), number) if number.isdigit() else number
