"""How an overlay mount of ours is told from others: there is no daemon to ask, so it names us as its source."""

from fuseunion.linux.mountinfo import Mount

TYPE = "overlay"
SOURCE = "fuseunion"


def is_ours(entry: Mount) -> bool:
    """Whether a mount was made here."""
    return entry.fstype == TYPE and entry.source == SOURCE
