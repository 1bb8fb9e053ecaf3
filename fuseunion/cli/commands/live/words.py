"""Numbers and names as a person reads them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A short time."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def size(count: float) -> str:
    """A number of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("every number has a unit")


def write_line(text: str) -> None:
    """Print a line, also one that the terminal's encoding has no characters for."""
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
