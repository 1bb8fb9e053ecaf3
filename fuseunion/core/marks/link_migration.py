"""The hard-link index of older versions, which had a directory for each lower file:

    WORK/links/KEY/l-COUNT     the lower file's own count of links
    WORK/links/KEY/inode       the copy
    WORK/links/KEY/c-TOKEN     a name that does not show the lower file any more

Each entry is renamed to what it is called now (core/format/link_entries.py), the count goes after the last of them, and
then the directory. So a crash in between leaves what the next mount goes on with.
"""

from __future__ import annotations

import errno
import logging
import os
import re

from fuseunion.core.disk.realdir import RealDir
from fuseunion.core.format.link_entries import entry_name, number_in

log = logging.getLogger("fuseunion.links")

_COPY = b"inode"
_COUNT = re.compile(rb"l-([0-9]{1,10})")
_COVERED = re.compile(rb"c-([0-9a-f]{24})")


def listed(directory: RealDir) -> list[tuple[bytes, bool]]:
    """Every name in a directory, and whether it is that of a directory: what readdir(3) tells, so no stat for each."""
    fd = directory.open_itself()
    try:
        with os.scandir(fd) as entries:
            return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    finally:
        os.close(fd)


def migrate(root: RealDir) -> None:
    """Bring all groups of an index into the present form. What no version of ours has left stays as it is.

    Raises:
        OSError: ENOSPC, EDQUOT, EIO; the next call goes on from there.
    """
    for key, is_directory in listed(root):
        if is_directory and number_in(key) is not None:
            _migrate_group(root, key)


def _migrate_group(root: RealDir, key: bytes) -> None:
    group = root.child(key)
    files = [name for name, is_directory in listed(group) if not is_directory]
    counts = [match for match in map(_COUNT.fullmatch, files) if match]
    if counts:
        lower_nlink = int(counts[0][1])
        for name in files:
            covered = _COVERED.fullmatch(name)
            if name == _COPY or covered:
                group.rename(name, root, entry_name(key, lower_nlink, covered[1] if covered else None))
        for count in counts:
            group.unlink(count[0])
    group.close()
    try:
        root.rmdir(key)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        log.debug("%r of the link index has something in it that is not ours", key)
