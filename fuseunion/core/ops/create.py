"""New objects and names: create, mkdir, mknod, symlink, link, and files without a name.

An object is never seen half made. Where its owner is the daemon's own, no ownership is stored and nothing lies in its
place, one system call makes it in the upper as it is to be, and the upper's filesystem does the inheriting
(set-group-ID directories, default ACLs, umask). Otherwise it is made in work, closed to everybody, gets owner, ACL and
mode, and enters the upper by one rename: over a whiteout where there is one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from fuseunion.core.copying import metadata
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.wh_files import OPAQUE, is_reserved
from fuseunion.core.format import xattr_names
from fuseunion.core.ids import acl
from fuseunion.core.ops.attributes import stat_of
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.link_names import link_into, number_kept
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.handle import FileHandle
from fuseunion.core.tree.inode import NEEDS_NO_PATH, Inode
from fuseunion.core.tree.lookup import resolve_in
from fuseunion.core.tree.place import Held, InUpper
from fuseunion.core.tree.state import State, Upper
from fuseunion.linux.objects.real_object import OpenObject, RealObject
from fuseunion.linux.objects.recognition import DiskId
from fuseunion.linux.os_error import os_error

_Make = Callable[[bytes, int, int], int | None]
"""`make(name, dirfd, mode)` does the system call and may return a descriptor."""


class Owner(NamedTuple):
    """Who makes an object: ids as they are kept on disk, and the umask that is still to be applied (0 if none)."""

    uid: int
    gid: int
    umask: int


class _Place(NamedTuple):
    """Where an object goes, and what lies there."""

    directory: Directory
    upper: RealDir
    name: bytes
    device: bool  # a whiteout device or xwhiteout is in the way
    hidden: bool  # a lower name is hidden here, so that a directory has to be opaque


def check_name(name: bytes) -> None:
    """Refuse names that cannot be kept.

    Raises:
        OSError: ENAMETOOLONG; EINVAL for names that are whiteouts to others.
    """
    if len(name) > 255:
        raise os_error(errno.ENAMETOOLONG, name)
    if is_reserved(name):
        raise os_error(errno.EINVAL, name)


def _place(state: State, directory: Directory, name: bytes) -> _Place:
    check_name(name)
    state.writable()
    if directory.removed:
        raise os_error(errno.ENOENT, name)
    if name in directory.children:
        raise os_error(errno.EEXIST, name)
    upper = directory.upper
    device = upper is not None and upper.stat(name) is not None
    # Without lowers all has been said, but of what lies there.
    if (device or directory.lowers) and resolve_in(state, directory, name) is not None:
        raise os_error(errno.EEXIST, name)
    if upper is None:
        upper = copy_up_directory(state, directory)
    return _Place(directory, upper, name, device, device or upper.hides(name))


def default_acl(state: State, directory: Directory) -> bytes:
    """The default ACL of a directory, b"" when it has none."""
    known = directory.default_acl
    if known is None:
        known = b""
        if state.settings.acl:
            try:
                with directory.grasp() as held:
                    known = held.getxattr(xattr_names.POSIX_ACL_DEFAULT)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                    raise
        directory.default_acl = known
    return known


def _make(state: State, place: _Place, mode: int, owner: Owner, make: _Make, rdev: int = 0) -> int | None:
    if (
        not place.hidden
        and owner.uid == state.uid
        and owner.gid == state.gid
        and state.writable().layer.ownership is None
    ):
        before = os.umask(owner.umask)
        try:
            return make(place.name, place.upper.fd(), mode)
        finally:
            os.umask(before)
    return _make_in_work(state, place, mode, owner, make, rdev)


def _inherited(state: State, directory: Directory, mode: int, owner: Owner, rdev: int) -> tuple[Facts, acl.Inherited]:
    """What a new object of a directory gets besides its data."""
    kind = stat.S_IFMT(mode)
    parent_st = stat_of(state, directory)
    gid = owner.gid
    permissions = stat.S_IMODE(mode)
    if parent_st.st_mode & stat.S_ISGID:
        gid = parent_st.st_gid
        if kind == stat.S_IFDIR:
            permissions |= stat.S_ISGID
    inherited = acl.inherit(default_acl(state, directory) or None, kind | permissions, owner.umask)
    return Facts(owner.uid, gid, stat.S_IMODE(inherited.mode), kind, rdev), inherited


def _give(state: State, new: RealObject, facts: Facts, inherited: acl.Inherited, *, opaque: bool = False) -> None:
    """Give a new object that nobody sees what it gets besides its data."""
    upper = state.writable()
    is_directory = facts.kind == stat.S_IFDIR
    metadata.give_owner(new, new.stat(), facts, upper.layer, state.settings.identity)
    # Marks before ACL and mode, which may deny the daemon, as the plain owner, to write them.
    if is_directory and opaque:
        upper.whiteouts.make_opaque(new)
    if inherited.default is not None and is_directory:
        new.setxattr(xattr_names.POSIX_ACL_DEFAULT, inherited.default)
    if inherited.access is not None:
        new.setxattr(xattr_names.POSIX_ACL_ACCESS, inherited.access)
    metadata.give_mode(new, facts, upper.layer)


def _make_in_work(state: State, place: _Place, mode: int, owner: Owner, make: _Make, rdev: int) -> int | None:
    upper = state.writable()
    work = upper.work
    kind = stat.S_IFMT(mode)
    facts, inherited = _inherited(state, place.directory, mode, owner, rdev)
    temporary = work.new_name()
    fd = make(
        temporary, work.tmp.fd(), metadata.real_kind(kind, upper.layer) | (0o700 if kind == stat.S_IFDIR else 0o600)
    )
    try:
        with work.tmp.held(temporary) as new:
            _give(state, new, facts, inherited, opaque=place.hidden)
        is_directory = kind == stat.S_IFDIR
        upper.whiteouts.install(temporary, place.upper, place.name, is_directory=is_directory, occupied=place.device)
    except BaseException:
        if fd is not None:
            os.close(fd)
        work.remove_tree(temporary)
        raise
    upper.whiteouts.drop_file_mark(place.upper, place.name)
    return fd


def _register(state: State, place: _Place, kind: int, fd: int = -1) -> Inode:
    """Make the inode of a new object of a type; one that cannot be looked at is taken away again.

    Args:
        fd: of the object, where it is open: if its name leads to another already, the next call finds out.

    Raises:
        OSError: ESTALE when the name has come to lead to another object.
    """
    try:
        st = place.upper.stat(place.name) if fd < 0 else os.fstat(fd)
        if st is None:
            raise OSError(errno.EIO, "the new object is not there", place.name)
        shown = place.upper.shown(place.name, st)
    except BaseException as error:
        exchanged = isinstance(error, OSError) and error.errno == errno.ESTALE
        if not exchanged:  # else somebody put another there, which is not ours to remove
            _undo(state, place, kind)
        place.directory.stale()
        raise
    inode: Inode
    disk_id = st.st_dev, st.st_ino
    if stat.S_ISDIR(st.st_mode):
        ino = state.table.free_number(state.numbers.number(*disk_id))
        inode = Directory(ino, place.directory, place.name, place.upper.child(place.name, st), ())
        _enter(state, place.directory, place.name, inode)
    else:
        kind = stat.S_IFMT(shown.st_mode)
        inode = _file_in_upper(state, place.directory, place.upper, place.name, disk_id, kind)
    inode.st = shown
    return inode


def _file_in_upper(state: State, directory: Directory, upper: RealDir, name: bytes, disk_id: DiskId, kind: int) -> File:
    device, number = disk_id
    where = InUpper(upper, name, state.numbers.device(device), number)
    file = File(state.table.free_number(state.numbers.number(device, number)), kind, where)
    file.add_name(directory, name)
    _enter(state, directory, name, file)
    return file


def _enter(state: State, directory: Directory, name: bytes, inode: Inode) -> None:
    inode.absent_xattrs = NEEDS_NO_PATH
    state.table.add(inode)
    directory.children[name] = inode
    directory.stale()


def _undo(state: State, place: _Place, kind: int) -> None:
    """Remove what was just made; what resists stays, and is logged.

    Nothing is in a new directory: one that is not empty was put there by somebody else.
    """
    upper = state.writable()
    try:
        if not place.hidden and kind == stat.S_IFDIR:
            place.upper.rmdir(place.name)
        elif not place.hidden:
            place.upper.unlink(place.name)
        elif kind == stat.S_IFDIR:
            _undo_hiding_directory(upper, place)
        else:
            upper.whiteouts.replace_file(place.upper, place.name)
    except OSError as error:
        state.log.error("%r was made, but could not be looked at nor removed: %s", place.name, error)


def _undo_hiding_directory(upper: Upper, place: _Place) -> None:
    taken = upper.whiteouts.replace_directory(place.upper, place.name)
    names = set(upper.work.tmp.child(taken).names())
    if names - {OPAQUE}:
        upper.whiteouts.install(taken, place.upper, place.name, is_directory=True, occupied=True)
        raise os_error(errno.ENOTEMPTY, place.name)
    upper.work.remove_tree(taken)


def create(state: State, directory: Directory, name: bytes, mode: int, owner: Owner) -> tuple[File, FileHandle]:
    """Make a regular file and open it for reading and writing.

    Raises:
        OSError: EEXIST, EINVAL (a `.wh.` name), ENAMETOOLONG, EROFS, ENOSPC, EDQUOT, EPERM, ENFILE.
    """
    place = _place(state, directory, name)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

    def make(new: bytes, dirfd: int, new_mode: int) -> int:
        return os.open(new, flags, stat.S_IMODE(new_mode), dir_fd=dirfd)

    state.descriptors.take_for_file()
    fd: int | None = None
    try:
        fd = _make(state, place, stat.S_IFREG | stat.S_IMODE(mode), owner, make)
        assert fd is not None
        OpenObject(fd).keep_access_time()  # not an open flag: a file whose owner is another would be made, and refused
        inode = _register(state, place, stat.S_IFREG, fd)
        assert isinstance(inode, File)
        return inode, FileHandle(inode, fd, writable=True)
    except BaseException:
        if fd is not None:
            os.close(fd)
        state.descriptors.give_back()
        raise


def makes_at_once(state: State, directory: Directory) -> bool:
    """Whether a regular file that the daemon's own user makes in a directory is made by one open(2) in the upper, where
    no layer has its name. That stays so."""
    upper = directory.upper
    return (
        upper is not None
        and not directory.removed
        and upper.layer.ownership is None
        and upper.is_known_to_hide_nothing
        and not (upper.exchanged or upper.holds_the_mount)
    )


def take_over(state: State, directory: Directory, name: bytes, fd: int, disk_id: DiskId) -> tuple[File, FileHandle]:
    """The file and its handle, as of `create`, for a file that was made where `makes_at_once` says so.

    Args:
        fd: of the file, open for reading and writing; the handle's, unless this fails.
        disk_id: its st_dev and st_ino.

    Raises:
        OSError: ENFILE.
    """
    upper = directory.upper
    assert upper is not None
    state.descriptors.take_for_file()
    file = _file_in_upper(state, directory, upper, name, disk_id, stat.S_IFREG)
    return file, FileHandle(file, fd, writable=True)


def take_over_directory(state: State, directory: Directory, name: bytes, disk_id: DiskId) -> Directory:
    """As `take_over`, for a directory that was made by mkdir(2) alone."""
    upper = directory.upper
    assert upper is not None
    ino = state.table.free_number(state.numbers.number(*disk_id))
    made = Directory(ino, directory, name, upper.new_child(name, disk_id), ())
    _enter(state, directory, name, made)
    return made


def take_back(state: State, directory: Directory, name: bytes) -> None:
    """Remove a file that was made where `makes_at_once` says so, and that nobody has seen."""
    upper = directory.upper
    assert upper is not None
    _undo(state, _Place(directory, upper, name, device=False, hidden=False), stat.S_IFREG)


def tmpfile(state: State, directory: Directory, mode: int, owner: Owner) -> tuple[File, FileHandle]:
    """Make a regular file without a name, open for reading and writing (open(2), O_TMPFILE); `link` can give it one.

    It gets what a file of the directory would get. It is made in work, whose filesystem is the upper's, so that the
    directory need not be copied up for it (unlike fs/overlayfs/dir.c ovl_tmpfile).

    Raises:
        OSError: EOPNOTSUPP where the upper's filesystem has none; otherwise as `create`.
    """
    upper = state.writable()
    if directory.removed:
        raise os_error(errno.ENOENT, directory.name)
    facts, inherited = _inherited(state, directory, stat.S_IFREG | stat.S_IMODE(mode), owner, 0)
    state.descriptors.take_for_file()
    fd = -1
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=upper.work.tmp.fd())
        new = OpenObject(fd)
        new.keep_access_time()
        _give(state, new, facts, inherited)
        st = new.stat()
        disk_id = state.numbers.device(st.st_dev), st.st_ino
        held = Held(disk_id, not upper.layer.keeps_removed)
        file = File(state.table.free_number(state.numbers.number(*disk_id)), stat.S_IFREG, held)
        file.absent_xattrs = NEEDS_NO_PATH
        state.table.add(file)
        return file, FileHandle(file, fd, writable=True)
    except BaseException:
        if fd >= 0:
            os.close(fd)
        state.descriptors.give_back()
        raise


def mkdir(state: State, directory: Directory, name: bytes, mode: int, owner: Owner) -> Inode:
    """Make a directory: empty, whatever a lower holds under its name. Raises as `create`."""
    place = _place(state, directory, name)

    def make(new: bytes, dirfd: int, new_mode: int) -> None:
        os.mkdir(new, stat.S_IMODE(new_mode), dir_fd=dirfd)

    _make(state, place, stat.S_IFDIR | stat.S_IMODE(mode), owner, make)
    return _register(state, place, stat.S_IFDIR)


def mknod(state: State, directory: Directory, name: bytes, mode: int, rdev: int, owner: Owner) -> Inode:
    """Make a regular file, device, fifo or socket.

    Raises:
        OSError: EPERM for a 0/0 character device, which would be a whiteout (fs/overlayfs/dir.c ovl_mknod);
            otherwise as `create`.
    """
    if stat.S_ISCHR(mode) and rdev == 0:
        raise os_error(errno.EPERM, name)
    place = _place(state, directory, name)

    def make(new: bytes, dirfd: int, new_mode: int) -> None:
        os.mknod(new, new_mode, rdev, dir_fd=dirfd)

    _make(state, place, mode, owner, make, rdev)
    return _register(state, place, stat.S_IFMT(mode))


def symlink(state: State, directory: Directory, name: bytes, target: bytes, owner: Owner) -> Inode:
    """Make a symbolic link. Raises as `create`."""
    place = _place(state, directory, name)

    def make(new: bytes, dirfd: int, _mode: int) -> None:
        os.symlink(target, new, dir_fd=dirfd)

    _make(state, place, stat.S_IFLNK | 0o777, owner, make)
    return _register(state, place, stat.S_IFLNK)


def link(state: State, file: File, directory: Directory, name: bytes) -> File:
    """Give an upper file one more name.

    Precondition: the file was copied up.

    Raises:
        OSError: ENOENT for a file that has no name any more, but for one that never had any; EMLINK; otherwise as
            `create`.
    """
    place = _place(state, directory, name)
    upper = state.writable()
    with number_kept(state, file):
        if place.device:
            temporary = upper.work.new_name()
            link_into(file, upper.work.tmp, temporary)
            try:
                upper.whiteouts.install(temporary, place.upper, name, is_directory=False, occupied=True)
            except BaseException:
                upper.work.unlink(temporary)
                raise
        else:
            link_into(file, place.upper, name)
    upper.whiteouts.drop_file_mark(place.upper, name)
    file.add_name(directory, name)
    if isinstance(file.place, Held):
        file.leads_to(place.upper, name)
    file.stale()
    state.table.note_names(file)
    directory.children[name] = file
    directory.stale()
    return file
