"""One point of what the doctor says; engines say theirs themselves."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One point of what the doctor says.

    Attributes:
        ok: None for a fact that is neither good nor bad.
        remedy: what helps where it is not ok.
    """

    name: str
    ok: bool | None
    says: str
    remedy: str = ""
