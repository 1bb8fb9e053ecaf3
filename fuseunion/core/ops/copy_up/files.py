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
from contextlib import ExitStack

from fuseunion.core.copying import copy_data, metadata
from fuseunion.core.disk.descriptors import PER_COPY
from fuseunion.core.format.link_entries import key_of
from fuseunion.core.ops.attributes import NO_CHANGE, Change, stat_of
from fuseunion.core.ops.copy_up.directories import copy_up_directory, dress
from fuseunion.core.ops.copy_up.link_names import covering, try_link_name
from fuseunion.core.tree.file import File, kept_open
from fuseunion.core.tree.place import InLower, Location
from fuseunion.core.tree.state import State, Upper
from fuseunion.linux.objects.real_object import OpenObject, RealObject

# Below this a copy without fsync takes less time than handing it to a thread.
_INLINE_BYTES = 128 * 1024
_PATH_MAX = 4095


def is_quick(state: State, size: int) -> bool:
    """True when copying so many bytes takes no longer than a usual request, if it need not wait for a disk."""
    cheap = state.settings.volatile or state.writable().work.capabilities.in_memory
    return size == 0 or (cheap and size <= _INLINE_BYTES)


class CopyJob:
    """The copy-up of one regular file, with the change that made it necessary.

    The change is made to the copy before anybody sees it, so that what fails on the way leaves the file as it was: a
    truncated copy, above all, is published only when nothing can go wrong any more.

    Args:
        change: what is to be different in the copy, or None.

    Attributes:
        source: a descriptor of the lower file; -1 for one that may not be read, and of which nothing is copied but
            what lstat(2) and listxattr(2) say: it is empty, or is to be.
        size: how many bytes of it are to be copied.
    """

    def __init__(self, state: State, file: File, change: Change | None) -> None:
        self._state = state
        self._upper = state.writable()
        self._file = file
        self._change = NO_CHANGE if change is None else change
        assert isinstance(file.place, InLower)
        self.source = self._target = self._attributes = -1
        self._name: bytes | None = None
        state.descriptors.take_for_copy()
        try:
            self._st = self._open_source(file)
            self._lower = state.layer_of(file)
            if file.st is None and file.data is None and self._lower.ownership is None:
                file.st = self._st  # what the next call would ask for
            self._shown = stat_of(state, file)
            size = self._st.st_size
            if file.data is not None:
                self._hold_attributes(file)
                size = min(size, self._shown.st_size)
            wanted = self._change.size
            self.size = size if wanted is None else min(wanted, size)
            self._name = self._upper.work.new_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._target = os.open(self._name, flags, 0o600, dir_fd=self._upper.work.tmp.fd())
            if file.handles:
                OpenObject(self._target).keep_access_time()
        except BaseException:
            self.close()
            raise

    def _open_source(self, file: File) -> os.stat_result:
        """Open the lower file, or hold it where it may not be read and need not be; returns its fstat."""
        try:
            self.source = file.open(os.O_RDONLY)
            return os.fstat(self.source)
        except PermissionError as error:
            if error.errno != errno.EACCES or file.data is not None:
                raise
            st = self._hold_attributes(file)
            if st.st_size and self._change.size != 0:
                raise
            return st

    def _hold_attributes(self, file: File) -> os.stat_result:
        assert isinstance(file.place, InLower)
        self._attributes = file.place.real.hold(file.place.name)
        st = os.fstat(self._attributes)
        file.recognise(st)
        return st

    @property
    def quick(self) -> bool:
        """True when `move` takes no longer than a usual request, if it need not wait for a disk."""
        return is_quick(self._state, self.size)

    def move(self) -> None:
        """The slow part; may run in any thread.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO; EPERM or EINVAL when owner or attributes cannot be kept.
        """
        shared = copy_data.copy(self.source, self._target, self.size, self._st, self._upper.unshared)
        if self._change.size is not None:
            os.ftruncate(self._target, self._change.size)
        source = OpenObject(self.source) if self._attributes < 0 else RealObject(self._attributes)
        target = OpenObject(self._target)
        dress(self._state, self._file, self._lower, source, target, self._shown, self._change)
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
        show(self._state, self._file, self._name, self._st)
        self._name = None
        for handle in self._file.handles:
            handle.switch(self._target)

    def close(self) -> None:
        """Undo what is not published, and close the descriptors. Called once."""
        self._state.descriptors.give_back(PER_COPY)
        if self._name is not None and self._target >= 0:
            self._upper.work.unlink(self._name)
        with ExitStack() as stack:  # close(2) may fail on a network filesystem; the other one is closed all the same
            for fd in (self.source, self._target, self._attributes):
                if fd >= 0:
                    stack.callback(os.close, fd)


def show(state: State, file: File, temporary: bytes, lower_st: os.stat_result, data: InLower | None = None) -> None:
    """Put a finished copy from work in the place of all the known names of a lower file.

    Args:
        data: where the data stays; None for a copy that has it.

    Raises:
        OSError: nothing has changed then, and the copy is still in work.
    """
    upper = state.writable()
    tmp = upper.work.tmp
    st = tmp.object(temporary).stat()
    names = list(file.names())
    group = file.group
    location: Location | None = None
    pin = -1
    with ExitStack() as undo:
        if file.lower_links is not None or (names and not _can_be_marked(upper, file)):
            if group is None:
                key = file.lower_links.key if file.lower_links is not None else key_of(file.ino, lower_st)
                group = upper.links.get_or_new(key, file.ino, lower_st.st_nlink)
            group.add_copy(tmp.object(temporary), st)
            undo.callback(group.drop_copy)
        if names:
            directory, name = names[0]
            target = copy_up_directory(state, directory)
            location = target, name
            with covering(state, group, directory, name), target.times_kept():
                upper.work.install(temporary, target, name)
            directory.stale()  # its times are others where they could not be kept
        elif not file.handles:
            pin = kept_open(tmp.hold(temporary), upper.layer)
        undo.pop_all()
    # Everybody sees the copy from here on: nothing may fail any more.
    if location is None:
        upper.work.unlink(temporary)
    file.group = group
    file.copied_up(location, (st.st_dev, st.st_ino), pin, data, stays_open=not upper.layer.keeps_removed)
    if group is not None:
        state.table.note_names(file)
    for directory, name in names[1:]:
        try_link_name(state, file, directory, name)


def _can_be_marked(upper: Upper, file: File) -> bool:
    """user.* may only lie on regular files and directories (fs/xattr.c xattr_permission)."""
    capabilities = upper.work.capabilities
    regular = stat.S_ISREG(metadata.real_kind(file.kind, upper.layer))
    return capabilities.trusted_xattrs or (capabilities.user_xattrs and regular)


def readlink(file: File) -> bytes:
    """The target of a symbolic link, real or stored (then it is the content of a regular file)."""
    with file.grasp() as held:
        try:
            return held.readlink()
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
    st = stat_of(state, file)
    tmp = upper.work.tmp
    temporary = upper.work.new_name()
    if stat.S_ISLNK(file.kind):
        os.symlink(readlink(file), temporary, dir_fd=tmp.fd())
    else:
        os.mknod(temporary, metadata.real_kind(file.kind, upper.layer) | 0o600, st.st_rdev, dir_fd=tmp.fd())
    try:
        with file.grasp() as source, tmp.held(temporary) as target:
            dress(state, file, state.layer_of(file), source, target, st, NO_CHANGE if change is None else change)
        show(state, file, temporary, st)
    except BaseException:
        upper.work.unlink(temporary)
        raise
