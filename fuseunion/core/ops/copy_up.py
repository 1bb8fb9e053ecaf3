"""Lower to upper, in three parts: prepare (event loop), move (worker thread), publish (event loop).

    prepare   open the lower file, make an empty one in work, owned by nobody else (mode 0600)
    move      data, xattrs, owner, mode, times, fsync; touches only its own two descriptors
    publish   one rename into the upper, then the parent's times as they were

Each step is undone when a later one fails, and a crash leaves garbage in work and nothing else. The order is that of
fs/overlayfs/copy_up.c, but for the owner: xattrs after data and owner, because writing and chown(2) clear
security.capability; the mode after the owner, because chown clears set-user-ID, and after the xattrs, because a mode
without write permission keeps a user from setting them; times last; fsync before the rename, so that the name never
leads to a torn file.

What is copied is what the lower shows: where lower or upper stores ownership (core/ownership), owner, mode, device
number and the names of attributes take the form that the upper keeps them in.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import AbstractContextManager, ExitStack, nullcontext

from fuseunion.core.disk import copy_data
from fuseunion.core.disk.descriptors import PER_COPY
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir, proc_fd
from fuseunion.core.disk.work import as_owner, times_kept
from fuseunion.core.marks import origin_mark
from fuseunion.core.marks.link_index import INODE, LinkGroup, key_of
from fuseunion.core.ops import metadata
from fuseunion.core.ops.attributes import Change, facts_after, stat_of, times_after
from fuseunion.core.ownership import Facts
from fuseunion.core.tree.inode import Directory, File
from fuseunion.core.tree.lookup import covering, lower_name
from fuseunion.core.tree.state import State, Upper
from fuseunion.linux.os_error import os_error

# Below this a copy without fsync takes less time than handing it to a thread.
_INLINE_BYTES = 128 * 1024
_PATH_MAX = 4095


class CopyJob:
    """The copy-up of one regular file, with the change that made it necessary.

    The change is made to the copy before anybody sees it, so that what fails on the way leaves the file as it was: a
    truncated copy, above all, is published only when nothing can go wrong any more.

    Args:
        change: what is to be different in the copy, or None.
    """

    def __init__(self, state: State, file: File, change: Change | None) -> None:
        self._state = state
        self._upper = state.writable()
        self._file = file
        self._change = change or Change()
        assert file.lower is not None
        self._source = self._target = -1
        self._name: bytes | None = None
        state.descriptors.take_for_copy()
        try:
            self._source = file.open(os.O_RDONLY)
            self._st = os.fstat(self._source)
            self._shown = stat_of(state, file)
            self._lower = state.layer_of(file)
            wanted = self._change.size
            self.size = self._st.st_size if wanted is None else min(wanted, self._st.st_size)
            self._name = self._upper.work.new_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._target = os.open(self._name, flags, 0o600, dir_fd=self._upper.work.tmp.fd())
        except BaseException:
            self.close()
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
        if self._change.size is not None:
            os.ftruncate(self._target, self._change.size)
        _clothe(self._state, self._file, self._lower, self._source, self._target, self._shown, self._change)
        if self.size and not shared and not self._state.settings.volatile:
            os.fsync(self._target)
            if self._upper.layer.ownership is not None:
                self._upper.layer.ownership.sync()

    def publish(self) -> None:
        """Show the copy; the file may have been removed or renamed in the meantime.

        Raises:
            OSError: nothing has changed then.
        """
        assert self._name is not None
        publish(self._state, self._file, self._name, self._st)
        self._name = None
        for handle in self._file.handles:
            handle.switch(self._target)

    def close(self) -> None:
        """Undo what is not published, and close the descriptors. Called once."""
        self._state.descriptors.give_back(PER_COPY)
        if self._name is not None and self._target >= 0:
            self._upper.work.unlink(self._name)
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)


def _clothe(
    state: State,
    inode: File | Directory,
    lower: Layer,
    source: int,
    target: int,
    shown: os.stat_result,
    change: Change,
) -> None:
    """Owner, marks, xattrs, mode and times of a finished copy that is still in work.

    The mode comes after all xattrs: a user's attributes, and so the marks of a daemon that is the copy's plain owner,
    need write permission on it (fs/xattr.c xattr_permission).

    Args:
        lower: the layer that the copy is made from.
        source, target: descriptors, O_PATH or not.
        shown: what lstat shows of the lower object.
        change: what is to be different.
    """
    upper = state.writable()
    facts = facts_after(Facts.of(shown), change)
    settings = state.settings
    given = metadata.give_owner(target, facts, upper.layer, settings.identity, optional=settings.owner_optional)
    prefix = upper.work.capabilities.xattr_prefix
    if prefix is not None:
        if isinstance(inode, Directory):
            metadata.mark_merged(target, prefix)
        origin_mark.write(target, prefix, inode.ino, shown.st_ctime_ns)
    metadata.copy_xattrs(
        source,
        target,
        lower,
        upper.layer,
        without_capability=change.ends_privileges,
        owner_optional=settings.owner_optional,
    )
    metadata.give_mode(target, given, upper.layer)
    os.utime(proc_fd(target), ns=times_after(shown, change))


def publish(state: State, file: File, temporary: bytes, lower_st: os.stat_result) -> None:
    """Put a finished copy from work in the place of all the known names of a lower file.

    Raises:
        OSError: nothing has changed then, and the copy is still in work.
    """
    upper = state.writable()
    tmp = upper.work.tmp
    st = os.stat(temporary, dir_fd=tmp.fd(), follow_symlinks=False)
    places = list(file.places())
    group = file.group
    place: tuple[RealDir, bytes] | None = None
    pin = -1
    with ExitStack() as undo:
        if file.link_key is not None or (places and not _can_be_marked(upper, file)):
            if group is None:
                key = file.link_key or key_of(file.ino, lower_st)
                group = upper.links.get_or_new(key, file.ino, lower_st.st_nlink)
            group.add_copy(tmp, temporary, st)
            undo.callback(group.drop_copy)
        if places:
            directory, name = places[0]
            target = copy_up_directory(state, directory)
            place = (target, name)
            with _covering(state, group, directory, name), times_kept(target):
                upper.work.publish(temporary, target, name)
        elif not file.handles:
            pin = tmp.hold(temporary)
        undo.pop_all()
    # Everybody sees the copy from here on: nothing may fail any more.
    if place is None:
        upper.work.unlink(temporary)
    file.group = group
    file.upper = place
    file.pin = pin
    file.disk_id = (st.st_dev, st.st_ino)
    file.absent_xattrs = frozenset()
    file.stale()
    if group is not None:
        state.table.note_names(file)
    for directory, name in places[1:]:
        try_link_name(state, file, directory, name)


def _can_be_marked(upper: Upper, file: File) -> bool:
    """user.* may only lie on regular files and directories (fs/xattr.c xattr_permission)."""
    capabilities = upper.work.capabilities
    regular = stat.S_ISREG(metadata.real_kind(file.kind, upper.layer))
    return capabilities.trusted_xattrs or (capabilities.user_xattrs and regular)


def _covering(state: State, group: LinkGroup | None, directory: Directory, name: bytes) -> AbstractContextManager[None]:
    """Count a lower name of a link group as gone while the upper's takes its place in the block."""
    found = lower_name(state, directory, name) if group is not None else None
    return nullcontext() if found is None or group is None else covering(state, group, found[0], name)


def link_name(state: State, file: File, directory: Directory, name: bytes) -> None:
    """Link one more name of a lower file, which was copied up under another, into the upper.

    So every reader of the upper sees as much of the link group as is known.

    Raises:
        OSError: EROFS, ENOSPC, EDQUOT, EMLINK, EACCES; the name then goes on showing the copy through the link index.
    """
    target = copy_up_directory(state, directory)
    if target.stat(name) is not None:
        return
    with _covering(state, file.group, directory, name), times_kept(target):
        link_into(file, target, name)
    file.upper = (target, name)
    file.stale()


def try_link_name(state: State, file: File, directory: Directory, name: bytes) -> None:
    """`link_name` where it is a service to others and not what the user asked for: a failure is logged."""
    try:
        link_name(state, file, directory, name)
    except OSError as error:
        state.log.warning("name %r of a copied-up file stays out of the upper: %s", name, error)


def link_into(file: File, target: RealDir, name: bytes) -> None:
    """Make one more link of an object of the upper.

    Raises:
        OSError: as linkat(2); ENOENT for an object without any link.
    """
    place = file.location()
    if place is None and file.group is not None:
        place = (file.group.directory, INODE)
    if place is not None:
        try:
            os.link(place[1], name, src_dir_fd=place[0].fd(), dst_dir_fd=target.fd(), follow_symlinks=False)
            return
        except PermissionError as error:
            if error.errno != errno.EACCES:
                raise
    # The name lies in a directory that its owner closed.
    with file.grasp() as fd:
        as_owner(lambda: os.link(proc_fd(fd), name, dst_dir_fd=target.fd(), follow_symlinks=True), target)


def readlink(file: File) -> bytes:
    """The target of a symbolic link, real or stored (then it is the content of a regular file)."""
    with file.grasp() as fd:
        try:
            return os.readlink(b"", dir_fd=fd)
        except OSError as error:
            # readlinkat(2): an empty path names the descriptor itself, which must hold a link.
            if error.errno not in (errno.EINVAL, errno.ENOENT) or not stat.S_ISLNK(file.kind):
                raise
    fd = file.open(os.O_RDONLY)
    try:
        return os.read(fd, _PATH_MAX)
    finally:
        os.close(fd)


def copy_up_special(state: State, file: File, change: Change | None) -> None:
    """Copy up a symbolic link, device, fifo or socket, with the change that made it necessary.

    Raises:
        OSError: EPERM for a device node that the daemon may not make.
    """
    upper = state.writable()
    assert file.lower is not None
    st = stat_of(state, file)
    tmp = upper.work.tmp
    temporary = upper.work.new_name()
    if stat.S_ISLNK(file.kind):
        os.symlink(readlink(file), temporary, dir_fd=tmp.fd())
    else:
        os.mknod(temporary, metadata.real_kind(file.kind, upper.layer) | 0o600, st.st_rdev, dir_fd=tmp.fd())
    try:
        with file.grasp() as source, tmp.held(temporary) as target:
            _clothe(state, file, state.layer_of(file), source, target, st, change or Change())
        publish(state, file, temporary, st)
    except BaseException:
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
        raise os_error(errno.ENOENT)
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
    st = stat_of(state, directory)
    work = upper.work
    temporary = work.new_name()
    os.mkdir(temporary, 0o700, dir_fd=work.tmp.fd())
    try:
        with directory.grasp() as source, work.tmp.held(temporary) as target:
            _clothe(state, directory, directory.top.layer, source, target, st, Change())
        with times_kept(parent):
            work.publish(temporary, parent, directory.name)
    except BaseException:
        work.remove_tree(temporary)
        raise
    directory.absent_xattrs = frozenset()
    # The number and what is shown stay; only the place where they are read changes.
    directory.stale()
    return parent.child(directory.name)
