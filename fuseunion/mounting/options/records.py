"""What the user asked for: the frozen Options of one mount, and the closed sets of words in them."""

from enum import Enum
from typing import NamedTuple

DEFAULT_TIMEOUT = 1e9

DEFAULT_SPIN = 50
"""Microseconds; a wake-up takes about as long."""
"""Seconds that the kernel may keep entries and attributes: nobody else changes the layers of a live mount."""

MAX_ID = 2**32 - 2
"""The largest uid or gid; 2**32 - 1 means "unchanged" to chown(2)."""

ACCESS_TIMES = ("atime", "relatime", "strictatime", "diratime", "lazytime")
"""Words of mount(8) that ask for access times. With `no` before them they ask for what is so anyway."""

IdTriple = tuple[int, int, int]
"""DISK, SHOWN, LEN: the ids disk, disk+1, ... on disk are seen as shown, shown+1, ... in the mount."""


class XattrPermissions(Enum):
    """Where owner, mode and device number are stored (`xattr_permissions=`)."""

    OFF = 0
    PRIVILEGED = 1
    """security.fuseoverlayfs.override_stat: needs real root."""
    CONTAINERS = 2
    """user.containers.override_stat: any user."""


class ImageChoice(Enum):
    """Who shows the layers that are image files (`images=`)."""

    AUTO = "auto"
    FUSE = "fuse"
    KERNEL = "kernel"


class EngineChoice(Enum):
    """Who shows the union (`--engine`)."""

    AUTO = "auto"
    """fuse; where it cannot be had, kernel; else ranch."""
    FUSE = "fuse"
    KERNEL = "kernel"
    RANCH = "ranch"
    FASTEST = "fastest"
    """kernel where it can do what is asked for, then fuse, then ranch."""


class LinkStyle(Enum):
    """What the links of a ranch begin with (`--links`)."""

    ABSOLUTE = "absolute"
    RELATIVE = "relative"


class RanchOptions(NamedTuple):
    """How a ranch is made, where one is.

    Attributes:
        depth: levels of directories that are real ones; None for all.
        copies: patterns of files that get a private copy at once.
        inject: (SRC, DST): DST in the ranch shows SRC.
        allow_writable_lower: links may lead to what the user can change.
    """

    links: LinkStyle = LinkStyle.ABSOLUTE
    depth: int | None = None
    copies: tuple[str, ...] = ()
    inject: tuple[tuple[str, str], ...] = ()
    allow_writable_lower: bool = False


class Form(Enum):
    """How the program was called."""

    PLAIN = "plain"
    """By a person: an option that is not understood is an error."""
    MOUNT_PROGRAM = "mount program"
    """By a container engine or mount(8): an option that is not understood is reported and ignored."""


class Options(NamedTuple):
    """One mount, as asked for. Paths are as given: nothing has been looked up yet.

    A named tuple, like every record that a mount needs to start: a dataclass of this size takes 4 ms to define.

    `lowers` is topmost first. `upper` None means a read-only mount or, with `ephemeral`, an upper that ends with it.
    `suid`, `dev`, `allow_other` None mean "as fits the mounting user".
    """

    target: str
    lowers: tuple[str, ...]
    upper: str | None = None
    work: str | None = None
    form: Form = Form.PLAIN
    engine: EngineChoice = EngineChoice.AUTO
    ranch: RanchOptions = RanchOptions()
    source: str | None = None
    """What /proc/mounts shows in the place of a device, where the caller names it; else the lowers."""
    read_only: bool = False
    ephemeral: bool = False
    size: str | None = None
    foreground: bool = False
    trace: bool = False
    log_file: str | None = None
    allow_other: bool | None = None
    allow_root: bool = False
    suid: bool | None = None
    dev: bool | None = None
    exec: bool = True
    access_times: tuple[str, ...] = ()
    """The words of mount(8) about access times that ask for another thing than noatime."""
    static_nlink: bool = False
    list_layers: bool = False
    timeout: float = DEFAULT_TIMEOUT
    images: ImageChoice = ImageChoice.AUTO
    spin: int = DEFAULT_SPIN
    """How long the daemon looks for another request before it sleeps, in microseconds."""
    volatile: bool = False
    fsync: bool = True
    acl: bool = True
    xattrs: bool = True
    uid_map: tuple[IdTriple, ...] = ()
    gid_map: tuple[IdTriple, ...] = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    mine: bool = False
    """Squashed to the one who mounts, by --mine."""
    stranger_uid: int | None = None
    """Whose the files are shown as whose owner has no number in the user namespace; None for nobody's."""
    stranger_gid: int | None = None
    hides_upper: bool = False
    """The upper and the work directory may lie in a lower, which then shows them as empty directories."""
    closed_is_empty: bool = False
    """Directories of the lowers that the one who mounts may not search are empty ones, not EACCES."""
    xattr_permissions: XattrPermissions = XattrPermissions.OFF
    redirect_dir: bool = False
    metacopy: bool = False
    ignored: tuple[str, ...] = ()
    """Words of the mount-program form that were not understood, to be reported one line each."""

    @property
    def keeps_acls(self) -> bool:
        """Whether there are ACLs: they are extended attributes.

        The kernel must not be told of them otherwise: it asks for the ACL of whatever the caller does not own, and
        takes EOPNOTSUPP for the answer to the caller's request (fs/fuse/acl.c fuse_get_acl).
        """
        return self.acl and self.xattrs

    @property
    def wants_access_times(self) -> str:
        """The words that ask for access times, for a message; empty when none does."""
        return ", ".join(word for word in self.access_times if word in ACCESS_TIMES)
