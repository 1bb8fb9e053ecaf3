"""The mount command: `fuseunion LOWER[:LOWER...] UPPER MERGED`, and the mount program of container engines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fuseunion.cli.arguments import parse
from fuseunion.errors import ExitCode, one_line

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fuseunion.engines.engine import Report

HELP = """\
Usage: fuseunion LOWER[:LOWER...] UPPER MERGED [options]
       fuseunion --read-only LOWER[:LOWER...] [UPPER] MERGED
       fuseunion --ephemeral [--size SIZE] LOWER[:LOWER...] MERGED
       fuseunion exec LOWER[:LOWER...] [UPPER] [-- COMMAND...]
       fuseunion umount MERGED...
       fuseunion status | doctor | chown | image | promote | sync | completion ...     (each has its own --help)
       fuseunion top | log | which | refresh | add-lower ...                           (a live mount)
       fuseunion diff | export | import | commit | apply ...                           (layers without a mount)
       fuseunion check | flatten | convert | vacuum | snapshot | snapshots | restore ...   (an upper, not mounted)

Shows LOWER, which is never changed, with the writable UPPER on top, at MERGED. With several lower directories the
leftmost is on top; write a colon within a path as '\\:'. UPPER is created if it is missing; MERGED must exist, and may
be the same directory as LOWER. LOWER and UPPER may be image files (squashfs, ext, SIF).

Options:
  --work DIR            work directory, on UPPER's filesystem (default: a hidden sibling of UPPER, removed at unmount)
  -r, --read-only       nothing can be written; UPPER, if there is one, is shown on top
  --ephemeral           an upper in memory that is gone after unmount
  --size SIZE           its limit: bytes, or with k, m, g, t, or % of the memory
  --volatile            never sync; after a crash of the machine the upper is lost
  --allow-other         let other users in (for users who are not root: needs user_allow_other in /etc/fuse.conf)
  --uid-map D:S:N       show the users D, D+1, ... (N of them) on disk as S, S+1, ...; repeatable
  --gid-map D:S:N       the same for groups
  --mine                everything shows as yours, so that you can change all of a tree that belongs to others
  --fakeroot            keep owners, modes and devices in extended attributes, so that any user can set them
  --engine ENGINE       auto (default: fuse, else kernel, else ranch), fuse, kernel, ranch, or fastest (kernel first)
  --timeout SECONDS     how long the kernel may remember names and attributes (default: as long as it likes)
  --log-file FILE       write the daemon's log to FILE instead of syslog
  -f, --foreground      stay in the foreground, log to stderr
  -d, --debug           the same, and trace every request
  -o, --options OPTION[,OPTION...]
                        options of mount(8), overlayfs and fuse-overlayfs: lowerdir=, upperdir=, workdir=, ro,
                        allow_other, volatile, noacl, timeout=, ... (docs/options.md)
  -V, --version         print the version
  -h, --help            print this help

Options of the ranch, a tree of links for where nothing can be mounted (docs/engines.md):
  --links STYLE         absolute (default) or relative links
  --depth N             N levels of real directories, links to directories beneath (default: all are real)
  --copy GLOB           private copies instead of links for files of this path or name; repeatable
  --inject SRC:DST      show the file SRC as DST in MERGED; never written to UPPER; repeatable
  --allow-writable-lower  link to files of LOWER that you could change through the links

Examples:
  fuseunion base ~/changes ~/merged             keep what you change in a tree apart from it
  fuseunion --mine /srv/base changes merged     write to a tree that is not yours to change
  fuseunion patches:base out merged             two lower directories, patches on top
  fuseunion --ephemeral /usr ~/try              try something and forget it
  fuseunion umount ~/merged                     write everything out, unmount, wait until it is done
"""


def main(arguments: list[str], program: str = "fuseunion") -> int:
    """Mount; returns when the mount answers, or with -f when it has ended.

    Raises:
        UserError: with the exit status.
    """
    options_end = arguments.index("--") if "--" in arguments else len(arguments)
    if {"-h", "--help"} & set(arguments[:options_end]):
        print(HELP, end="")
        return ExitCode.OK
    if {"-V", "--version"} & set(arguments[:options_end]):
        from fuseunion import __version__

        print(f"fuseunion {__version__}")
        return ExitCode.OK
    options = parse(arguments, program)
    for word in options.ignored:
        sys.stderr.write(f"unknown argument ignored: {one_line(word)}\n")

    from fuseunion.engines import choose

    return choose.start(options, _progress, _say)


def _progress(what: str) -> AbstractContextManager[Report]:
    """A bar, imported by the engine that has something to show."""
    from fuseunion.cli.progress import Progress

    return Progress(what)


def _say(line: str) -> None:
    sys.stderr.write(f"fuseunion: {one_line(line)}\n")
