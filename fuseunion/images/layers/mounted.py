"""An image that is shown in a mount that is in no tree: only who holds its root can reach it.

Such a mount lives as long as something in it is open. So nothing is visible to anybody, and nothing can be left behind:
however the daemon ends, the kernel closes its descriptors, and the filesystem goes with the last of them. Who shows it,
the kernel itself (by_kernel.py) or a program (by_program.py), then writes out what is still to be written, and lets go
of the open file that the image was given by, and with it of the lock (fuseunion/images/locks.py).

In the ordinary end somebody waits for that (`finish`), so that the image is complete when the command returns.
"""

import os
from abc import ABC, abstractmethod

from fuseunion.errors import ExitCode, UserError
from fuseunion.images import ext
from fuseunion.images.layers.programs import Wanted
from fuseunion.images.recognise import Kind

SOON = 5.0
"""Seconds that it usually takes at most to write out; after that the log says that it is waited for."""

AT_MOST = 120.0
"""Seconds after which it is left to itself. It goes on, and the image stays locked."""


class Mounted(ABC):
    """One image, or one partition of one, that is shown to this process.

    Args:
        path: of the file, for messages.
        wanted: what it is.
        image_fd: of the file, locked; stays the caller's.

    Attributes:
        path: of the image file.
        root_fd: an O_RDONLY descriptor of its root; the caller closes it.
        pidfd: of the program that shows it, readable when that has ended; None where there is none.
        device: st_dev of what it shows.
    """

    root_fd: int
    device: int
    pidfd: int | None = None

    def __init__(self, path: str, wanted: Wanted, image_fd: int) -> None:
        self.path = path
        self.wanted = wanted
        self._image_fd = os.dup(image_fd)

    @property
    def writable(self) -> bool:
        """Whether it may be changed."""
        return self.wanted.writable

    @property
    def file_key(self) -> tuple[int, int]:
        """st_dev and st_ino of the file."""
        st = os.fstat(self._image_fd)
        return st.st_dev, st.st_ino

    @property
    @abstractmethod
    def by(self) -> str:
        """Who shows it, in a few words."""

    def died(self) -> str:
        """What is logged when the program ends though the image is in use."""
        return ""

    @abstractmethod
    def let_go(self) -> None:
        """Another process waits for it."""

    @abstractmethod
    def finish(self) -> None:
        """Wait until it is not mounted any more, and put the image on disk.

        Precondition: nothing of the image is open in this process but what this object has.

        Raises:
            UserError: FAILURE: what was written last may be lost.
        """

    def _put_on_disk(self, why: str) -> None:
        """Precondition: nobody has it mounted.

        Args:
            why: it may not be in order, for the message.

        Raises:
            UserError: FAILURE.
        """
        try:
            os.fsync(self._image_fd)
        except OSError as error:
            raise self._cannot_be_written(error) from None
        if self.wanted.kind is Kind.EXT:
            ext.refuse_disorder(self._image_fd, self.path, self.wanted.offset, why)

    def _cannot_be_written(self, error: OSError) -> UserError:
        return UserError(
            f"image '{self.path}' cannot be written to disk: {error.strerror}; what was changed last may be lost",
            ExitCode.FAILURE,
        )
