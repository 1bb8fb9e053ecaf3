"""What the upper of a union changes of its lowers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Changes:
    """Paths from the root of the merged tree, in order, without a slash in front; true when there are any.

    Attributes:
        added: what the lowers do not have; of a new directory with everything in it.
        modified: what they have with another type, content, mode, owner or attribute. A file that was only opened, or
            whose times alone are others, is not among them.
        deleted: what they have and the union does not; of a directory that is gone it alone.
    """

    added: tuple[str, ...] = ()
    modified: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.modified or self.deleted)

    def __str__(self) -> str:
        """One line for each: `A path`, `M path`, `D path`, by path."""
        kinds = (("A", self.added), ("M", self.modified), ("D", self.deleted))
        lines = sorted((path, kind) for kind, paths in kinds for path in paths)
        return "\n".join(f"{kind} {path}" for path, kind in lines)
