"""The values of single options, from text.

Each function takes the text and, where several options have such values, the name of the option for the message. Each
refuses what it cannot read with a UserError (USAGE).
"""

import re
from enum import Enum
from typing import TypeVar

from fuseunion.errors import UserError
from fuseunion.mounting.options.grammar import split_unescaped, unescape
from fuseunion.mounting.options.records import MAX_ID, IdTriple, ImageChoice, XattrPermissions

_MAX_DIGITS = 100

_Choice = TypeVar("_Choice", bound=Enum)


def parse_lowers(text: str, *, skip_empty: bool = False) -> tuple[str, ...]:
    """Split LOWER[:LOWER...], topmost first.

    Args:
        skip_empty: as fuse-overlayfs does; the plain form refuses an empty name instead, which is a typing mistake
            or the kernel's `::` for data-only layers.
    """
    parts = split_unescaped(text, ":")
    if skip_empty:
        parts = [part for part in parts if part]
    if not all(parts):
        raise UserError(f"empty directory name in the lower layers '{text}'; write a colon within a path as '\\:'")
    return tuple(unescape(part) for part in parts)


def parse_id_map(text: str, name: str) -> tuple[IdTriple, ...]:
    """Parse DISK:SHOWN:LEN[:DISK:SHOWN:LEN...].

    Empty elements are skipped: containers/storage writes a colon before the first triple (drivers/overlay/overlay.go,
    optsAppendMappings). Whether the ranges make a map is for core.identity to say.
    """
    numbers = [_number(part, name, text, MAX_ID + 1) for part in text.split(":") if part]
    if not numbers or len(numbers) % 3:
        raise UserError(f"{name}={text}: expected triples DISK:SHOWN:LEN, found {len(numbers)} numbers")
    return tuple(zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=True))


def parse_choice(choices: type[_Choice], text: str, name: str) -> _Choice:
    """One word out of an enumeration."""
    try:
        return choices(text)
    except ValueError:
        words = ", ".join(choice.value for choice in choices)
        raise UserError(f"{name} {text}: expected one of {words}") from None


def parse_injection(text: str) -> tuple[str, str]:
    """Parse SRC:DST; a colon in a path is written `\\:`."""
    parts = split_unescaped(text, ":")
    if len(parts) != 2 or not all(parts) or not unescape(parts[1]).strip("/."):
        raise UserError(f"--inject {text}: expected SRC:DST, with DST a path in MERGED")
    return unescape(parts[0]), unescape(parts[1])


def parse_depth(text: str) -> int:
    """Check the number of levels of --depth."""
    return _number(text, "--depth", text, 1_000_000)


def parse_size(text: str) -> str:
    """Check a tmpfs size: bytes, or with a suffix k, m, g, t, or % of the memory (tmpfs(5))."""
    if not re.fullmatch(r"[1-9][0-9]*[kKmMgGtT%]?", text, re.ASCII):
        raise UserError(f"--size {text}: expected a number with k, m, g, t or %, such as 512m")
    return text.lower()


def parse_id(text: str, name: str) -> int:
    """Check a user or group id."""
    return _number(text, name, text, MAX_ID)


def parse_switch(text: str, name: str) -> bool:
    """0|1, as fuse-overlayfs has it."""
    if text not in ("0", "1"):
        raise UserError(f"{name}={text}: expected 0 or 1")
    return text == "1"


def parse_timeout(text: str, name: str) -> float:
    """A number of seconds, of which 1e9 is one too."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE]\+?[0-9]{1,2})?", text, re.ASCII):
        raise UserError(f"{name}={text}: expected a number of seconds")
    return float(text)


def parse_spin(text: str, name: str) -> int:
    """A number of microseconds, up to a millisecond."""
    try:
        return _number(text, name, text, 1000)
    except UserError:
        raise UserError(f"{name}={text}: expected a number of microseconds, 0 to 1000") from None


def parse_images(text: str, name: str) -> ImageChoice:
    """auto, fuse or kernel."""
    try:
        return ImageChoice(text)
    except ValueError:
        raise UserError(f"{name}={text}: expected auto, fuse or kernel") from None


def parse_xattr_permissions(text: str, name: str) -> XattrPermissions:
    """0|1|2, as fuse-overlayfs has it."""
    try:
        return XattrPermissions(_number(text, name, text, 2))
    except UserError:
        raise UserError(f"{name}={text}: expected 0, 1 or 2") from None


def parse_path(text: str, name: str) -> str:
    """One directory; a colon or a comma in it may be written `\\:` and `\\,`."""
    if not text:
        raise UserError(f"{name}= is empty; give a directory or leave the option out")
    return unescape(text)


def _number(text: str, name: str, whole: str, limit: int) -> int:
    # int(3) refuses what has thousands of digits.
    if not (text.isascii() and text.isdigit()) or len(text) > _MAX_DIGITS or int(text) > limit:
        raise UserError(f"{name}={whole}: '{text}' is not a number between 0 and {limit}")
    return int(text)
