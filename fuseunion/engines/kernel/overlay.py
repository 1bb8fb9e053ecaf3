"""The kernel's own overlayfs, mounted in the namespaces of the caller.

The fastest engine, and the one that can do least: it knows no id maps and no stored ownership, and it reads its own
marks only, those of trusted.overlay. as the initial root, those of user.overlay. in a user namespace (`userxattr`,
which excludes redirects: Documentation/filesystems/overlayfs.rst). So the layers are looked through first, and one
that the kernel would show otherwise than the other engines is refused.

There is no daemon: the mount names "fuseunion" as its source, and `fuseunion umount` removes the default work
directory. The mount holds no lock on directories; other mounts find it in mountinfo (in_use.py). Images stay locked by
their loop devices (fuseunion/images/locks.py).
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format.xattr_names import PREFIXES
from fuseunion.engines.kernel import work_mark
from fuseunion.engines.kernel.foreign_marks import foreign_mark
from fuseunion.engines.kernel.recognise import SOURCE, TYPE
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import mountinfo, namespaces, syscalls
from fuseunion.mounting import log
from fuseunion.mounting.checks import space, volatile
from fuseunion.mounting.handover import complete_links, stored_owners
from fuseunion.mounting.options import ImageChoice, Options
from fuseunion.mounting.options.grammar import escape
from fuseunion.mounting.prepare import prepare
from fuseunion.mounting.prepared import Opened, Prepared

_PREFIX_OF_ROOT, _PREFIX_OF_OTHERS = PREFIXES

_PAGE = 4095
"""What mount(2) takes as data."""


def show(options: Options) -> None:
    """Mount what the options ask for.

    Raises:
        UserError: UNAVAILABLE with the reason why overlayfs cannot be used for this, LAYERS, BUSY.
    """
    with ExitStack() as stack:
        # A private tmpfs of prepare.py is mounted nowhere, and overlayfs takes no upper that is mounted nowhere.
        plain = options._replace(ephemeral=False, size=None, read_only=True) if options.ephemeral else options
        # What a program shows has no path that overlayfs could take.
        prepared = prepare(plain._replace(images=ImageChoice.KERNEL))
        undo = stack.enter_context(ExitStack())
        undo.callback(prepared.close)
        stored = stored_owners(prepared)
        if stored is not None:
            raise _cannot(f"'{stored}' keeps owners in attributes or a database, which it cannot read")
        prefix = _prefix(prepared)
        path = _path_of(prepared)
        lowers = [path(opened) for opened in prepared.lowers]
        if prepared.full is not None and prepared.upper is not None:
            lowers.insert(0, path(prepared.upper))
        if len(lowers) == 1 and prepared.upper is None and not options.ephemeral:
            # Without an upper overlayfs wants two lowers: an empty one is added.
            lowers.append(stack.enter_context(_tmpfs(options, prepared)) + "/upper")
        words = ["lowerdir=" + ":".join(map(escape, lowers))]
        if options.ephemeral:
            top = stack.enter_context(_tmpfs(options, prepared))
            words += [f"upperdir={top}/upper", f"workdir={top}/work"]
        elif prepared.upper is not None and prepared.work is not None:
            words += [f"upperdir={escape(path(prepared.upper))}", f"workdir={escape(path(prepared.work))}"]
            volatile.clear(prepared.work.fd)
            if not prepared.has_image_upper:
                work_mark.put(prepared.work.fd, prepared.upper.fd)
        if prefix == _PREFIX_OF_OTHERS:
            words.append("userxattr")
        asked = [f"{name}=on" for name in ("redirect_dir", "metacopy") if getattr(options, name)]
        if asked and prepared.full is None and (prepared.upper is not None or options.ephemeral):
            if prefix == _PREFIX_OF_OTHERS:
                raise _cannot(f"it has no {' and no '.join(asked)} in a user namespace")
            words += asked
        if options.volatile and not options.ephemeral:
            words.append("volatile")
        _refuse_marks(prepared, prefix)
        complete_links(prepared)
        data = os.fsencode(",".join(words))
        if len(data) > _PAGE:
            raise _cannot(f"the paths of all layers are longer together than the {_PAGE} bytes that it takes")
        flags = _flags(options) | (syscalls.MS_RDONLY if prepared.full is not None else 0)
        try:
            if prepared.images:
                from fuseunion.engines.kernel import over_images

                over_images.mount(prepared, TYPE.encode(), SOURCE.encode(), flags, data)
            else:
                syscalls.mount(SOURCE.encode(), os.fsencode(prepared.target), TYPE.encode(), flags, data)
        except OSError as error:
            raise _cannot(_explain(error, prepared)) from None
        # The work directory is the mount's from now on; the locks end with this process.
        undo.pop_all()
        prepared.keep()
        if prepared.full is not None:
            log.tell(f"warning: {prepared.full}")
        if prepared.full is not None and not prepared.has_image_upper:
            # There is nothing that `umount` would have to leave in order; the images are the mount's too.
            prepared.apart = True
            prepared.close()
        else:
            prepared.let_go_of_images()


def _path_of(prepared: Prepared) -> Callable[[Opened], str]:
    """How overlayfs is told of a layer."""
    if not prepared.images:
        return lambda opened: opened.label
    from fuseunion.engines.kernel import over_images  # most mounts have no images

    return partial(over_images.path_of, prepared)


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
    """Which marks overlayfs is to use: found by setting one."""
    if prepared.work is None:
        return _PREFIX_OF_ROOT if namespaces.in_first_user_namespace() else _PREFIX_OF_OTHERS
    try:
        work = WorkDirectory(os.dup(prepared.work.fd), prepared.work.label)
    except OSError as error:
        assert prepared.upper is not None
        space.refuse_if_needed(error, prepared.upper.label, prepared.work.label, prepared.work.fd)
        if not space.is_lacking(error):
            raise
        prepared.give_up_writing(error)
        return _PREFIX_OF_ROOT if namespaces.in_first_user_namespace() else _PREFIX_OF_OTHERS
    try:
        capabilities = work.capabilities
    finally:
        work.close()
    where = f"the filesystem of '{prepared.work.label}' ({_filesystem(prepared.work)})"
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


def _refuse_marks(prepared: Prepared, prefix: bytes) -> None:
    """Refuse layers with marks that the kernel would not understand; the lowest layer has nothing to hide."""
    opened = [*([prepared.upper] if prepared.upper is not None else []), *prepared.lowers]
    for one in opened[:-1]:
        found = foreign_mark(one, prefix)
        if found is not None:
            where, mark = found
            raise _cannot(f"'{where}' carries {mark}, which it would not understand; the other engines do")


def _cannot(reason: str) -> UserError:
    return UserError(f"kernel overlayfs: {reason}", ExitCode.UNAVAILABLE)


def _explain(error: OSError, prepared: Prepared) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "you may not mount here; run in a user namespace: unshare --map-root-user --mount"
    if error.errno == errno.ENODEV:
        return "this kernel has none; load it with: modprobe overlay"
    if error.errno == errno.EINVAL and prepared.upper is not None:
        fstype = _filesystem(prepared.upper)
        return f"the filesystem of the upper '{prepared.upper.label}' ({fstype}) cannot serve as one, or see dmesg"
    if error.errno == errno.ELOOP:
        return "layers lie inside one another"
    return f"mount: {error.strerror}"


def _filesystem(opened: Opened) -> str:
    """The type of the filesystem of a layer, for a message."""
    return mountinfo.filesystem_type(os.fstat(opened.fd).st_dev) or "in an image"
