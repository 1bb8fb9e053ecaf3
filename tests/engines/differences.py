"""Where an engine is known to answer otherwise than a plain directory. docs/engines.md explains each line.

An entry that is not true any more fails the test too.
"""

from __future__ import annotations

from tests.engines.shown import Engine
from tests.support.layers import OLD

READ_ONLY = "Read-only file system"
LINK = "lrwxrwxrwx"

DIFFERENCES: dict[tuple[str, Engine], object] = {
    # A rename of a directory would need a redirect, which other implementations could not read.
    ("renaming a directory", Engine.KERNEL): "Invalid cross-device link",
    # Without an index, overlayfs copies up one name of a file.
    ("writing to one of two names", Engine.KERNEL): b"linked\n",
    ("moving one of two names", Engine.KERNEL): (False, 1),
    # A ranch shows files of the lower as links ...
    ("lstat of a file", Engine.RANCH): LINK,
    ("realpath stays in the tree", Engine.RANCH): False,
    ("opening without following links", Engine.RANCH): "Too many levels of symbolic links",
    ("finding regular files", Engine.RANCH): 0,
    ("copying a tree with cp a", Engine.RANCH): (b"inner\n", "l"),
    ("making a hard link", Engine.RANCH): (b"content\n", LINK, 2),
    ("hard links of a file", Engine.RANCH): (True, 1),
    # ... that lead to where nothing can be written, until they are promoted.
    ("appending to a file", Engine.RANCH): READ_ONLY,
    ("truncating a file", Engine.RANCH): READ_ONLY,
    ("changing the mode of a file", Engine.RANCH): READ_ONLY,
    ("changing the times of a file", Engine.RANCH): READ_ONLY,
    ("setting an attribute of a file", Engine.RANCH): READ_ONLY,
    ("writing to one of two names", Engine.RANCH): READ_ONLY,
    # What is done to a link itself does not reach its file, and is not collected.
    ("changing the times of a file without following links", Engine.RANCH): OLD,
    ("moving one of two names", Engine.RANCH): (True, 1),
}
