"""One point of what the doctor says; engines say theirs themselves."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One point of what the doctor says.

    Attributes:
        ok: None for a fact that is neither good nor bad.
        remedy: what helps where it is not ok; never empty for a "no", and empty where it is ok.
    """

    name: str
    ok: bool | None
    says: str
    remedy: str = ""


def refused(name: str, message: str, remedy: str) -> Finding:
    """A "no" with the message of an error, which mostly has its remedy after a semicolon.

    Args:
        remedy: where the message has none.
    """
    says, _, own = message.partition("; ")
    return Finding(name, False, says, own or remedy)
