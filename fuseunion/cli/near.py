"""What somebody may have meant who wrote a word that there is not. Imported when a command fails, never before."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_SIMILAR = 0.7
"""Of 1 (difflib): `unmount` is 0.92 of `umount`, `allow_oter` 0.95 of `allow_other`, `mnt` 0.67 of `umount`."""

_OTHER_NAMES = {
    "detach": "umount", "remove": "umount", "stop": "umount", "u": "umount", "um": "umount",
    "info": "doctor", "fix": "doctor", "repair": "doctor",
    "fsck": "check", "verify": "check", "clean": "vacuum", "prune": "vacuum", "gc": "vacuum",
    "rollback": "restore", "revert": "restore",
    "flush": "sync", "fsync": "sync",
    "copy-up": "promote", "copyup": "promote",
    "logs": "log", "history": "log", "where": "which", "whence": "which", "watch": "top", "monitor": "top",
    "reload": "refresh", "invalidate": "refresh", "add": "add-lower", "append": "add-lower",
    "list": "status", "ls": "status", "ps": "status",
    "changes": "diff", "changed": "diff", "pack": "export", "save": "export", "tar": "export",
    "load": "import", "unpack": "import", "push": "apply", "merge": "commit",
    "run": "exec", "shell": "exec", "enter": "exec",
}  # fmt: skip
"""What other programs call these commands."""

_NO_COMMANDS = {
    "mount": "a mount has no command name: fuseunion LOWER[:LOWER...] UPPER MERGED",
    "help": "see fuseunion --help",
    "version": "see fuseunion --version",
}
"""Words that are no commands, and what was wanted."""


def closest(written: str, known: Iterable[str]) -> str | None:
    """The known word that is most like the written one; None where none is like it."""
    return next(iter(get_close_matches(written, sorted(known), 1, _SIMILAR)), None)


def command(written: str, commands: Iterable[str]) -> str | None:
    """A remedy for a command that there is not; None where nothing comes near it.

    Args:
        written: what stands where a command, or LOWER, should.
        commands: which there are.
    """
    known = frozenset(commands)
    name = written.lower().lstrip("-")
    if name in _NO_COMMANDS:
        return _NO_COMMANDS[name]
    meant = name if name in known else _OTHER_NAMES.get(name)
    if meant not in known:
        # `--sync` may be an option that there is not; a command it is only with exactly this name.
        meant = closest(name, known) if not written.startswith("-") else None
    return f"did you mean 'fuseunion {meant}'?" if meant else None


def option(written: str, options: Iterable[str], words: Iterable[str] = ()) -> str | None:
    """What was meant by an unknown option, as a question; None where nothing comes near it.

    Args:
        written: `--readonly`, `--size=1`, or a word of -o such as `allow_oter`.
        options: the options that there are, with their dashes.
        words: the words of -o that there are, with `=` where a value follows.
    """
    name, _, value = written.partition("=")
    names = {word.partition("=")[0] + ("=" if "=" in word else ""): word for word in words}
    long = f"--{name.lstrip('-').replace('_', '-')}"
    word = name.lstrip("-").replace("-", "_")
    if name.startswith("--"):
        # An option of other programs that is a word of -o here comes before what merely looks like it.
        options = set(options)
        for exact in (word, f"{word}="):
            if exact in names and long not in options:
                return f"did you mean -o {exact}{value if exact.endswith('=') else ''}?"
        meant = closest(long.lower(), options)
        return f"did you mean {meant}?" if meant else None
    if name.startswith("-"):
        if f"-{name}" in options:
            return f"did you mean -{name}?"
        single = [f"-{letter}" for letter in written[1:]]
        return f"did you mean {' '.join(single)}?" if len(single) > 1 and set(single) <= set(options) else None
    if long in options:
        return f"did you mean {long}?"
    meant = closest(word.lower(), {each.rstrip("=") for each in names})
    if meant is None:
        return None
    return f"did you mean -o {meant if meant in names else f'{meant}='}?"
