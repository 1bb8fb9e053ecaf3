"""A tree as a squashfs image: an upper that is not written to any more, as one more lower; or a merged tree."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from fuseunion.images.tools import programs
from fuseunion.images.tools.new_file import beside

_PERCENT = re.compile(r"\] +[0-9]+/[0-9]+ +([0-9]+)%")
"""How the bar of mksquashfs ends; what it says afterwards has percents too."""


def squash(directory_fd: int, source: str, path: str, report: Callable[[int], None] | None) -> None:
    """Make a squashfs image of a directory.

    Whiteouts, devices, owners, links and attributes stay what they are, but for POSIX ACLs, which squashfs cannot hold.

    Args:
        directory_fd: of the directory.
        source: its path, for messages.
        path: of the image; nothing is there.
        report: told how far it is, in percent.

    Raises:
        UserError: UNAVAILABLE without mksquashfs; LAYERS: the path is taken; FAILURE: a file cannot be read, no space.
    """

    def watch(piece: str) -> None:
        if report is not None and (found := _PERCENT.findall(piece)):
            report(int(found[-1]))

    with beside(path) as new:
        # It has no option for a descriptor; -noappend makes it begin with an empty file.
        programs.run(
            f"squash '{source}'",
            [
                "mksquashfs",
                ".",
                programs.by_descriptor(new.fd),
                "-noappend",
                "-exit-on-error",
                "-one-file-system",
                *([] if report else ["-no-progress", "-quiet"]),
            ],
            fds=(directory_fd, new.fd),
            cwd=f"/proc/self/fd/{directory_fd}",
            seen=watch if report else None,
        )
        if report is not None:
            report(100)  # a small one is done before mksquashfs says how far it is
        mask = os.umask(0o077)
        os.umask(mask)
        os.fchmod(new.fd, 0o666 & ~mask)
        new.publish()
