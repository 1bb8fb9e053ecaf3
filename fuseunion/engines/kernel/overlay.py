"""The kernel's own overlayfs, mounted in the namespaces of the caller.

The fastest engine, and the one that can do least: it knows no id maps and no stored ownership, and it reads its own
marks only, those of trusted.overlay. as the initial root, those of user.overlay. in a user namespace (`userxattr`,
which excludes redirects: Documentation/filesystems/overlayfs.rst). So the layers are looked through first, and one
that the kernel would show otherwise than the other engines is refused.

There is no daemon: the mount names "fuseunion" as its source, and `fuseunion umount` removes the default work
directory. The mount holds no lock; other mounts find it in mountinfo (in_use.py).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import AUFS_PREFIX, RealDir
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format import xattr_names
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo, namespaces, syscalls
from fuseunion.mounting.checks import volatile
from fuseunion.mounting.handover import complete_links, stored_owners
from fuseunion.mounting.options import Options, XattrPermissions
from fuseunion.mounting.options.grammar import escape, unescape
from fuseunion.mounting.prepare import Prepared, default_work_path, prepare

_log = logging.getLogger("fuseunion.kernel")

TYPE = "overlay"
SOURCE = "fuseunion"

_PAGE = 4095
"""What mount(2) takes as data."""

_VOLATILE = frozenset((b"volatile", b"fsync=volatile"))
"""How mountinfo shows it; the second on newer kernels."""

_MEANING = frozenset((xattr_names.OPAQUE, xattr_names.WHITEOUT, xattr_names.REDIRECT, xattr_names.METACOPY))
"""Marks that change what is shown."""


def refusals(options: Options) -> list[str]:
    """Why overlayfs cannot honour these options, whatever the layers are."""
    wishes = (
        (options.uid_map or options.gid_map, "it has no id maps"),
        (options.squash_uid is not None or options.squash_gid is not None, "it cannot squash ids"),
        (options.xattr_permissions is not XattrPermissions.OFF, "it keeps no owners in attributes (--fakeroot)"),
        (options.foreground or options.trace, "there is no daemon to stay in the foreground"),
        (options.log_file is not None, "there is no daemon to write a log"),
        (options.allow_root, "it cannot let root in alone (allow_root)"),
        (not options.acl, "it cannot leave ACLs out (noacl)"),
        (not options.xattrs, "it cannot leave attributes out (noxattrs)"),
        (not options.fsync and not options.volatile, "it cannot skip fsync alone; use --volatile"),
        (options.static_nlink, "it shows the links that a directory has (static_nlink)"),
        (options.ranch.inject, "it cannot inject files"),
        (options.target.startswith("/dev/fd/"), "it mounts at a directory"),
    )
    return [reason for wish, reason in wishes if wish]


def mount(options: Options) -> None:
    """Mount.

    Raises:
        UserError: UNAVAILABLE with the reason why overlayfs cannot be used for this, LAYERS, BUSY.
    """
    with ExitStack() as stack:
        # A private tmpfs of prepare.py is mounted nowhere, and overlayfs takes no upper that is mounted nowhere.
        plain = options._replace(ephemeral=False, size=None, read_only=True) if options.ephemeral else options
        prepared = prepare(plain)
        undo = stack.enter_context(ExitStack())
        undo.callback(prepared.close)
        stored = stored_owners(prepared)
        if stored is not None:
            raise _cannot(f"'{stored}' keeps owners in attributes or a database, which it cannot read")
        lowers = [opened.label for opened in prepared.lowers]
        if len(lowers) == 1 and prepared.upper is None and not options.ephemeral:
            # Without an upper overlayfs wants two lowers: an empty one is added.
            lowers.append(stack.enter_context(_tmpfs(options, prepared)) + "/upper")
        words = ["lowerdir=" + ":".join(map(escape, lowers))]
        prefix = _prefix(prepared)
        if options.ephemeral:
            top = stack.enter_context(_tmpfs(options, prepared))
            words += [f"upperdir={top}/upper", f"workdir={top}/work"]
        elif prepared.upper is not None and prepared.work is not None:
            words += [f"upperdir={escape(prepared.upper.label)}", f"workdir={escape(prepared.work.label)}"]
            volatile.clear(prepared.work.fd)
        if prefix == b"user.overlay.":
            words.append("userxattr")
        if options.volatile and not options.ephemeral:
            words.append("volatile")
        _refuse_marks(prepared, prefix)
        complete_links(prepared)
        data = os.fsencode(",".join(words))
        if len(data) > _PAGE:
            raise _cannot(f"the paths of all layers are longer together than the {_PAGE} bytes that it takes")
        try:
            syscalls.mount(SOURCE.encode(), os.fsencode(prepared.target), TYPE.encode(), _flags(options), data)
        except OSError as error:
            raise _cannot(_explain(error, prepared)) from None
        # The work directory is the mount's from now on; the locks end with this process.
        undo.pop_all()
        prepared.keep()


def is_ours(entry: mountinfo.Mount) -> bool:
    """Whether a mount was made here."""
    return entry.fstype == TYPE and entry.source == SOURCE


def write_out(path: str, entry: mountinfo.Mount) -> None:
    """Put what was written to a mount on disk.

    Raises:
        OSError: what went wrong in writing, which means that something is lost.
    """
    _syncfs(path)
    upper = unescape(entry.option("upperdir") or "")
    if upper and _VOLATILE & set(entry.raw_options.split(b",")):
        # syncfs(2) on such a mount does nothing (fs/overlayfs/super.c ovl_sync_fs).
        _syncfs(upper)


def _syncfs(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


def after_umount(entry: mountinfo.Mount) -> None:
    """Remove the default work directory of a mount that has ended, unless it holds what must outlive it."""
    # The option string is shown as it was given to mount(2).
    upper, work = (unescape(entry.option(name) or "") for name in ("upperdir", "workdir"))
    if not work:
        return
    try:
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return  # an ephemeral mount's, gone with it
    _remove_volatile(f"{work}/work/incompat/volatile")
    WorkDirectory(fd, work).close()
    if work == default_work_path(upper):
        for path in (f"{work}/work", f"{work}/index", work):
            try:
                os.rmdir(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                    _log.warning("cannot remove '%s': %s", path, error.strerror)


def _remove_volatile(mark: str) -> None:
    """The mount ended in order: what is in UPPER is what was written (overlayfs.rst, "Volatile mount")."""
    try:
        os.chmod(os.path.dirname(os.path.dirname(mark)), 0o700)
        os.unlink(f"{mark}/dirty")
        os.rmdir(mark)
        os.rmdir(os.path.dirname(mark))
    except OSError:
        pass  # the mount was not volatile


@contextmanager
def _tmpfs(options: Options, prepared: Prepared) -> Iterator[str]:
    """A tmpfs for what the user need not see; it is in sight only until the overlay is mounted."""
    top = tempfile.mkdtemp(prefix="fuseunion-")
    try:
        size = f",size={options.size}" if options.size else ""
        try:
            syscalls.mount(b"tmpfs", os.fsencode(top), b"tmpfs", 0, f"mode=0700{size}".encode())
        except OSError as error:
            raise _cannot(_explain(error, prepared)) from None
        try:
            st = os.fstat(prepared.lowers[0].fd)
            os.mkdir(f"{top}/upper", 0o700)
            os.mkdir(f"{top}/work", 0o700)
            os.chmod(f"{top}/upper", stat.S_IMODE(st.st_mode) | 0o700)
            yield top
        finally:
            syscalls.umount2(os.fsencode(top), syscalls.MNT_DETACH)
    finally:
        os.rmdir(top)


def _prefix(prepared: Prepared) -> bytes:
    """Which marks overlayfs shall use: found by setting one."""
    if prepared.work is None:
        return b"user.overlay." if not namespaces.in_first_user_namespace() else b"trusted.overlay."
    work = WorkDirectory(os.dup(prepared.work.fd), prepared.work.label)
    try:
        capabilities = work.capabilities
    finally:
        work.close()
    where = f"the filesystem of '{prepared.work.label}' ({mountinfo.filesystem_of(prepared.work.label)})"
    if capabilities.xattr_prefix is None:
        raise _cannot(f"{where} has no extended attributes")
    if not capabilities.whiteout_devices:
        raise _cannot(f"{where} takes no 0/0 devices, which whiteouts are")
    return capabilities.xattr_prefix


def _flags(options: Options) -> int:
    as_root = os.geteuid() == 0
    return (
        (syscalls.MS_RDONLY if options.read_only else 0)
        | (0 if (as_root if options.suid is None else options.suid) else syscalls.MS_NOSUID)
        | (0 if options.dev else syscalls.MS_NODEV)
        | (0 if options.exec else syscalls.MS_NOEXEC)
        | _access_time_flags(options)
    )


def _access_time_flags(options: Options) -> int:
    """Access times of the upper; those of a lower are never changed (overlayfs.rst, "Non-standard behavior")."""
    if not options.wants_access_times:
        return syscalls.MS_NOATIME
    flags = {
        "nodiratime": syscalls.MS_NODIRATIME,
        "relatime": syscalls.MS_RELATIME,
        "strictatime": syscalls.MS_STRICTATIME,
        "lazytime": syscalls.MS_LAZYTIME,
    }
    # Without any of these it is relatime (mount(2)).
    return sum(flags.get(word, 0) for word in options.access_times)


# -- what the layers hold --------------------------------------------------------------------------------------------


def _refuse_marks(prepared: Prepared, prefix: bytes) -> None:
    """Look for marks that the kernel would not understand; the lowest layer has nothing to hide.

    Raises:
        UserError: UNAVAILABLE, with the file and the mark.
    """
    opened = [*([prepared.upper] if prepared.upper is not None else []), *prepared.lowers]
    for one in opened[:-1]:
        layer = Layer(os.dup(one.fd), writable=False, label=one.label)
        try:
            found = _foreign_mark(layer.root, prefix)
        finally:
            layer.close()
        if found is not None:
            path, mark = found
            where = os.path.join(one.label, os.fsdecode(path))
            raise _cannot(f"'{where}' carries {mark}, which it would not understand; the other engines do")


def _foreign_mark(root: RealDir, prefix: bytes) -> tuple[bytes, str] | None:
    pending = [(root, b"")]
    while pending:
        directory, path = pending.pop()
        mark = _mark_on(b"/proc/self/fd/%d" % directory.fd(), prefix)
        if mark is not None:
            return path, mark
        for name in directory.names():
            way = path + b"/" + name if path else name
            if name.startswith(AUFS_PREFIX):
                return way, "the whiteout of another format"
            st = directory.stat(name)
            if st is not None and stat.S_ISDIR(st.st_mode):
                pending.append((directory.child(name), way))
            elif st is not None and stat.S_ISREG(st.st_mode) and st.st_size == 0:
                mark = _mark_on(directory.proc_path(name), prefix, whiteout_only=True)
                if mark is not None:
                    return way, mark
    return None


def _mark_on(path: bytes, prefix: bytes, *, whiteout_only: bool = False) -> str | None:
    try:
        names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=not whiteout_only)]
    except OSError:
        return None
    for name in names:
        for candidate in (b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."):
            suffix = name[len(candidate) :]
            if not name.startswith(candidate) or suffix not in _MEANING:
                continue
            if candidate != prefix or (suffix == xattr_names.REDIRECT and prefix == b"user.overlay."):
                return f"the attribute {name.decode()}"
    return None


# -- what the user is told -------------------------------------------------------------------------------------------


def _cannot(reason: str) -> UserError:
    return UserError(f"kernel overlayfs: {reason}", ExitCode.UNAVAILABLE)


def _explain(error: OSError, prepared: Prepared) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "you may not mount here; run in a user namespace: unshare --map-root-user --mount"
    if error.errno == errno.ENODEV:
        return "this kernel has none; load it with: modprobe overlay"
    if error.errno == errno.EINVAL and prepared.upper is not None:
        fstype = mountinfo.filesystem_of(prepared.upper.label)
        return f"the filesystem of the upper '{prepared.upper.label}' ({fstype}) cannot serve as one, or see dmesg"
    if error.errno == errno.ELOOP:
        return "layers lie inside one another"
    return f"mount: {error.strerror}"
