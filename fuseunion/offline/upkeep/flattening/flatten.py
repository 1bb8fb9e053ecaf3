"""`fuseunion flatten` and `convert`: everything that an upper shows lies in it, in a form that others read.

In this order, each part leaving what is shown as it is, so that a crash anywhere leaves an upper that shows the same,
and the same command goes on:

    1  files without data (metacopy) get it
    2  directories that were renamed by a redirect get everything that the lowers show in them, and become opaque
    3  names of a copied-up file of several names become links of it; the hard-link index goes
    4  stored owners become real ones
    5  whiteouts and opaque marks get their form, and marks that mean nothing any more go
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from fuseunion.core.ownership.guarded_store import IgnoredStore
from fuseunion.core.tree.directory import Directory
from fuseunion.core.tree.file import File
from fuseunion.core.union import Union
from fuseunion.offline.layers import reader
from fuseunion.offline.layers.opening import View
from fuseunion.offline.layers.reader import named
from fuseunion.offline.upkeep.flattening.forms import TRUSTED, USER, Form, Rewriter
from fuseunion.offline.upkeep.flattening.owners import Owners


class Result(NamedTuple):
    """What was done.

    Attributes:
        filled: files that got their data.
        unfolded: directories that depended on a redirect.
        linked: names that became links of their file.
        owned: objects that got a real owner.
        rewritten: names and directories with marks of another form.
    """

    filled: int
    unfolded: int
    linked: int
    owned: int
    rewritten: int


def readable_by_all() -> Form:
    """The form that the kernel and fuse-overlayfs read, as far as this user may write it."""
    return Form("all", (TRUSTED, USER) if may_set_trusted() else (USER,))


def kernel(*, userxattr: bool) -> Form:
    """That of the kernel's overlayfs."""
    return Form("kernel", (USER,) if userxattr else (TRUSTED,))


def fuse_overlayfs() -> Form:
    """That of fuse-overlayfs, which knows stored owners."""
    prefix = TRUSTED if may_set_trusted() else USER
    return Form("fuse-overlayfs", (prefix,), opaque_file=True, real_owners=False)


def oci() -> Form:
    """That of an unpacked OCI layer."""
    return Form("oci", (), devices=False, opaque_file=True, bare=True)


def may_set_trusted() -> bool:
    """Whether attributes of the machine's root can be set, which needs CAP_SYS_ADMIN in the first user namespace."""
    with open("/proc/self/uid_map") as file:
        whole = file.read().split() == ["0", "0", "4294967295"]
    return whole and os.geteuid() == 0


def needs_lowers(view: View) -> None:
    """Refuse an upper alone that does not have everything.

    Raises:
        IncompleteError: it needs its lowers; OSError: of the layers.
    """
    for _ in reader.read(view):
        pass


def flatten(view: View, form: Form) -> Result:
    """Do it.

    Args:
        view: an upper that nobody else uses.

    Raises:
        IncompleteError: without lowers, where they are needed.
        UserError: LAYERS, where the form cannot be had; nothing has changed then.
        OSError: of the layers, with the path as its filename where it is known.
    """
    needs_lowers(view)
    upper = view.union.state.writable()
    root, store = view.upper.root, view.upper.ownership
    believed = store is not None and not isinstance(store, IgnoredStore)
    owners = Owners(root, store, upper.work) if store is not None and believed and form.real_owners else None
    rewriter = Rewriter(root, upper.whiteouts, form)
    if owners is not None:
        owners.check()
    rewriter.check()
    filled, unfolded = _unfold(view)
    linked = _link(view.union)
    owned = owners.make_real() if owners is not None else 0
    return Result(filled, unfolded, linked, owned, rewriter.rewrite())


def _unfold(view: View) -> tuple[int, int]:
    """Bring data and directories of lowers into the upper, on which marks of it depend."""
    union, filled, unfolded = view.union, 0, 0
    for path, directory, name, is_moved in _dependent(view):
        with named(path):
            inode = union.lookup(directory, name)
            with union.held(inode):
                if isinstance(inode, File) and not inode.in_upper:
                    union.copy_up(inode)
                    filled += 1
                elif is_moved and isinstance(inode, Directory) and inode.lowers:
                    for files in union.make_movable(inode):
                        for file in files or ():
                            filled += file.has_upper
                            union.copy_up(file)
                    unfolded += 1
    return filled, unfolded


def _dependent(view: View) -> Iterator[tuple[bytes, Directory, bytes, bool]]:
    """Names of the upper whose object needs the lowers: with the directory, and whether it was renamed.

    What changes while this goes on is only made more independent.
    """
    waiting = [(view.union.root, b"")]
    while waiting:
        directory, way = waiting.pop()
        for content in list(view.union.contents(directory, view.upper)):
            path = way + b"/" + content.name if way else content.name
            if content.lacks_data:
                yield path, directory, content.name, False
            elif content.is_directory:
                if content.redirect is not None:
                    yield path, directory, content.name, True
                below = view.union.lookup(directory, content.name)
                if isinstance(below, Directory):
                    waiting.append((below, path))


def _link(union: Union) -> int:
    """Give all names of copied-up files their links, and do without the index."""
    links = union.state.writable().links
    if not links.groups():
        return 0
    before = sum(len(group.covered) for group in links.groups())
    for entry in reader.merged(union):
        if isinstance(entry.inode, File) and entry.directory is not None:
            with named(entry.path):
                if entry.inode.group is not None and not entry.inode.in_upper:
                    union.copy_up(entry.inode)  # without the index it would have as many links as in the lower
                union.complete_links(entry.inode, entry.directory, entry.name)
                _refuse_incomplete(entry, entry.inode)
    linked = sum(len(group.covered) for group in links.groups()) - before
    for group in links.groups():
        group.remove()
    return linked


def _refuse_incomplete(entry: reader.Entry, file: File) -> None:
    """A name that did not get its link would show the lower's file without the index."""
    if file.group is None or not file.in_upper or entry.directory is None:
        return
    upper = entry.directory.upper
    st = upper.stat(entry.name) if upper is not None else None
    if st is None or st.st_ino != file.group.copy_ino:
        raise OSError(errno.EIO, "cannot be linked to the other names of its file", entry.path)
