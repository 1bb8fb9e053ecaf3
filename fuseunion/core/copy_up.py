"""Lower to upper, in three parts: prepare (event loop), move (worker thread), publish (event loop).

    prepare   open the lower file, make an empty one in work, owned by nobody else (mode 0600)
    move      data, xattrs, owner, mode, times, fsync; touches only its own two descriptors
    publish   one rename into the upper, then the parent's times as they were

Each step is undone when a later one fails, and a crash leaves garbage in work and nothing else. The order is that of
fs/overlayfs/copy_up.c, but for the owner: xattrs after data and owner, because writing and chown(2) clear
security.capability; the mode after the owner, because chown clears set-user-ID; times last; fsync before the rename,
so that the name never leads to a torn file.

What is copied is what the lower shows: where lower or upper stores ownership (core/ownership), owner, mode, device
number and the names of attributes take the form that the upper keeps them in.
"""

from __future__ import annotations

import errno
import os
import stat

from fuseunion.core import copy_data, metadata, origin
from fuseunion.core.attributes import stat_of
from fuseunion.core.inode import Directory, File
from fuseunion.core.layer import Layer
from fuseunion.core.links import INODE, key_of
from fuseunion.core.lookup import cover, lower_name
from fuseunion.core.ownership import Facts
from fuseunion.core.realdir import RealDir, lent
from fuseunion.core.state import State, Upper
from fuseunion.core.work import times_kept, with_own_permission

# Below this a copy without fsync takes less time than handing it to a thread.
_INLINE_BYTES = 128 * 1024
_PATH_MAX = 4095


class CopyJob:
    """The copy-up of one regular file.

    Args:
        limit: copy no more than so many bytes, because the file is about to be truncated to them.
    """

    def __init__(self, state: State, file: File, limit: int | None) -> None:
        self._state = state
        self._upper = state.writable()
        self._file = file
        assert file.lower is not None
        self._source = file.open(os.O_RDONLY)
        self._target = -1
        self._name: bytes | None = None
        try:
            self._st = os.fstat(self._source)
            self._facts = Facts.of(stat_of(state, file))
            self._lower = state.layer_of(file)
            self.size = self._st.st_size if limit is None else min(limit, self._st.st_size)
            self._name = self._upper.work.new_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._target = os.open(self._name, flags, 0o600, dir_fd=self._upper.work.tmp.fd())
        except BaseException:
            self.abort()
            raise

    @property
    def quick(self) -> bool:
        """True when `move` takes no longer than a usual request."""
        return self.size == 0 or (self._state.settings.volatile and self.size <= _INLINE_BYTES)

    def move(self) -> None:
        """The slow part; may run in any thread.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO; EPERM or EINVAL when owner or attributes cannot be kept.
        """
        shared = copy_data.copy(self._source, self._target, self.size, self._st.st_size)
        self._mark_origin()  # before the mode, which may take the permission to write attributes
        _clothe(self._state, self._lower, self._source, self._target, self._facts)
        metadata.copy_times(self._target, self._st)
        if self.size and not shared and not self._state.settings.volatile:
            os.fsync(self._target)
            if self._upper.layer.ownership is not None:
                self._upper.layer.ownership.sync()

    def _mark_origin(self) -> None:
        prefix = self._upper.work.capabilities.xattr_prefix
        if prefix is not None:
            ino = os.fstat(self._target).st_ino
            origin.write(self._target, prefix, ino, self._file.ino, self._st.st_ctime_ns, b"")

    def publish(self) -> None:
        """Show the copy; the file may have been removed or renamed in the meantime."""
        assert self._name is not None
        try:
            publish(self._state, self._file, self._name, self._st)
        finally:
            if self._file.in_upper:
                self._name = None
                for handle in self._file.handles:
                    handle.switch(self._target)
            self.abort()

    def abort(self) -> None:
        """Undo what is not published, and close the descriptors."""
        if self._name is not None and self._target >= 0:
            self._upper.work.unlink(self._name)
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)
        self._name, self._source, self._target = None, -1, -1


def _clothe(state: State, lower: Layer, source: bytes | int, target: bytes | int, facts: Facts) -> None:
    """Owner, mode and xattrs of a finished copy that is still in work."""
    upper, optional = state.writable().layer, state.settings.owner_optional
    given = metadata.give_owner(target, facts, upper, state.settings.identity, optional=optional)
    metadata.copy_xattrs(source, target, lower, upper, optional=optional)
    metadata.give_mode(target, given, upper)


def publish(state: State, file: File, temporary: bytes, lower_st: os.stat_result) -> None:
    """Put a finished copy from work in the place of all the known names of a lower file."""
    upper = state.writable()
    tmp = upper.work.tmp
    st = os.stat(temporary, dir_fd=tmp.fd(), follow_symlinks=False)
    places = list(file.places())
    if file.link_key is not None or (places and not _can_be_marked(upper, file)):
        if file.group is None:
            key = file.link_key or key_of(file.ino, lower_st)
            file.group = upper.links.get_or_new(key, file.ino, lower_st.st_nlink)
        file.group.add_copy(tmp, temporary, st)
    if not places:
        file.pin = os.open(temporary, os.O_PATH | os.O_NOFOLLOW, dir_fd=tmp.fd())
        os.unlink(temporary, dir_fd=tmp.fd())
        file.upper = None
    else:
        directory, name = places[0]
        target = copy_up_directory(state, directory)
        _cover(state, file, directory, name)
        with times_kept(target):
            with_own_permission(target, None, lambda: upper.work.publish(temporary, target, name))
        file.upper = (target, name)
    file.disk_id = (st.st_dev, st.st_ino)
    file.absent_xattrs = frozenset()
    file.stale()
    for directory, name in places[1:]:
        try_link_name(state, file, directory, name)


def _can_be_marked(upper: Upper, file: File) -> bool:
    """user.* may only lie on regular files and directories (fs/xattr.c xattr_permission)."""
    capabilities = upper.work.capabilities
    regular = stat.S_ISREG(metadata.real_kind(file.kind, upper.layer))
    return capabilities.trusted_xattrs or (capabilities.user_xattrs and regular)


def _cover(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Count a lower name of a link group as gone, because the upper's takes its place."""
    if file.group is None:
        return
    found = lower_name(state, directory, name)
    if found is not None:
        cover(state, file.group, found[0], name)


def link_name(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Link one more name of a lower file, which was copied up under another, into the upper.

    So every reader of the upper sees as much of the link group as is known.

    Raises:
        OSError: EROFS, ENOSPC, EDQUOT, EMLINK, EACCES; the name then goes on showing the copy through the link index.
    """
    assert file.group is not None
    source = file.location() or (file.group.directory, INODE)
    target = copy_up_directory(state, directory)
    if target.stat(name) is not None:
        return
    _cover(state, file, directory, name)
    with times_kept(target):
        with_own_permission(target, None, lambda: _link(source, target, name))
    file.upper = (target, name)
    file.stale()


def try_link_name(state: State, file: File, directory: Directory, name: bytes) -> None:
    """`link_name` where it is a service to others and not what the user asked for: a failure is logged."""
    try:
        link_name(state, file, directory, name)
    except OSError as error:
        state.log.warning("name %r of a copied-up file stays out of the upper: %s", name, error)


def _link(source: tuple[RealDir, bytes], target: RealDir, name: bytes) -> None:
    os.link(source[1], name, src_dir_fd=source[0].fd(), dst_dir_fd=target.fd(), follow_symlinks=False)


def readlink(file: File) -> bytes:
    """The target of a symbolic link, real or stored (then it is the content of a regular file)."""
    place = file.location()
    try:
        if place is None:
            return os.readlink(b"", dir_fd=file.pin)
        return os.readlink(place[1], dir_fd=place[0].fd())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT) or not stat.S_ISLNK(file.kind):
            raise
    fd = file.open(os.O_RDONLY)
    try:
        return os.read(fd, _PATH_MAX)
    finally:
        os.close(fd)


def copy_up_special(state: State, file: File) -> None:
    """Copy up a symbolic link, device, fifo or socket.

    Raises:
        OSError: EPERM for a device node that the daemon may not make.
    """
    upper = state.writable()
    assert file.lower is not None
    real, name = file.lower
    st = stat_of(state, file)
    tmp = upper.work.tmp
    temporary = upper.work.new_name()
    if stat.S_ISLNK(file.kind):
        os.symlink(readlink(file), temporary, dir_fd=tmp.fd())
    else:
        os.mknod(temporary, metadata.real_kind(file.kind, upper.layer) | 0o600, st.st_rdev, dir_fd=tmp.fd())
    try:
        path = tmp.proc_path(temporary)
        _clothe(state, state.layer_of(file), real.proc_path(name), path, Facts.of(st))
        prefix = upper.work.capabilities.xattr_prefix
        if prefix is not None:
            ino = os.stat(temporary, dir_fd=tmp.fd(), follow_symlinks=False).st_ino
            origin.write(path, prefix, ino, file.ino, st.st_ctime_ns, b"")
        metadata.copy_times(path, st)
        publish(state, file, temporary, st)
    except BaseException:
        if not file.in_upper:
            upper.work.unlink(temporary)
        raise


def copy_up_directory(state: State, directory: Directory) -> RealDir:
    """The upper's part of a directory, made with all missing ancestors if there is none.

    Raises:
        OSError: EROFS without an upper; ENOENT for a removed directory; of the system calls.
    """
    if directory.upper is not None:
        return directory.upper
    upper = state.writable()
    if directory.removed:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    missing: list[Directory] = []
    node: Directory | None = directory
    while node is not None and node.upper is None:
        missing.append(node)
        node = node.parent
    assert node is not None and node.upper is not None, "the root has an upper"
    made = node.upper
    for node in reversed(missing):
        made = node.upper = _copy_directory(state, upper, made, node)
    return made


def _copy_directory(state: State, upper: Upper, parent: RealDir, directory: Directory) -> RealDir:
    source = directory.lowers[0]
    st = stat_of(state, directory)
    work = upper.work
    temporary = work.new_name()
    os.mkdir(temporary, 0o700, dir_fd=work.tmp.fd())
    try:
        path = work.tmp.proc_path(temporary)
        prefix = work.capabilities.xattr_prefix
        if prefix is not None:
            # Before the mode: a user's attributes need write permission (fs/xattr.c xattr_permission).
            ino = os.stat(temporary, dir_fd=work.tmp.fd()).st_ino
            metadata.mark_merged(path, prefix)
            origin.write(path, prefix, ino, directory.ino, st.st_ctime_ns, b"")
        _clothe(state, source.layer, source.own_path()[0], path, Facts.of(st))
        metadata.copy_times(path, st)
        with times_kept(parent):
            _publish_directory(upper, temporary, parent, directory.name)
    except BaseException:
        work.remove_tree(temporary)
        raise
    directory.absent_xattrs = frozenset()
    # The number and what is shown stay; only the place where they are read changes.
    directory.stale()
    return parent.child(directory.name)


def _publish_directory(upper: Upper, temporary: bytes, parent: RealDir, name: bytes) -> None:
    """Rename a directory from work into the upper.

    Moving a directory to another parent writes its "..", for which a daemon that is its plain owner needs write
    permission on it (rename(2), EACCES): the mode is given back right after.
    """
    work = upper.work
    try:
        work.publish(temporary, parent, name)
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        with lent(os.open(temporary, os.O_PATH | os.O_NOFOLLOW, dir_fd=work.tmp.fd())):
            with_own_permission(parent, None, lambda: work.publish(temporary, parent, name))
