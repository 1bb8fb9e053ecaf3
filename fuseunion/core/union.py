"""The one door to a union: every engine and tool goes through `Union`.

All calls are synchronous and short, but for those that copy data or go through many names: the ones are split, so that
an engine can move the bytes in a thread (`copy_job`), the others are made in steps (fuseunion/steps.py). Ids that come
in and go out are those shown to the user; the id maps are applied here.

Concurrency: calls are made from one thread, one at a time. `CopyJob.move` may run in another. Between `copy_job` and
`CopyJob.publish` other calls may be made, but no second copy_job for the same file.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import AbstractContextManager, closing

from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.disk.remote import Asked
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.ids.identity import ShownGid, ShownUid
from fuseunion.core.marks.contents import Content, contents
from fuseunion.core.marks.holders import DEEP
from fuseunion.core.ops import attributes, create, entries, rename, xattrs
from fuseunion.core.ops.attributes import Change
from fuseunion.core.ops.copy_up import data, link_names, unshown_links
from fuseunion.core.ops.copy_up.data import FillJob
from fuseunion.core.ops.copy_up.directories import copy_up_directory
from fuseunion.core.ops.copy_up.files import CopyJob, copy_up_special, is_quick, readlink
from fuseunion.core.ops.copy_up.plain import PlainCopies
from fuseunion.core.ops.create import Owner
from fuseunion.core.ops.live.addition import Addition
from fuseunion.core.ops.live.refresh import Refresh, refresh
from fuseunion.core.ops.live.remote_parts import remote_parts
from fuseunion.core.ops.live.whereabouts import Part, Whereabouts, lies_at, whereabouts
from fuseunion.core.ops.moving import independence, redirect
from fuseunion.core.ops.removing import remove
from fuseunion.core.ops.removing.plain import (
    PlainRemoval,
    plain_removal,
    plain_removal_of_directory,
    plainly_removed,
)
from fuseunion.core.ownership.facts import parse
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.tree.handle import DirectoryHandle, FileHandle
from fuseunion.core.tree.inode import Inode, Unreadable
from fuseunion.core.tree.listing import KnownFile, PlainFiles, candidates, known_files, listing
from fuseunion.core.tree.lookup import existing, lookup, unreadable
from fuseunion.core.tree.place import Held
from fuseunion.core.tree.state import Settings, State, Upper
from fuseunion.linux import syscalls
from fuseunion.linux.objects.permission import as_owner_of
from fuseunion.linux.objects.recognition import DiskId
from fuseunion.linux.os_error import os_error
from fuseunion.steps import Steps

_LAST_LOOK = 0.25
"""Seconds that an unmount may look for what no name shows any more; the next mount goes on."""


class Union:
    """A writable upper over read-only lowers, or lowers alone.

    Args:
        lowers: topmost first; at least one. The union owns the layers and closes them.
        upper: the writable layer, or None.
        work: the work directory; needed with an upper.
        settings: how to behave.

    Attributes:
        plain_copies: the copy-ups that are nothing but system calls.

    Raises:
        OSError: when the link index cannot be read.
    """

    def __init__(
        self, lowers: Sequence[Layer], upper: Layer | None, work: WorkDirectory | None, settings: Settings
    ) -> None:
        side = Upper(upper, work) if upper is not None and work is not None else None
        self.state = State(lowers, side, settings)
        self.settings = settings
        self.plain_copies = PlainCopies(self.state)
        link_names.repair(self.state)

    @classmethod
    def plain(cls, lowers: Sequence[Layer], upper: Layer | None = None, work: WorkDirectory | None = None) -> Union:
        """A union that shows its layers as they are: with the default settings. Arguments and errors as of the class.

        Returns:
            The union, which the caller closes.
        """
        return cls(lowers, upper, work, Settings())

    @property
    def known(self) -> int:
        """How many inodes are in memory, the root among them."""
        return self.state.table.size

    def close(self) -> None:
        """Close all descriptors and clean the work directory; the union must not be used after it."""
        self._drop_unshown_quickly()
        self.state.table.close()
        if self.state.upper is not None:
            self.state.upper.close()
            self.state.upper.layer.close()
        for layer in self.state.lowers:
            layer.close()

    def _drop_unshown_quickly(self) -> None:
        """`drop_unshown`, if a name went in this mount that nobody asked about yet, and if it takes but a moment."""
        if self.state.upper is None or not self.state.upper.links.is_suspicious:
            return
        until = time.monotonic() + _LAST_LOOK
        with closing(self.drop_unshown()) as steps:
            for _ in steps:
                if time.monotonic() >= until:
                    return

    def drop_unshown(self) -> Steps[int]:
        """Give back what the link index keeps of files that no name shows any more, in steps (unshown_links.drop)."""
        return unshown_links.drop(self.state)

    def on_suspicion(self, call: Callable[[], None]) -> None:
        """Have a function called when there may be something for `drop_unshown`, and at once if there is now."""
        if self.state.upper is not None:
            self.state.upper.links.suspected = call
            if self.state.upper.links.suspects:
                call()

    @property
    def root(self) -> Directory:
        """The root of the merged tree."""
        return self.state.root

    @property
    def writable(self) -> bool:
        """True when there is an upper."""
        return self.state.upper is not None

    @property
    def lowers(self) -> tuple[Layer, ...]:
        """The read-only layers, topmost first."""
        return self.state.lowers

    @property
    def own_ids(self) -> Owner:
        """Who owns what the upper's filesystem lets this process make; no umask is left to apply."""
        return Owner(self.state.uid, self.state.gid, 0)

    # -- inodes ------------------------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode:
        """The inode of a number.

        Raises:
            OSError: ESTALE for a number that is not in the table; EINVAL or EPERM for an object whose marks cannot be
                understood.
        """
        inode = self.state.table.find(ino)
        if inode is None:
            raise os_error(errno.ESTALE)
        if isinstance(inode, Unreadable):
            raise os_error(inode.code)
        return inode

    def directory(self, ino: int) -> Directory:
        """The directory of a number.

        Raises:
            OSError: ENOTDIR, ESTALE.
        """
        inode = self.inode(ino)
        if not isinstance(inode, Directory):
            raise os_error(errno.ENOTDIR)
        return inode

    def file(self, ino: int) -> File:
        """The non-directory of a number.

        Raises:
            OSError: EISDIR, ESTALE.
        """
        inode = self.inode(ino)
        if not isinstance(inode, File):
            raise os_error(errno.EISDIR)
        return inode

    def lookup(self, directory: Directory, name: bytes) -> Inode | None:
        """The inode of a name, or None; nothing is written.

        The inode is in the table: `remember` it when the kernel is told of it, keep it `held` for a while, or `release`
        it. Where the name is going to matter to others who read the upper, `complete_links` comes next.

        Raises:
            OSError: ENAMETOOLONG for a name that no layer could hold; EINVAL or EPERM (MalformedError) for an object
                whose marks cannot be understood; of the layers.
        """
        return lookup(self.state, directory, name)

    def existing(self, directory: Directory, name: bytes) -> Inode:
        """As `lookup`, of a name that has to be there, and to be what was looked up before (lookup.existing)."""
        return existing(self.state, directory, name)

    def complete_links(self, inode: Inode, directory: Directory, name: bytes) -> None:
        """Bring what is kept of a file with several names up to date with a name that was looked up (link_names.py).

        A copied-up file gets this name in the upper too, if a lower shows it and it leads to the copy.

        Only the link index knows that all names of a lower file lead to the copy that was made under one of them. Other
        readers of the upper (kernel overlayfs, fuse-overlayfs) see one file once every name of it lies there. What
        fails is logged: the name goes on showing the copy through the index.

        Args:
            inode: what `lookup` answered for the name; anything but such a file stays as it is.
        """
        if isinstance(inode, File):
            link_names.complete(self.state, inode, directory, name)

    @property
    def keeps_links(self) -> bool:
        """Whether there may be names of a copied-up file that lead to it through the link index alone."""
        return self.state.upper is not None and self.state.upper.work.has_index

    def whole_stack(self, directory: Directory) -> tuple[int, ...] | None:
        """Descriptors of all real directories that may hold a name of a directory, borrowed as of RealDir.fd.

        Returns:
            None where a name is not looked for in all of them. They get more by a copy-up of the directory, which
            `on_restacked` is told of, and by a lower that is added to the whole union.
        """
        layers = directory.layers()
        if len(layers) >= DEEP or directory.removed:
            return None
        if any(real.holds_the_mount or real.layer.remote for real in layers):
            return None
        return tuple([real.fd() for real in layers])

    @property
    def remote_lowers(self) -> list[Layer]:
        """The lowers on filesystems that may not answer (core/disk/remote.py)."""
        return [layer for layer in self.state.lowers if layer.remote]

    def remote_parts(self, ino: int, name: bytes, *, whole: bool) -> list[Asked]:
        """What such lowers are going to be asked about an inode, or about a name in a directory (remote_parts.py)."""
        return remote_parts(self.inode(ino), name, whole=whole)

    def on_restacked(self, call: Callable[[Directory], None]) -> None:
        """Have a function called for each directory whose parts become others (State.restacked)."""
        self.state.restacked = call

    @property
    def needs_paths(self) -> bool:
        """Whether something is reached by a path as long as the union is there (OwnershipStore)."""
        stores = [
            layer.ownership
            for layer in (*self.state.lowers, *([] if self.state.upper is None else [self.state.upper.layer]))
        ]
        return any(store is not None and store.needs_paths for store in stores)

    def descriptors_to_spare(self, count: int) -> bool:
        """Take descriptors for good, if there are plenty of them."""
        descriptors = self.state.descriptors
        if descriptors.capacity < 4 * count:
            return False
        descriptors.take(count)
        return True

    def held(self, *inodes: Inode | None) -> AbstractContextManager[None]:
        """Keep inodes in the table for the length of a block, whatever is looked up and released meanwhile.

        An inode that nobody else needs is dropped at the end of the block.
        """
        return self.state.table.held(*inodes)

    def unreadable(self, directory: Directory, name: bytes, error: MalformedError) -> tuple[Inode, os.stat_result]:
        """What to list for a name whose lookup raised `error`: an inode, as of `lookup`, and the object's lstat."""
        return unreadable(self.state, directory, name, error.errno or errno.EINVAL)

    def remember(self, inode: Inode) -> None:
        """The kernel is told of the inode."""
        self.state.table.remember(inode)

    def forget(self, ino: int, nlookup: int) -> None:
        """The kernel forgot the inode as many times."""
        self.state.table.forget(ino, nlookup)

    def release(self, inode: Inode) -> None:
        """The caller is done with an inode that it did not `remember`."""
        self.state.table.drop_if_unused(inode)

    # -- attributes --------------------------------------------------------------------------------------------------

    def stat(self, inode: Inode) -> tuple[os.stat_result, int]:
        """lstat of an inode, its owner in disk ids, and the count of links to show."""
        st = attributes.stat_of(self.state, inode)
        return st, attributes.nlink_of(self.state, inode, st)

    def shows_as_it_is(self, file: File) -> bool:
        """Whether what is shown of a file, but for its number, is what fstat(2) says of an open descriptor of its data,
        and will be as long as it is open."""
        return (
            file.in_upper
            and file.group is None
            and self.state.layer_of(file).ownership is None
            and self.settings.identity.trivial
        )

    def shows_lower_as_it_is(self, file: File) -> bool:
        """Whether what is shown of a file, but for its number, is what lstat(2) says of it in the lower where it lies,
        if that counts one link; until Inode.stale."""
        return (
            not file.has_upper
            and not file.removed
            and file.lower_links is None
            and file.group is None
            and self.state.layer_of(file).ownership is None
            and self.settings.identity.trivial
        )

    def has_its_own_attributes(self, file: File) -> bool:
        """Whether an open descriptor of a file's data has all extended attributes of the file, and no others, but for
        those that are hidden and for names that are shown under others."""
        return (
            file.data is None
            and self.settings.xattrs
            and self.settings.acl
            and self.state.layer_of(file).ownership is None
            and self.state.layer_of(file).true_names is None
            and not self.state.layer_of(file).remote
            and not self.stores_ownership
        )

    def shows_directory_as_it_is(self, directory: Directory) -> bool:
        """Whether what is shown of a directory, but for its number and its count of links, is what fstat(2) says of the
        upper's, as long as it has a name."""
        upper = directory.upper
        return (
            upper is not None
            and not directory.removed
            and not upper.holds_the_mount
            and upper.layer.ownership is None
            and self.settings.identity.trivial
        )

    def shows_one_link(self, directory: Directory) -> bool:
        """Whether a directory shows one link as long as it has a name (attributes.shows_one_link)."""
        return attributes.shows_one_link(self.state, directory)

    def upper_part(self, directory: Directory) -> int:
        """A descriptor of the upper's part of a directory, which has one, borrowed as of RealDir.fd.

        Raises:
            OSError: as RealDir.fd.
        """
        assert directory.upper is not None
        return directory.upper.fd()

    def setattr(self, inode: Inode, change: Change) -> None:
        """Change attributes. Precondition: a file was copied up."""
        self.state.writable()
        if isinstance(inode, Directory):
            copy_up_directory(self.state, inode)
        attributes.apply(self.state, inode, change)

    def flags(self, inode: Inode, command: int, size: int) -> bytes:
        """The inode flags (attributes.flags_of)."""
        return attributes.flags_of(inode, command, size)

    def set_flags(self, inode: Inode, command: int, value: bytes) -> None:
        """Set inode flags (attributes.set_flags). Precondition: a file was copied up."""
        self.state.writable()
        if isinstance(inode, Directory):
            copy_up_directory(self.state, inode)
        attributes.set_flags(inode, command, value)

    def readlink(self, file: File) -> bytes:
        """The target of a symbolic link."""
        return readlink(file)

    def whereabouts(self, path: bytes) -> Steps[Whereabouts]:
        """Where a path from the root comes from (whereabouts.whereabouts)."""
        return whereabouts(self.state, path)

    def refresh(self, path: bytes, is_busy: Callable[[File], bool]) -> Refresh:
        """Forget what is remembered of the lowers at a path and beneath it (refresh.refresh)."""
        return refresh(self.state, path, is_busy)

    def addition(self, layer: Layer) -> Addition:
        """Begin to add a lower on top of the others, which belongs to the result (addition.Addition)."""
        return Addition(self.state, layer)

    def lies_at(self, inode: Inode) -> Part | None:
        """What of which layer shows an inode; None for one that has no name."""
        return lies_at(self.state, inode)

    def statfs(self) -> os.statvfs_result:
        """statvfs(3) of the upper, or of the topmost lower."""
        state = self.state
        layer = state.upper.layer if state.upper is not None else state.lowers[0]
        return os.fstatvfs(layer.root_fd)

    # -- copy-up -----------------------------------------------------------------------------------------------------

    def copy_job(self, file: File, change: Change | None = None) -> CopyJob | FillJob | None:
        """Begin the copy-up of a file, or of its data; None when there is nothing left to do.

        Args:
            change: what the copy-up is for. It is made to the copy before that is shown; so when this call answers None
                for a file that was not `in_upper` before, or when the job is published, it is done.

        Raises:
            OSError: EROFS; EACCES for a file that the daemon may not read; ENOSPC.
        """
        self.state.writable()
        if file.in_upper:
            return None
        if change is not None and data.needs_no_data(self.state, file, change):
            data.change_without_data(self.state, file, change)
            return None
        if file.has_upper:
            return FillJob(self.state, file, change)
        if stat.S_ISREG(file.kind):
            return CopyJob(self.state, file, change)
        copy_up_special(self.state, file, change)
        return None

    def is_copied_quickly(self, file: File, change: Change | None) -> bool:
        """Whether a copy-up for a change may take no longer than a usual request: the job then says (CopyJob.quick)."""
        return (
            not stat.S_ISREG(file.kind)
            or is_quick(self.state, attributes.stat_of(self.state, file).st_size)
            or data.is_quick_without(self.state, file, change)
        )

    def copy_up(self, file: File) -> None:
        """Copy a file up at once, with its data; nothing happens when it was before.

        Raises:
            OSError: as `copy_job` and `CopyJob.move`; nothing has changed then.
        """
        job = self.copy_job(file)
        if job is None:
            return
        try:
            job.move()
            job.publish()
        finally:
            job.close()

    def copy_up_directory(self, directory: Directory) -> RealDir:
        """The upper's part of a directory, made with all missing ancestors if there is none.

        Raises:
            OSError: EROFS without an upper; ESTALE for an exchanged directory; of the system calls.
        """
        return copy_up_directory(self.state, directory)

    def is_copy_of(self, file: File, lower_ino: int) -> bool:
        """Whether a file, known to the link index, is (to be) the copy-up of a lower file with this inode number."""
        if file.group is None:
            return False
        numbers, number = self.state.numbers, file.group.number
        return any(numbers.number(lower.st_dev, lower_ino) == number for lower in self.state.lowers)

    def make_movable(self, inode: Inode) -> Generator[Sequence[File] | None, None, None]:
        """Prepare what is to be renamed, in steps; the caller copies up the files that are yielded.

        A directory becomes independent of the lowers (independence.make_independent), unless a redirect is to lead to
        them (redirect.py).

        Raises:
            OSError: EROFS; as a copy-up.
        """
        self.state.writable()
        if isinstance(inode, Directory):
            if inode.lowers:
                copy_up_directory(self.state, inode)
            if not inode.lowers or not redirect.serves(self.state, inode):
                yield from independence.make_independent(self.state, inode)
        elif isinstance(inode, File) and not inode.in_upper:
            yield [inode]

    def make_replaceable(self, inode: Inode) -> Generator[Sequence[File] | None, None, None]:
        """Prepare what is to be replaced by a rename; as `make_movable`.

        Raises:
            OSError: ENOTEMPTY for a directory in which something is visible.
        """
        self.state.writable()
        if isinstance(inode, Directory):
            yield from independence.make_replaceable(self.state, inode)

    # -- names -------------------------------------------------------------------------------------------------------

    def create(self, directory: Directory, name: bytes, mode: int, owner: Owner) -> tuple[File, FileHandle]:
        """Make a regular file and open it (create.create)."""
        return create.create(self.state, directory, name, mode, owner)

    def makes_at_once(self, directory: Directory) -> bool:
        """Whether one open(2) makes a file as it is to be (create.makes_at_once)."""
        return create.makes_at_once(self.state, directory)

    def take_over(self, directory: Directory, name: bytes, fd: int, disk_id: DiskId) -> tuple[File, FileHandle]:
        """The file that was made by it (create.take_over)."""
        return create.take_over(self.state, directory, name, fd, disk_id)

    def take_over_directory(self, directory: Directory, name: bytes, disk_id: DiskId) -> Directory:
        """The directory that was made by mkdir(2) in the same way (create.take_over_directory)."""
        return create.take_over_directory(self.state, directory, name, disk_id)

    def take_back(self, directory: Directory, name: bytes) -> None:
        """Remove the file that was made by it (create.take_back)."""
        create.take_back(self.state, directory, name)

    def tmpfile(self, directory: Directory, mode: int, owner: Owner) -> tuple[File, FileHandle]:
        """Make a regular file without a name and open it (create.tmpfile)."""
        return create.tmpfile(self.state, directory, mode, owner)

    def mkdir(self, directory: Directory, name: bytes, mode: int, owner: Owner) -> Inode:
        """Make a directory (create.mkdir)."""
        return create.mkdir(self.state, directory, name, mode, owner)

    def mknod(self, directory: Directory, name: bytes, mode: int, rdev: int, owner: Owner) -> Inode:
        """Make a file, device, fifo or socket (create.mknod)."""
        return create.mknod(self.state, directory, name, mode, rdev, owner)

    def symlink(self, directory: Directory, name: bytes, target: bytes, owner: Owner) -> Inode:
        """Make a symbolic link (create.symlink)."""
        return create.symlink(self.state, directory, name, target, owner)

    def link(self, file: File, directory: Directory, name: bytes) -> File:
        """Give a copied-up file one more name (create.link)."""
        return create.link(self.state, file, directory, name)

    def unlink(self, directory: Directory, name: bytes, *, keeps_data: bool = True) -> None:
        """Remove a non-directory (remove.unlink)."""
        remove.unlink(self.state, directory, name, keeps_data=keeps_data)

    def plain_removal(self, directory: Directory, name: bytes) -> PlainRemoval | None:
        """What a removal is that is nothing but system calls (removing/plain.plain_removal)."""
        return plain_removal(directory, name)

    def plain_removal_of_directory(self, directory: Directory, name: bytes) -> PlainRemoval | None:
        """The same for an empty directory (removing/plain.plain_removal_of_directory)."""
        return plain_removal_of_directory(directory, name)

    def plainly_removed(self, directory: Directory, name: bytes, held: int) -> None:
        """It was made (removing/plain.plainly_removed)."""
        plainly_removed(directory, name, held)

    @property
    def keeps_removed(self) -> bool:
        """Whether the upper's filesystem keeps files that were removed without being open (LayerAccess)."""
        return self.state.writable().layer.keeps_removed

    def rmdir(self, directory: Directory, name: bytes) -> Steps[None]:
        """Remove an empty directory, in steps (remove.rmdir)."""
        return remove.rmdir(self.state, directory, name)

    def rename(self, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes, flags: int) -> None:
        """Rename (rename.rename). Precondition: `make_movable` of what moves is done."""
        rename.rename(self.state, old_dir, old_name, new_dir, new_name, flags)

    def renamed_at_once(self, old_dir: Directory, old_name: bytes, new_dir: Directory, new_name: bytes) -> bool:
        """Rename a file that needs no `make_movable`, if it is that simple (rename.renamed_at_once)."""
        return rename.renamed_at_once(self.state, old_dir, old_name, new_dir, new_name)

    # -- whole entries -----------------------------------------------------------------------------------------------

    def list_names(self, directory: Directory) -> list[bytes]:
        """Every name that may be visible in a directory, each once; `lookup` tells which a whiteout hides.

        Raises:
            OSError: of the layers; EACCES for a directory that may not be read.
        """
        return candidates(self.state, directory)

    def cover(self, directory: Directory, name: bytes) -> None:
        """Hide a name, whether a lower of this union has it or not (entries.cover)."""
        entries.cover(self.state, directory, name)

    def make_opaque(self, directory: Directory) -> None:
        """Let nothing of any lower show in a directory (entries.make_opaque)."""
        entries.make_opaque(self.state, directory)

    def contents(self, directory: Directory, layer: Layer) -> Iterator[Content]:
        """What one layer says by itself in a directory, sorted by name (contents.contents); nothing where it takes no
        part in it."""
        for real in directory.layers():
            if real.layer is layer:
                yield from contents(real)

    def lower_stat(self, directory: Directory, name: bytes) -> os.stat_result | None:
        """lstat of what the lowers show under a name, or would show without the upper (entries.lower_stat)."""
        return entries.lower_stat(self.state, directory, name)

    def check_storable(self, name: bytes, st: os.stat_result) -> None:
        """Refuse an object that would be a mark in the upper (entries.check_storable)."""
        entries.check_storable(name, st)

    def put(self, directory: Directory, name: bytes, make: entries.Make) -> None:
        """Put a finished object in the place of whatever file, or whiteout, is there (entries.put)."""
        entries.put(self.state, directory, name, make)

    def link_over(self, file: File, directory: Directory, name: bytes) -> None:
        """Give a copied-up file one more name, in the place of whatever other file has it (entries.link_over)."""
        entries.link_over(self.state, file, directory, name)

    def remove(self, directory: Directory, name: bytes) -> None:
        """Remove a name with all that is beneath it (entries.remove)."""
        entries.remove(self.state, directory, name)

    def uncover(self, directory: Directory, name: bytes) -> None:
        """Let a name of the lowers show again that a whiteout hides (entries.uncover)."""
        entries.uncover(self.state, directory, name)

    # -- open files --------------------------------------------------------------------------------------------------

    def open(self, file: File, flags: int) -> FileHandle:
        """Open a file. Opening a lower file for writing does not copy it: the descriptor reads until the first change.

        Args:
            flags: of open(2); only the access mode counts, the rest is the kernel's business.

        Raises:
            OSError: EROFS for writing without an upper; EACCES where the daemon itself may not; ENFILE when the
                descriptors of the process are used up.
        """
        wants_write = flags & os.O_ACCMODE != os.O_RDONLY
        if wants_write:
            self.state.writable()
        self.state.descriptors.take_for_file()
        try:
            if not file.in_upper:
                fd = file.open(os.O_RDONLY)
            elif not wants_write:
                fd = _open_closed(file, lambda: file.open(os.O_RDONLY))
            else:
                fd = _open_closed(file, lambda: _open_for_writing(file, flags & os.O_ACCMODE))
        except BaseException:
            self.state.descriptors.give_back()
            raise
        return FileHandle(file, fd, writable=wants_write)

    def place_to_open(self, file: File) -> tuple[int, bytes, int, int] | None:
        """Where one openat(2) opens a regular file for reading, and what has to be there.

        Returns:
            The descriptor of a directory, borrowed as of RealDir.fd; a name in it; st_dev and st_ino. None where it may
            take more (`open`).

        Raises:
            OSError: as RealDir.fd.
        """
        place = file.place
        if file.kind != stat.S_IFREG or file.data is not None or isinstance(place, Held):
            return None
        real = place.real
        layer = real.layer
        if not layer.noatime or real.holds_the_mount or layer.withholds(place.device, place.number):
            return None
        return real.fd(), place.name, place.device, place.number

    def opened(self, file: File, fd: int, *, writable: bool) -> FileHandle:
        """A handle of a file that was opened where it lies, or of its new copy.

        Args:
            fd: the handle's, unless this fails.
            writable: it is open for reading and writing.

        Raises:
            OSError: ENFILE, as `open`.
        """
        self.state.descriptors.take_for_file()
        return FileHandle(file, fd, writable=writable)

    def open_for_a_moment(self, file: File) -> int:
        """A descriptor of a file to read from, which the caller closes before anybody else gets a turn.

        Raises:
            OSError: as `open`, without ENFILE.
        """
        if file.in_upper or self.state.layer_of(file).writable:
            return _open_closed(file, lambda: file.open(os.O_RDONLY))
        return file.open(os.O_RDONLY)

    def release_file(self, handle: FileHandle) -> None:
        """The last user of a handle closed it."""
        handle.file.closed(handle)
        self.state.descriptors.give_back()
        self.state.table.drop_if_unused(handle.file)

    def write(self, handle: FileHandle, data: bytes, offset: int) -> int:
        """Write `data`, or as much of it as there is space for. Precondition: the file was copied up.

        Returns:
            The number of bytes written.

        Raises:
            OSError: ENOSPC, EDQUOT, EFBIG, EIO, when nothing was written.
        """
        handle.file.stale()
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(handle.fd, view, offset)
            except OSError:
                if len(view) < len(data):
                    break  # write(2): a short count; the next write meets the error at once
                raise
            offset += written
            view = view[written:]
        return len(data) - len(view)

    def drop_setgid(self, inode: Inode, *, always: bool = False) -> bool:
        """Somebody who is not in the group of an object changes it: a set-group-ID bit that is at risk goes.

        Precondition: a file was copied up.

        Args:
            always: of an executable or a directory too (fs/posix_acl.c posix_acl_update_mode).

        Returns:
            True when there was one.
        """
        mode = attributes.stat_of(self.state, inode).st_mode
        at_risk = mode & stat.S_ISGID if always else attributes.setgid_is_at_risk(mode)
        if at_risk:
            attributes.apply(self.state, inode, Change(mode=mode & ~stat.S_ISGID))
        return bool(at_risk)

    def truncation(self, file: File, size: int, *, privileged: bool, outsider: bool) -> Change:
        """What a truncation changes of a file (attributes.truncation)."""
        self.state.writable()
        return attributes.truncation(self.state, file, size, privileged=privileged, outsider=outsider)

    def opendir(self, directory: Directory) -> DirectoryHandle:
        """Open a directory.

        Raises:
            OSError: ESTALE for one that was exchanged: who opens it by a path may then meet what is there.
        """
        directory.check()
        return DirectoryHandle(directory)

    def names(self, handle: DirectoryHandle, *, again: bool) -> Steps[Sequence[bytes]]:
        """The names of an open directory: a snapshot, made on the first call and when `again` is asked for."""
        if handle.names is None or again:
            handle.names = yield from listing(self.state, handle.directory)
        return handle.names

    def names_of(self, directory: Directory) -> Steps[Sequence[bytes]]:
        """The names of a directory that is listed without having been opened.

        Raises:
            OSError: as `opendir`; of the layers.
        """
        directory.check()
        return listing(self.state, directory)

    def plain_files(self, directory: Directory) -> PlainFiles | None:
        """What makes inodes of most names of a listed directory sooner than `lookup`; None where it would of none.

        Good until the next suspension point of the caller.
        """
        if not self.settings.identity.trivial or not PlainFiles.is_for(directory):
            return None
        return PlainFiles(self.state, directory)

    def known_files(self, directory: Directory, names: Sequence[tuple[int, bytes]], first: int) -> list[KnownFile]:
        """The names of a listing that are told sooner than by `lookup` and `stat` (listing.known_files)."""
        return known_files(directory, names, first) if self.settings.identity.trivial else []

    def release_directory(self, handle: DirectoryHandle) -> None:
        """The last user of a directory handle closed it."""
        handle.directory.let_go(handle)
        self.state.table.drop_if_unused(handle.directory)

    def fsync_directory(self, directory: Directory) -> int | None:
        """A new descriptor to fsync for a directory, or None when nothing of it is in the upper."""
        return None if directory.upper is None else directory.upper.open_itself()

    def restate(self, inode: Inode, value: bytes) -> bool:
        """Set owner, mode and type by an override_stat attribute, in shown ids; only for the owner of the mount.

        Precondition: a file was copied up. Returns and raises as attributes.restate; EINVAL for a bad value.
        """
        if isinstance(inode, Directory):
            copy_up_directory(self.state, inode)
        facts, identity = parse(value), self.settings.identity
        uid, gid = identity.disk_uid(ShownUid(facts.uid)), identity.disk_gid(ShownGid(facts.gid))
        return attributes.restate(self.state, inode, facts._replace(uid=uid, gid=gid))

    @property
    def syncs(self) -> bool:
        """True when fsync(2) has something to wait for: the upper is on a disk, and the mount is not volatile."""
        upper = self.state.upper
        return upper is not None and not self.settings.volatile and not upper.work.capabilities.in_memory

    @property
    def stores_ownership(self) -> bool:
        """True when owners and modes of the upper are stored beside the files."""
        return self.state.upper is not None and self.state.upper.layer.ownership is not None

    def sync_ownership(self) -> None:
        """Put stored owners and modes on disk, as fsync(2) does with real ones; may run in any thread."""
        upper = self.state.upper
        if upper is not None and upper.layer.ownership is not None:
            upper.layer.ownership.sync()

    def sync(self) -> None:
        """Put everything on disk, of a volatile mount too; may run in any thread.

        Raises:
            OSError: EIO, ENOSPC, EDQUOT: something that was written before is lost.
        """
        side = self.state.writable()
        if side.layer.ownership is not None:
            side.layer.ownership.sync()
        syscalls.syncfs(side.layer.root_fd)
        side.work.write_out()

    # -- extended attributes -----------------------------------------------------------------------------------------

    def where_xattrs_are(self, inode: Inode) -> xattrs.Where | None:
        """Where the attributes of an inode are, and nowhere else (xattrs.where_to_look)."""
        return xattrs.where_to_look(self.state, inode)

    def lists_all_xattrs(self, inode: Inode) -> bool:
        """Whether an inode has none when it lists none (xattrs.lists_all)."""
        return xattrs.lists_all(self.state, inode)

    def note_absent(self, inode: Inode, names: Set[bytes]) -> frozenset[bytes]:
        """They were looked for there, and are not (xattrs.note_absent)."""
        return xattrs.note_absent(inode, names)

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        """The value of an attribute (xattrs.getxattr)."""
        return xattrs.getxattr(self.state, inode, name)

    def listxattr(self, inode: Inode) -> list[bytes]:
        """The names of all attributes a user may see (xattrs.listxattr)."""
        return xattrs.listxattr(self.state, inode)

    def check_xattr_name(self, name: bytes) -> None:
        """Refuse names that cannot be set, before anything is copied up for them (xattrs.setxattr)."""
        self.state.writable().layer.xattr_to_disk(name)

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        """Set an attribute. Precondition: a file was copied up."""
        xattrs.setxattr(self.state, inode, name, value)

    def xattr_is_there(self, inode: Inode, name: bytes) -> bool:
        """Whether `removexattr` has something to do (xattrs.is_there)."""
        return xattrs.is_there(self.state, inode, name)

    def removexattr(self, inode: Inode, name: bytes) -> None:
        """Remove an attribute. Precondition: `xattr_is_there`, then a file was copied up."""
        xattrs.removexattr(self.state, inode, name)


def _open_closed(file: File, opened: Callable[[], int]) -> int:
    """Open an upper file for somebody who may (the kernel has checked that), though its owner has closed it since."""
    try:
        return opened()
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
    with file.grasp() as held:
        return as_owner_of(held, opened)


def _open_for_writing(file: File, access: int) -> int:
    """Open an upper file for writing; for reading too where that is allowed, so that the descriptor serves both."""
    try:
        return file.open(os.O_RDWR)
    except PermissionError:
        if access == os.O_RDWR:
            raise
        return file.open(os.O_WRONLY)
