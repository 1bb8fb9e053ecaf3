"""`fuseunion image info` and `ls`."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import Any

from fuseunion.cli.parser import Arguments
from fuseunion.errors import ExitCode, one_line
from fuseunion.images.tools import describing
from fuseunion.images.tools.opened import Access, open_image
from fuseunion.images.tools.sizes import shown
from fuseunion.images.tools.trees.listing import listing

_BYTES = frozenset({"size", "allocated", "reserved", "block_size", "free", "offset"})
_TIMES = frozenset({"created", "modified", "last_mounted", "last_written", "last_checked"})


def info(asked: Arguments) -> int:
    """Say what an image is."""
    (path,) = asked.operands
    with ExitStack() as stack:
        found = describing.describe(open_image(stack, path, Access.LOOK))
    if asked.json:
        print(json.dumps(found, indent=2))
        return ExitCode.OK
    descriptors = found.pop("descriptors", [])
    filesystems = found.pop("filesystems", [])
    _print(found, 0)
    for each in descriptors:
        place = f"{each['size']} bytes at {each['offset']}"
        words = [f"{each['id']}:", each["type"], each.get("use", ""), each.get("filesystem", ""), place, each["name"]]
        print("  descriptor " + one_line(" ".join(filter(None, map(str, words)))))
    for each in filesystems:
        print("filesystem" + (f" of partition {each.pop('partition')}" if "partition" in each else "") + ":")
        _print(each, 2)
    return ExitCode.OK


def _print(found: dict[str, Any], indent: int) -> None:
    for name, value in found.items():
        print(" " * indent + one_line(f"{name.replace('_', ' ') + ':':<18} {_text(name, value, found)}"))


def _text(name: str, value: Any, found: dict[str, Any]) -> str:
    if value is None:
        return "nobody" if name == "in_use" else "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ":".join(map(str, value))
    if name in _TIMES:
        try:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
        except (OSError, OverflowError, ValueError):
            return f"{value}, which is no time"
    of = {"free": "size", "free_inodes": "inodes"}.get(name)
    share = f" ({100 * value // found[of]}%)" if of and found.get(of) else ""
    return (f"{shown(value)}" if name in _BYTES else str(value)) + share


def ls(asked: Arguments) -> int:
    """List a directory of an image."""
    path, within = (*asked.operands, "/")[:2]
    with ExitStack() as stack:
        for line in listing(open_image(stack, path, Access.READ), within, is_long=asked.long):
            print(line)
    return ExitCode.OK
