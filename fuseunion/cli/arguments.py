"""The arguments of the mount command: which operand is which, and in which form the program was called.

Hand-written, because a container engine starts the program for every mount and argparse alone takes as long as all of
this. Operands, by what `-o` leaves open:

    fuseunion LOWER[:LOWER...] UPPER MERGED
    fuseunion --read-only LOWER[:LOWER...] [UPPER] MERGED   also -o ro
    fuseunion --ephemeral LOWER[:LOWER...] MERGED
    fuseunion -o lowerdir=LOWER... UPPER MERGED             lowerdir= and upperdir= each replace their operand
    fuseunion [-f] -o lowerdir=...[,upperdir=...] MERGED    mount program: podman, buildah, Apptainer
    fuseunion SOURCE MERGED -o lowerdir=... [-o ...]        mount program: mount.fuse3, fstab, containerd

An operand before MERGED, when lowerdir= is given, is a SOURCE (only a label) if it is one of the customary labels in
SOURCES, or if the program is called as a mount program and UPPER cannot be meant: upperdir= or ro is given too. The two
mount-program lines are recognised by lowerdir= without any option that only a person would write (the long ones), or by
the name that the program is called under.
"""

import os
from typing import Any

from fuseunion.errors import UserError
from fuseunion.mounting.options import EngineChoice, Form, LinkStyle, Options, RanchOptions
from fuseunion.mounting.options.options_builder import OptionsBuilder
from fuseunion.mounting.options.values import (
    parse_choice,
    parse_depth,
    parse_id_map,
    parse_injection,
    parse_lowers,
    parse_size,
    parse_timeout,
)

SOURCES = frozenset(("overlay", "overlayfs", "fuseunion", "fuse-overlayfs", "fuse", "none"))

MOUNT_PROGRAM_NAME = "fuse-overlayfs"
"""Called under this name (a symbolic link), the program is always a mount program."""

_FLAGS = {
    "-f": "foreground",
    "--foreground": "foreground",
    "-d": "trace",
    "--debug": "trace",
    "-r": "read_only",
    "--read-only": "read_only",
    "--ephemeral": "ephemeral",
    "--volatile": "volatile",
    "--allow-other": "allow_other",
    "--mine": "mine",
}
"""Options without a value, and the field of Options that each sets."""

_WITH_VALUE = frozenset((
    "-o", "--options", "--work", "--size", "--log-file", "--uid-map", "--gid-map", "--timeout", "--engine",
    "--links", "--depth", "--copy", "--inject",
))  # fmt: skip

OPTIONS = frozenset((
    *_FLAGS, *_WITH_VALUE, "--fakeroot", "--allow-writable-lower", "-h", "--help", "-V", "--version",
))  # fmt: skip
"""Every option of a mount."""

_MOUNT_PROGRAM_ARGUMENTS = frozenset(("-f", "-d", "-o", "--foreground", "--debug"))


def parse(arguments: list[str], program: str = "fuseunion") -> Options:
    """Parse the arguments of one mount.

    Args:
        arguments: without the program's name.
        program: the name the program was called under.
    Raises:
        UserError: USAGE, with what is wrong and the remedy.
    """
    operands, options = _scan(arguments)
    words = [value for name, value in options if name in ("-o", "--options")]
    named = os.path.basename(program) == MOUNT_PROGRAM_NAME
    form = _form(words, operands, {name for name, _ in options}, named)

    builder = OptionsBuilder(form)
    unknown: list[str] = []
    for name, value in options:
        unknown += _apply(builder, name, value)
    if unknown and form is Form.PLAIN:
        raise _unknown(unknown[0])
    builder.so_far = builder.so_far._replace(ignored=tuple(unknown))
    if {"-r", "--read-only"} & {name for name, _ in options} and not builder.so_far.read_only:
        raise UserError("--read-only and -o rw contradict each other; leave one of them out")
    _place_operands(builder, operands)
    _check_combination(builder.so_far)
    return builder.build()


def operands(arguments: list[str]) -> list[str]:
    """What in the arguments of a mount is neither an option nor the value of one.

    Raises:
        UserError: USAGE: a value is missing or empty.
    """
    return _scan(arguments)[0]


def is_read_only(arguments: list[str]) -> bool:
    """Whether the arguments of a mount ask for one that is read-only, by an option or a word of -o.

    Raises:
        UserError: USAGE: a value is wrong, missing or empty.
    """
    builder = OptionsBuilder(Form.PLAIN)
    for name, value in _scan(arguments)[1]:
        _apply(builder, name, value)
    return builder.so_far.read_only


def _unknown(written: str) -> UserError:
    from fuseunion.cli import near
    from fuseunion.mounting.options.vocabulary import WORDS

    remedy = near.option(written, OPTIONS, WORDS) or "see fuseunion --help"
    if written in OPTIONS or written.partition("=")[0] in OPTIONS:
        return UserError(f"{written.partition('=')[0]} takes no value; see fuseunion --help")
    return UserError(f"unknown or unavailable option '{written}'; {remedy}")


def _scan(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separate operands from options; options may stand anywhere until `--`."""
    operands: list[str] = []
    options: list[tuple[str, str]] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--":
            operands.extend(rest)
        elif argument == "-" or not argument.startswith("-"):
            operands.append(argument)
        elif argument in _WITH_VALUE:
            following = next(rest, None)
            if following is None:
                raise UserError(f"{argument} needs a value; see fuseunion --help")
            options.append((argument, _value(argument, following)))
        elif argument.startswith("--") and equals and name in _WITH_VALUE:
            options.append((name, _value(name, value)))
        elif argument.startswith("-o"):
            options.append(("-o", argument[2:]))
        else:
            options.append((argument, ""))
    return operands, options


def _value(name: str, value: str) -> str:
    """The value of an option. Only -o may have an empty one, which container engines pass."""
    if not value and name not in ("-o", "--options"):
        raise UserError(f"the value of {name} is empty; is a variable not set?")
    return value


def _form(words: list[str], operands: list[str], names: set[str], named: bool) -> Form:
    if named:
        return Form.MOUNT_PROGRAM
    given = OptionsBuilder(Form.MOUNT_PROGRAM)
    for text in words:
        given.apply_words(text)
    if not given.has_lowers or not names <= _MOUNT_PROGRAM_ARGUMENTS:
        return Form.PLAIN
    if len(operands) == 1 or (len(operands) == 2 and _is_source(given.so_far, operands[0])):
        return Form.MOUNT_PROGRAM
    return Form.PLAIN


def _is_source(options: Options, operand: str) -> bool:
    if operand in SOURCES:
        return True
    return options.form is Form.MOUNT_PROGRAM and (options.upper is not None or options.read_only)


def _apply(builder: OptionsBuilder, name: str, value: str) -> list[str]:
    """Apply one option; returns what is unknown in it."""
    if name in ("-o", "--options"):
        return builder.apply_words(value)
    if name == "--fakeroot":
        return builder.apply_words("xattr_permissions=2")
    if name == "--timeout":
        builder.so_far = builder.so_far._replace(timeout=parse_timeout(value, name))
        return []
    if name == "--work":
        builder.set_layer("workdir", value)
        return []
    changed = _option(builder.so_far, name, value)
    if changed is None:
        ranch = _ranch_option(builder.so_far.ranch, name, value)
        if ranch is None:
            return [name]
        changed = builder.so_far._replace(ranch=ranch)
    builder.so_far = changed
    return []


def _option(options: Options, name: str, value: str) -> Options | None:
    """The options with one more; None for one that is not known here."""
    if name in _FLAGS:
        field: dict[str, Any] = {_FLAGS[name]: True}
        return options._replace(**field)
    change = options._replace
    match name:
        case "--size":
            return change(size=parse_size(value))
        case "--log-file":
            return change(log_file=value)
        case "--engine":
            return change(engine=parse_choice(EngineChoice, value, name))
        case "--uid-map":
            return change(uid_map=(*options.uid_map, *parse_id_map(value, name)))
        case "--gid-map":
            return change(gid_map=(*options.gid_map, *parse_id_map(value, name)))
    return None


def _ranch_option(ranch: RanchOptions, name: str, value: str) -> RanchOptions | None:
    """The same for the options of the ranch."""
    match name:
        case "--links":
            return ranch._replace(links=parse_choice(LinkStyle, value, name))
        case "--depth":
            return ranch._replace(depth=parse_depth(value))
        case "--copy":
            return ranch._replace(copies=(*ranch.copies, value))
        case "--inject":
            return ranch._replace(inject=(*ranch.inject, parse_injection(value)))
        case "--allow-writable-lower":
            return ranch._replace(allow_writable_lower=True)
    return None


def _place_operands(builder: OptionsBuilder, operands: list[str]) -> None:
    """Give each operand its meaning by what the options have left open."""
    given = builder.so_far
    if not operands:
        raise UserError("no directories given; usage: fuseunion LOWER[:LOWER...] UPPER MERGED (see --help)")
    _refuse_empty(given, operands, has_lowers=builder.has_lowers)
    *others, target = operands
    no_upper = given.read_only or given.ephemeral
    mount_program = given.form is Form.MOUNT_PROGRAM

    if builder.has_lowers and len(others) == 1 and _is_source(given, others[0]):
        # mount(8) compares it with what /proc/mounts shows, to see whether a line of fstab is mounted already.
        source = given.source or others.pop()
        builder.so_far, others = builder.so_far._replace(source=source), []
    if not builder.has_lowers:
        if mount_program:
            raise UserError("no lower directory given; usage: fuseunion -o lowerdir=LOWER[:LOWER...] MERGED")
        if not others:
            raise UserError(
                f"'{target}' alone is not enough: no lower directory given; usage: "
                "fuseunion LOWER[:LOWER...] UPPER MERGED (see --help)"
            )
        builder.set_lowers(parse_lowers(others.pop(0)))
    if not builder.so_far.lowers:
        raise UserError("lowerdir= names no directory")
    upper = others.pop(0) if others and given.upper is None and not given.ephemeral else given.upper
    if others:
        raise UserError(f"too many directories: {', '.join(map(repr, operands))} (see fuseunion --help)")
    if upper is None and not (no_upper or mount_program):
        raise UserError("no UPPER directory given; for a mount without one use --read-only or --ephemeral")
    read_only = given.read_only or (upper is None and not given.ephemeral)
    builder.so_far = builder.so_far._replace(target=target, upper=upper, read_only=read_only)


def _refuse_empty(given: Options, operands: list[str], *, has_lowers: bool) -> None:
    """An empty operand is a variable that was not set, and must not mean "none"."""
    before = ["UPPER", "MERGED"] if has_lowers else ["LOWER", "UPPER", "MERGED"]
    if given.ephemeral or given.upper is not None or (given.read_only and len(operands) < len(before)):
        before.remove("UPPER")
    names = ["SOURCE", *before] if len(operands) > len(before) else [*before[: len(operands) - 1], "MERGED"]
    for name, operand in zip(names, operands, strict=False):
        if not operand:
            raise UserError(f"{name} is empty; is a variable not set?")


def _check_combination(options: Options) -> None:
    if options.ephemeral:
        contradictions = (
            (options.upper, "an UPPER directory"),
            (options.work, "--work"),
            (options.read_only, "--read-only"),
        )
        for given, name in contradictions:
            if given:
                raise UserError(f"--ephemeral makes its own upper directory and cannot go with {name}")
    elif options.work and options.upper is None:
        raise UserError(
            f"the work directory '{options.work}' is given without an UPPER; give both, or neither to mount read-only"
        )
    elif options.size:
        raise UserError("--size limits the upper of --ephemeral and has no meaning without it")
