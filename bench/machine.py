"""What the numbers depend on: the machine, the kernel, the versions, and how busy it was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import fuseunion
from bench.contestants import PROJECT


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "not installed"
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else "unknown"


def _version(program: str) -> str:
    """What a program says after its name and "version", among versions of other things."""
    # podman makes directories in there, whatever it is asked.
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "TMPDIR": place}
        try:
            done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, env=environment)
        except OSError:
            return "not installed"
    found = re.search(rf"{program}:? version:? (\S+)", done.stdout + done.stderr)
    return found.group(1) if found else "unknown"


def facts() -> dict[str, str]:
    """Of the machine."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": model.group(1) if model else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def versions() -> dict[str, str]:
    """Of the contestants, and of what they run on."""
    return {
        "fuseunion": fuseunion.__version__,
        "commit": _first_line("git", "-C", str(PROJECT), "describe", "--always", "--dirty"),
        "Python": platform.python_version(),
        "pyfuse3": metadata.version("pyfuse3"),
        "trio": metadata.version("trio"),
        "fuse-overlayfs": _version("fuse-overlayfs"),
        "unionfs-fuse": _version("unionfs-fuse"),
        "podman": _version("podman"),
    }
