#!/usr/bin/env python3
"""The resident memory of a mount: idle, and after a walk over many files.

    .venv/bin/python bench/memory.py [--files 100000]

Prints the sizes in MiB and the bytes for each file. Pages that Python and its libraries share with other daemons are
counted apart (PSS needs no arithmetic: proc(5), smaps_rollup).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def _kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0])
    raise KeyError(field)


def _build(root: Path, files: int) -> None:
    for index in range(0, files, 1000):
        directory = root / f"directory-{index}"
        directory.mkdir()
        for number in range(index, min(index + 1000, files)):
            (directory / f"file-{number}").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    files = parser.parse_args().files
    command = [sys.executable, "-m", "fuseunion"]
    with tempfile.TemporaryDirectory(prefix="fuseunion-bench-") as base:
        root = Path(base)
        for name in ("lower", "merged"):
            (root / name).mkdir()
        _build(root / "lower", files)
        subprocess.run([*command, root / "lower", root / "upper", root / "merged"], check=True)
        try:
            pid = int(os.getxattr(root / "merged", "user.fuseunion.pid"))
            idle = _kib(pid, "Rss"), _kib(pid, "Pss")
            walked = sum(len(names) + len(directories) for _, directories, names in os.walk(root / "merged"))
            for directory, _, names in os.walk(root / "merged"):
                for name in names:
                    os.stat(os.path.join(directory, name))
            after = _kib(pid, "Rss"), _kib(pid, "Pss")
        finally:
            subprocess.run([*command, "umount", root / "merged"], check=True)
    print(f"idle:                 RSS {idle[0] / 1024:6.1f} MiB, PSS {idle[1] / 1024:6.1f} MiB")
    print(f"after {walked:7d} files: RSS {after[0] / 1024:6.1f} MiB, PSS {after[1] / 1024:6.1f} MiB")
    print(f"for each file:        {(after[0] - idle[0]) * 1024 / walked:.0f} bytes")


if __name__ == "__main__":
    main()
