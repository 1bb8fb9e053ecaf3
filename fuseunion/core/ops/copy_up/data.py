"""Copy-ups in two parts (`metacopy=on`): first what changes, then the data, once somebody changes that.

chmod, chown and utimensat of a lower file make a file of the right size, without data, and with the mark `metacopy`
(core/marks/metacopy.py). It enters the upper by one rename, like any copy. The data comes in place, so that inode and
names stay:

    prepare   open the data in the lower, and the file for writing
    move      the data, fsync; touches only these two descriptors
    publish   mode and times as they were; then the mark goes

Until the mark goes everybody reads the lower, so a crash leaves the file as it was, but for its time of modification.
What writing to a file takes from it (set-id bits, capabilities) it does not have: a file that has any is copied whole.
Those that overlayfs made may have some; they get them back.

Not for hard-linked files, whose names the link index has to bring together, nor where ownership is stored.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack

from fuseunion.core.copying import copy_data
from fuseunion.core.disk.descriptors import PER_COPY
from fuseunion.core.format import xattr_names
from fuseunion.core.marks import metacopy
from fuseunion.core.ops import attributes
from fuseunion.core.ops.attributes import Change, facts_after, stat_of
from fuseunion.core.ops.copy_up.directories import dress
from fuseunion.core.ops.copy_up.files import is_quick, show
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.tree.file import File
from fuseunion.core.tree.place import InLower
from fuseunion.core.tree.state import State
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.real_object import OpenObject, RealObject

_SET_ID = stat.S_ISUID | stat.S_ISGID


def needs_no_data(state: State, file: File, change: Change | None) -> bool:
    """Whether a change can be made to a file of which the upper has no data, and is to leave it so.

    Precondition: the data is not in the upper.

    Raises:
        OSError: of the layer that gives the attributes.
    """
    if change is None or not _may_go_without(state, file, change):
        return False
    shown = stat_of(state, file)
    if not shown.st_size or facts_after(Facts.of(shown), change).mode & _SET_ID:
        return False
    with file.grasp() as held:
        return xattr_names.CAPABILITY not in state.layer_of(file).listxattr(held)


def is_quick_without(state: State, file: File, change: Change | None) -> bool:
    """Whether a change takes no longer than a usual request, if it needs no data."""
    return change is not None and not file.handles and _may_go_without(state, file, change)


def _may_go_without(state: State, file: File, change: Change) -> bool:
    """What can be said of that without asking a layer."""
    upper = state.writable()
    return (
        state.settings.metacopy
        and upper.work.capabilities.xattr_prefix is not None
        and stat.S_ISREG(file.kind)
        and change.size is None
        and not file.removed
        and file.lower_links is None
        and file.group is None
        and upper.layer.ownership is None
        and state.layer_of(file).ownership is None
    )


def change_without_data(state: State, file: File, change: Change) -> None:
    """Make a change to a file, and copy up what it needs, but no data.

    Precondition: `needs_no_data`.

    Raises:
        OSError: as a copy-up and `attributes.apply`; nothing has changed then.
    """
    # fsync(2) of an open file goes to its data, so that who has it open could not ask for this to be on disk.
    at_once = bool(file.handles) and not state.settings.volatile
    if file.has_upper:
        attributes.apply(state, file, change)
        if at_once:
            _sync(file)
        return
    upper = state.writable()
    prefix = upper.work.capabilities.xattr_prefix
    assert prefix is not None and isinstance(file.place, InLower)
    st, data, tmp = stat_of(state, file), file.data or file.place, upper.work.tmp
    temporary = upper.work.new_name()
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=tmp.fd())
    try:
        try:
            target = OpenObject(fd)
            os.ftruncate(fd, st.st_size)
            metacopy.mark(target, prefix)
            with file.grasp() as source:
                dress(state, file, state.layer_of(file), source, target, st, change)
            if at_once:
                os.fsync(fd)
        finally:
            os.close(fd)
        show(state, file, temporary, st, data)
    except BaseException:
        upper.work.unlink(temporary)
        raise


def _sync(file: File) -> None:
    with file.grasp() as held:
        fd = as_owner_of(held, lambda: held.open_regular(os.O_RDONLY)[0])
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FillJob:
    """The data of one file of the upper that has none, with the change that made it necessary.

    To be used as a CopyJob (files.py), whose attributes it has.
    """

    def __init__(self, state: State, file: File, change: Change | None) -> None:
        self._state = state
        self._file = file
        self._change = change or Change()
        self._moving = False
        self.source = self._target = -1
        state.descriptors.take_for_copy()
        try:
            self.source = file.open(os.O_RDONLY)
            with file.grasp() as held:
                self._st = held.stat()
                self._target = as_owner_of(held, lambda: held.open_regular(os.O_RDWR)[0])
                self._capability = _capability(held)
            wanted = self._change.size
            self._new_size = self._st.st_size if wanted is None else min(wanted, self._st.st_size)
            self._source_st = os.fstat(self.source)
            self.size = min(self._new_size, self._source_st.st_size)
        except BaseException:
            self.close()
            raise

    @property
    def quick(self) -> bool:
        """As of CopyJob."""
        return is_quick(self._state, self.size)

    def move(self) -> None:
        """The slow part; may run in any thread.

        Raises:
            OSError: ENOSPC, EDQUOT, EIO.
        """
        self._moving = True
        shared = copy_data.copy(self.source, self._target, self.size, self._source_st, self._state.writable().unshared)
        # A shorter file first, and then without the mark: the other way round a crash would show zeros.
        os.ftruncate(self._target, self._new_size)
        if self.size and not shared and not self._state.settings.volatile:
            os.fsync(self._target)

    def publish(self) -> None:
        """Let the file have its data; it may have been removed or renamed in the meantime.

        Raises:
            OSError: nothing has changed then.
        """
        change, file = self._change, self._file
        self._restore()
        others = change._replace(size=None)
        if change.size is not None and others != Change():
            attributes.apply(self._state, file, others)  # before the new size shows
        metacopy.unmark(RealObject(self._target))
        # The data is the file's own from here on, which nobody sees.
        self._moving = False
        file.filled()
        for handle in file.handles:
            handle.switch(self._target)
        if change.size is None and others != Change():
            attributes.apply(self._state, file, others)
        elif change.size is not None and change.size > self._st.st_size:
            attributes.apply(self._state, file, Change(size=change.size, mtime_ns=change.mtime_ns))

    def _restore(self) -> None:
        """Give the file back what writing to it took."""
        target, st = RealObject(self._target), self._st
        if stat.S_IMODE(target.stat().st_mode) != stat.S_IMODE(st.st_mode):
            target.chmod(stat.S_IMODE(st.st_mode))
        if self._capability is not None:
            target.setxattr(xattr_names.CAPABILITY, self._capability)
        if self._change.size is None:
            target.utime(st.st_atime_ns, st.st_mtime_ns)

    def close(self) -> None:
        """Undo what is not published, and close the descriptors. Called once."""
        self._state.descriptors.give_back(PER_COPY)
        with ExitStack() as stack:
            for fd in (self.source, self._target):
                if fd >= 0:
                    stack.callback(os.close, fd)
            if self._moving:
                self._empty_again()

    def _empty_again(self) -> None:
        try:
            if not metacopy.is_marked(RealObject(self._target)):
                return  # it reads what it has
            os.ftruncate(self._target, 0)
            os.ftruncate(self._target, self._st.st_size)
            self._restore()
            RealObject(self._target).utime(self._st.st_atime_ns, self._st.st_mtime_ns)
        except OSError as error:
            self._state.log.error("inode %d has space that it does not need: %s", self._file.ino, error)
        self._file.stale()


def _capability(held: RealObject) -> bytes | None:
    try:
        return held.getxattr(xattr_names.CAPABILITY)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return None
