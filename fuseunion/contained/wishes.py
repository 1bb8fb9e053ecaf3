"""What the user asked for, beside the union itself."""

from __future__ import annotations

import os
from enum import Enum
from typing import NamedTuple

from fuseunion.errors import UserError
from fuseunion.mounting.options import EngineChoice, Options
from fuseunion.mounting.options.grammar import split_unescaped, unescape
from fuseunion.mounting.options.values import parse_id


class Bind(NamedTuple):
    """Something of the machine that is shown inside.

    Attributes:
        source: its path on the machine; links are followed.
        target: the path inside.
        read_only: with everything that is mounted below it.
    """

    source: str
    target: str
    read_only: bool = False


class Net(Enum):
    """The network that the command has (`--net`)."""

    HOST = "host"
    NONE = "none"
    """Nothing but a loopback device of its own."""


class Wishes(NamedTuple):
    """How a command is to be run.

    Attributes:
        command: empty for a shell.
        environment: what is set, after everything else.
        user: uid and gid inside; None for root.
        place: for --here, the directory at which the union lies in place; None to enter it.
    """

    command: tuple[str, ...] = ()
    binds: tuple[Bind, ...] = ()
    workdir: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    user: tuple[int, int] | None = None
    own_pids: bool = False
    net: Net = Net.HOST
    hostname: str | None = None
    place: str | None = None


def check_engine(options: Options) -> None:
    """Refuse an engine that shows no root directory.

    Raises:
        UserError: USAGE.
    """
    if options.engine is EngineChoice.RANCH:
        raise UserError("--engine ranch: a tree of links is no root directory; use fuse or kernel")


def parse_bind(text: str) -> Bind:
    """SRC[:DST[:ro|rw]]; a colon within a path is written `\\:`.

    Raises:
        UserError: USAGE.
    """
    parts = [unescape(part) for part in split_unescaped(text, ":")]
    words = ("", "ro", "rw")
    source, target, word, *more = [*parts, "", ""][: max(len(parts), 3)]
    if not source or more or word not in words or (len(parts) > 1 and not target):
        raise UserError(f"--bind '{text}' is not SRC[:DST[:ro]]")
    if target and not target.startswith("/"):
        raise UserError(f"--bind '{text}': '{target}' has to be an absolute path, as it is seen inside")
    return Bind(source, target, word == "ro")


def parse_setting(text: str) -> tuple[str, str]:
    """NAME=VALUE.

    Raises:
        UserError: USAGE.
    """
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UserError(f"--env '{text}' is not NAME=VALUE")
    return name, value


def parse_user(text: str) -> tuple[int, int]:
    """UID[:GID]; the group has the same number where none is given.

    Raises:
        UserError: USAGE.
    """
    uid, colon, gid = text.partition(":")
    return parse_id(uid, "--user"), parse_id(gid if colon else uid, "--user")


def parse_hostname(text: str) -> str:
    """A name for sethostname(2).

    Raises:
        UserError: USAGE.
    """
    if len(os.fsencode(text)) > 64 or not all(letter.isalnum() or letter in "-." for letter in text):
        raise UserError(f"--hostname '{text}' is no name of a host: up to 64 letters, digits, '-' and '.'")
    return text
