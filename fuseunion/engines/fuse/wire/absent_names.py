"""Names that are not there, which `_device.c` finds out by itself: before a name is made, it is always looked up.

A directory is shared with it by descriptors of all its layers. What it says cannot be wrong later: it asks the layers
each time, and all of them, because layers are never added to a directory that is shared (Union.whole_stack), but for a
lower of the whole mount, before which all are taken back (asking/sockets/adding.py); one that is taken away only makes
it leave the answer to Python. A shared directory is forgotten when the kernel forgets its number, when another takes
its place, and when nobody has asked for anything for a while.
"""

from __future__ import annotations

from fuseunion.core.union import Union
from fuseunion.engines.fuse.wire.native.device import device

_DESCRIPTORS = 48
"""Of the directories that the module shares at most (_device.c, DIRECTORIES times LAYERS)."""


class AbsentNames:
    """The directories of one mount that are shared."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._any = False
        self._may = union.descriptors_to_spare(_DESCRIPTORS)

    def found_in(self, number: int) -> None:
        """A name was found not to be in a directory: others will not be in it either."""
        if not self._may:
            return
        assert device is not None
        try:
            fds = self._union.whole_stack(self._union.directory(number))
            if fds is None:
                return
            device.share_directory(number, fds)
        except OSError:
            return  # no descriptor left, or one of them is covered by a mount: Python answers
        self._any = True

    def __bool__(self) -> bool:
        """Whether a directory may be shared."""
        return self._any

    def close(self) -> None:
        """Share none any more."""
        if self._any:
            assert device is not None
            device.unshare_directories()
            self._any = False
