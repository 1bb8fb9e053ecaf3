"""The command line as data: the options of each command, read from its help text.

The help is the one description of a command that the program carries with it. So a command that is added is completed
as soon as it has a help text, and tests/docs/test_options_agree.py holds the help texts to docs/options.md.
"""

from __future__ import annotations

import importlib
import re
from typing import NamedTuple

from fuseunion.cli.main import COMMANDS
from fuseunion.images.tools.ext.creating import Profile, Type
from fuseunion.mounting.options import EngineChoice, LinkStyle
from fuseunion.mounting.options.vocabulary import WORDS

MOUNT = ""
"""The name under which the mount stands among the commands, having none."""

PATHS = frozenset(("DIR", "FILE", "LOWER[:LOWER...]", "SRC:DST", "SRC[:DST[:ro]]"))
"""Arguments that begin with a path."""

CHOICES = {
    "ENGINE": tuple(choice.value for choice in EngineChoice),
    "STYLE": tuple(style.value for style in LinkStyle),
    "OWNER": ("root",),
    "FORMAT": ("oci", "overlay", "oci-archive"),
    "PROFILE": tuple(profile.value for profile in Profile),
    "TYPE": tuple(type_.value for type_ in Type),
    "FORM": ("kernel", "fuse-overlayfs", "oci"),
    "OPTION[,OPTION...]": WORDS,
}
"""The values of arguments of which there are only some."""

WORD_LIST = "OPTION[,OPTION...]"
"""The argument that is a list with commas between."""


class Option(NamedTuple):
    """One option.

    Attributes:
        spellings: as `-r` and `--read-only`.
        argument: the name of its value, such as DIR; empty where it takes none.
        says: what the help says of it, in one line.
    """

    spellings: tuple[str, ...]
    argument: str
    says: str

    @property
    def is_repeatable(self) -> bool:
        """Whether it may be given more than once."""
        return "repeatable" in self.says or self.argument == WORD_LIST


class Command(NamedTuple):
    """One command.

    Attributes:
        says: what it does, in a few words.
        options: those of the mount too, where it takes them.
        operands: words that may stand there; empty where directories do.
        files: after the first of these words files stand there.
    """

    name: str
    says: str
    options: tuple[Option, ...]
    operands: tuple[str, ...] = ()
    files: bool = False


def commands() -> list[Command]:
    """Every command, the mount first."""
    from fuseunion.cli import mount

    of_mount = options(mount.HELP)
    found = [Command(MOUNT, "mount", of_mount)]
    for name, module in COMMANDS.items():
        text = importlib.import_module(module).HELP
        usage, _, rest = text.partition("\n\n")
        own = options(text)
        known = {spelling for option in own for spelling in option.spellings}
        more = of_mount if re.search(r"options of (the|a) mount", usage) else ()
        own += tuple(option for option in more if not known & set(option.spellings))
        says = re.split(r"[.;:,]\s", " ".join(rest.partition("\n\n")[0].split()))[0].rstrip(".")
        operands = re.search(rf"fuseunion {name} ([a-z]+(?: \| [a-z]+)+)", usage)
        choices = tuple(operands[1].split(" | ")) if operands else ()
        found.append(Command(name, says, own, choices, bool(choices) and " FILE" in usage))
    return found


def options(text: str) -> tuple[Option, ...]:
    """The options of a help text: lines that begin with one, and those that go on beneath."""
    found: list[Option] = []
    for line in text.splitlines():
        if re.match(r" +-\S", line):
            head, _, says = re.sub(r"  +", "\t", line.strip()).partition("\t")
            spellings, argument = [], ""
            for part in re.split(r", (?=-)", head):
                name, _, value = part.partition(" ")
                spellings.append(name)
                argument = value or argument
            found.append(Option(tuple(spellings), argument, says))
        elif found and re.match(r" {9,}\S", line):
            found[-1] = found[-1]._replace(says=f"{found[-1].says} {line.strip()}".strip())
    return tuple(found)
