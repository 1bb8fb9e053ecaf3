"""What the user asked for: the frozen Options, the `-o` grammar, id maps and path escapes.

The grammar of an option string, parsed here and never by libfuse (whose own pass would remove a level of backslashes):

    string   = [word] ("," [word])*             empty words are normal: podman passes "workdir=W,,volatile"
    word     = NAME | NAME "=" value
    value    = bare | '"' quoted '"'            a quote opens directly after "=", and only if it is closed again;
                                                commas inside are literal: context="system_u:s0:c1,c2"
    escapes  = "\\:" "\\," "\\\\" '\\"'         the literal character; a backslash before anything else is itself,
                                                as in /home/DOMAIN\\user

`lowerdir` is split at unescaped colons first and unescaped afterwards, so that `\\:` is a colon in a path, as in the
kernel (fs/overlayfs/params.c) and in what buildah writes.

Every word of kernel overlayfs (Documentation/filesystems/overlayfs.rst) and of fuse-overlayfs (its manual page) has one
of three fates: it sets a field of Options; it is accepted in silence, because it asks for what is so anyway or has no
meaning here (SILENT); or it is unknown or unavailable. The last is an error on the plain command line and one line on
stderr in the mount-program form, since container engines pass words through that they do not understand themselves.

An error in both forms is what would make another mount than was meant, above all one without its upper: a bad value, a
layer without one, a layer word that is misspelt, `remount`.
"""

import re
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from fuseunion.errors import UserError

DEFAULT_TIMEOUT = 1e9
"""Seconds that the kernel may keep entries and attributes: nobody else changes the layers of a live mount."""

MAX_ID = 2**32 - 2
"""The largest uid or gid; 2**32 - 1 means "unchanged" to chown(2)."""


_Choice = TypeVar("_Choice", bound=Enum)

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


class Engine(Enum):
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
    engine: Engine = Engine.AUTO
    ranch: RanchOptions = RanchOptions()
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
    timeout: float = DEFAULT_TIMEOUT
    volatile: bool = False
    fsync: bool = True
    acl: bool = True
    xattrs: bool = True
    uid_map: tuple[IdTriple, ...] = ()
    gid_map: tuple[IdTriple, ...] = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    xattr_permissions: XattrPermissions = XattrPermissions.OFF
    ignored: tuple[str, ...] = ()
    """Words of the mount-program form that were not understood, to be reported one line each."""

    @property
    def wants_access_times(self) -> str:
        """The words that ask for access times, for a message; empty when none does."""
        return ", ".join(word for word in self.access_times if word in ACCESS_TIMES)


def unescape(text: str) -> str:
    """Resolve `\\:`, `\\,`, `\\\\` and `\\"`; any other backslash is an ordinary character."""
    return re.sub(r'\\([:,\\"])', r"\1", text) if "\\" in text else text


def escape(path: str) -> str:
    """Write a path so that it survives as one element of `lowerdir=`, in a command line that is shown to the user."""
    return re.sub(r'([:,\\"])', r"\\\1", path)


def split_unescaped(text: str, separator: str) -> list[str]:
    """Split at each `separator` that no backslash protects; the parts keep their escapes."""
    if "\\" not in text:
        return text.split(separator)
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == separator:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def split_words(text: str) -> list[tuple[str, str | None]]:
    """Split an option string into (name, raw value or None); raw values keep their escapes, quotes are removed."""
    words: list[tuple[str, str | None]] = []
    while text:
        quoted = re.match(r'([^=,\\"]+)="((?:[^"\\]|\\.)*)"(?:,|$)', text, re.DOTALL)
        if quoted:
            words.append((quoted[1], quoted[2]))
            text = text[quoted.end() :]
            continue
        word = split_unescaped(text, ",")[0]
        text = text[len(word) + 1 :]
        if word:
            name, equals, value = word.partition("=")
            words.append((name, value if equals else None))
    return words


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


def parse_choice(choices: type[_Choice], name: str, text: str) -> _Choice:
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


def _number(text: str, name: str, whole: str, limit: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > limit:
        raise UserError(f"{name}={whole}: '{text}' is not a number between 0 and {limit}")
    return int(text)


def _identity(name: str, value: str) -> int:
    return _number(value, name, value, MAX_ID)


def _switch(name: str, value: str) -> bool:
    """0|1, as fuse-overlayfs has it."""
    if value not in ("0", "1"):
        raise UserError(f"{name}={value}: expected 0 or 1")
    return value == "1"


def _timeout(name: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?([eE]\+?[0-9]{1,2})?", value, re.ASCII):
        raise UserError(f"{name}={value}: expected a number of seconds")
    return float(value)


def _xattr_permissions(name: str, value: str) -> XattrPermissions:
    try:
        return XattrPermissions(_number(value, name, value, 2))
    except UserError:
        raise UserError(f"{name}={value}: expected 0, 1 or 2") from None


def _path(name: str, value: str) -> str:
    if not value:
        raise UserError(f"{name}= is empty; give a directory or leave the option out")
    return unescape(value)


LAYER_WORDS = ("lowerdir", "upperdir", "workdir")

_FLAGS: dict[str, tuple[str, Any]] = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "allow_root": ("allow_root", True),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "exec": ("exec", True),
    "noexec": ("exec", False),
    "volatile": ("volatile", True),
    "noacl": ("acl", False),
    "static_nlink": ("static_nlink", True),
}

_VALUES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "uidmapping": ("uid_map", lambda name, value: parse_id_map(value, name)),
    "gidmapping": ("gid_map", lambda name, value: parse_id_map(value, name)),
    "squash_to_uid": ("squash_uid", _identity),
    "squash_to_gid": ("squash_gid", _identity),
    "xattr_permissions": ("xattr_permissions", _xattr_permissions),
    "timeout": ("timeout", _timeout),
    "noxattrs": ("xattrs", lambda name, value: not _switch(name, value)),
}

SILENT = frozenset((
    # what mount(8), fstab and systemd add for themselves
    "defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev", "nonempty",
    "fsname", "subtype", "comment", "async", "silent", "loud", "mand", "nomand", "iversion", "noiversion",
    "bind", "rbind", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    # security labels: fuse-overlayfs ignores them too
    "context", "fscontext", "defcontext", "rootcontext",
    # tuning of other implementations
    "kernel_cache", "auto_cache", "big_writes", "max_write", "max_read", "max_readahead", "threaded", "writeback",
    "splice_read", "splice_write", "splice_move", "no_splice_read", "no_splice_write", "no_splice_move",
    "fast_ino",
    # what is so here anyway
    "default_permissions", "userxattr", "index", "xino", "ino32_t", "uuid",
))  # fmt: skip
"""Words that change nothing here and are accepted without a remark, in both forms, with any value."""

_ONLY: dict[str, tuple[str, ...]] = {
    "redirect_dir": ("off", "nofollow"),
    "metacopy": ("off",),
    "nfs_export": ("off",),
    "verity": ("off",),
}
"""Words of the kernel of which only these values can be honoured."""


def apply_words(fields: dict[str, Any], text: str, form: Form) -> list[str]:
    """Apply one `-o` string to the keyword arguments of an Options under construction.

    Args:
        fields: changed in place; the last word for a field wins.
        form: a person is told of more mistakes than a program, which has its reasons.
    Returns:
        The words that are unknown or cannot be honoured.
    Raises:
        UserError: a known word with a bad value, in either form, and what else the module says.
    """
    unknown = []
    for name, value in split_words(text):
        shown = name if value is None else f"{name}={value}"
        if value is None and name in _FLAGS:
            key, fixed = _FLAGS[name]
            fields[key] = fixed
        elif name in LAYER_WORDS:
            if value is None:
                raise UserError(f"{name} needs a value: {name}=DIRECTORY")
            set_layer(fields, name, value, form)
        elif value is not None and name in _VALUES:
            key, convert = _VALUES[name]
            fields[key] = convert(name, value)
        elif name == "remount":
            raise UserError(
                "remount: a mount cannot be changed; unmount it (fuseunion umount MERGED) and mount it again with the "
                "new options"
            )
        elif name == "squash_to_root" and value is None:
            # squash_to_uid= and squash_to_gid= beat this one wherever they stand (fuse-overlayfs(1)).
            fields["squash_root"] = True
        elif value is None and name.removeprefix("no") in ACCESS_TIMES:
            if form is Form.MOUNT_PROGRAM and name in ACCESS_TIMES:
                # mount(8) and fstab pass what suits any filesystem: they get their mount, and hear that it has none.
                unknown.append(shown)
            else:
                fields["access_times"] = _access_times(fields.get("access_times", ()), name)
        elif name == "fsync" and value is not None:
            fields.update(_fsync(value))
        elif name in _ONLY and value is not None:
            if value not in _ONLY[name]:
                unknown.append(shown)
        elif name not in SILENT and not name.startswith(("x-", "X-")):
            _refuse_misspelt(name)
            unknown.append(shown)
    return unknown


def set_layer(fields: dict[str, Any], name: str, value: str, form: Form) -> None:
    """Set the directories of lowerdir=, upperdir= or workdir=.

    Raises:
        UserError: no value; in the plain form another one than before, since the first would be lost.
    """
    given: str | tuple[str, ...]
    if name == "lowerdir":
        key, given = "lowers", parse_lowers(value, skip_empty=form is Form.MOUNT_PROGRAM)
    else:
        key, given = name.removesuffix("dir"), _path(name, value)
    if form is Form.PLAIN and fields.get(key, given) != given:
        remedy = "; several lower directories are one value: LOWER:LOWER" if key == "lowers" else ""
        raise UserError(f"{name} is given twice, the second time as '{value}'{remedy}")
    fields[key] = given


def _refuse_misspelt(name: str) -> None:
    """An unknown word that was meant to name a layer: without it the mount would be another."""
    from difflib import get_close_matches  # only here: most mounts have no unknown words

    written = f"{name}dir" if f"{name}dir" in LAYER_WORDS else name.lower()
    for meant in get_close_matches(written, LAYER_WORDS, 1, 0.8):
        raise UserError(f"unknown option '{name}'; did you mean {meant}= ?")


def _access_times(words: tuple[str, ...], name: str) -> tuple[str, ...]:
    """What is asked for after one more word; noatime is the default, and takes back all the others."""
    if name == "noatime":
        return ()
    replaced = {name, name.removeprefix("no") if name.startswith("no") else f"no{name}"}
    if name in ("relatime", "strictatime"):
        replaced |= {"relatime", "strictatime"}
    left = tuple(word for word in words if word not in replaced)
    return (*left, name) if name in (*ACCESS_TIMES, "nodiratime") else left


def _fsync(value: str) -> dict[str, bool]:
    """fsync=0|1 of fuse-overlayfs, fsync=volatile|auto|strict of newer kernels."""
    if value == "volatile":
        return {"volatile": True}
    if value in ("auto", "strict"):
        return {"fsync": True}
    return {"fsync": _switch("fsync", value)}


def finish(fields: dict[str, Any]) -> Options:
    """Make the Options; `squash_root` resolves to the two squash fields here."""
    if fields.pop("squash_root", False):
        fields.setdefault("squash_uid", 0)
        fields.setdefault("squash_gid", 0)
    return Options(**fields)
