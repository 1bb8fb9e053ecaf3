"""Directories that the extension looks at and makes files in by itself.

A directory is shared with it by descriptors of all its layers. What it says of names that are not there cannot be wrong
later: it asks the layers each time, and all of them (Union.whole_stack). A directory that is copied up is taken back
before anything is made in its upper part, and so is one that the lowers leave or that goes, for its count of links
(Union.on_restacked); all are before a lower of the whole mount is added (asking/sockets/adding.py). What it says of the
directory is what the upper's has now. One of many layers is shared by the upper's descriptor alone, and not asked for
names. A file that it makes is Python's as soon as it is made (Answers.made).

A shared directory is forgotten when the kernel forgets its number, when another takes its place, and when nobody has
asked for anything for a while.
"""

from __future__ import annotations

from fuseunion.core.tree.directory import Directory
from fuseunion.engines.fuse.serving.requests import Requests
from fuseunion.engines.fuse.wire.native.device import device

_DESCRIPTORS = 48
"""Of the directories that the module shares at most (directories.c, PLACES times LAYERS)."""


class SharedDirectories:
    """The directories of one mount that are shared.

    Args:
        shows_all: the kernel decides who may change what.
    """

    def __init__(self, requests: Requests, *, shows_all: bool) -> None:
        self._requests = requests
        self._union = union = requests.union
        self._shows_all = shows_all
        self._any = False
        self._has_descriptors = union.descriptors_to_spare(_DESCRIPTORS)
        union.on_restacked(self._restacked)
        self._made_in = 0  # the number of the last directory that was shared for what is made in it
        self._looked_at = 0  # of the last of which Python said the attributes

    @property
    def _may(self) -> bool:
        """Whether one may be shared: none while the kernel may not remember names, which the extension would let it."""
        return self._has_descriptors and self._requests.renewed is None

    def lacks_a_name(self, directory: Directory) -> None:
        """A name was found not to be in a directory: others will not be in it either."""
        if self._may:
            self._share(directory, for_names=True)

    def made_file(self, directory: Directory) -> None:
        """A file was made in a directory by Python: the next one need not be, if that is why it was."""
        if self._may and directory.ino != self._made_in and self._makes(directory):
            self._made_in = directory.ino
            self._share(directory, for_names=True)

    def _restacked(self, directory: Directory) -> None:
        if directory.ino == self._made_in:
            self._made_in = 0
        if self._any:
            assert device is not None
            device.unshare_directory(directory.ino)

    def looked_at(self, directory: Directory) -> None:
        """Python was asked for the attributes of a directory. If it is twice in a row, as where names are removed one
        after the other, the next time need not be."""
        if directory.ino != self._looked_at:
            self._looked_at = directory.ino
        elif self._may and self._shows(directory):
            self._share(directory, for_names=False)

    def _shows(self, directory: Directory) -> bool:
        return self._shows_all and self._union.shows_directory_as_it_is(directory)

    def _makes(self, directory: Directory) -> bool:
        return self._shows_all and self._union.settings.identity.trivial and self._union.makes_at_once(directory)

    def _share(self, directory: Directory, *, for_names: bool) -> None:
        assert device is not None
        uses = 0
        try:
            fds = self._union.whole_stack(directory)
            if fds is not None:
                uses = device.NAMES | self._use_to_make(directory)
            elif for_names:
                return
            else:
                fds = (self._union.upper_part(directory),)
            if self._shows(directory):
                uses |= device.SHOWN | (device.ONE_LINK if self._union.shows_one_link(directory) else 0)
            device.share_directory(directory.ino, fds, uses)
        except OSError:
            return  # no descriptor left, or one of them is covered by a mount: Python answers
        self._any = True

    def _use_to_make(self, directory: Directory) -> int:
        assert device is not None
        if not self._makes(directory):
            return 0
        settings = self._union.settings
        use: int = device.MADE
        if settings.umask_pending:
            use |= device.UMASK
        if not settings.static_nlink:
            use |= device.DIRECTORIES
        return use

    def __bool__(self) -> bool:
        """Whether a directory may be shared."""
        return self._any

    def close(self) -> None:
        """Share none any more."""
        self._made_in = self._looked_at = 0
        if self._any:
            assert device is not None
            device.unshare_directories()
            self._any = False
