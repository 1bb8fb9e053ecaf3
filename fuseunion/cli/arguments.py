"""The arguments of the mount command: which operand is which, and in which form the program was called.

Hand-written, because a container engine starts the program for every mount and argparse alone takes as long as all of
this. Operands, by what `-o` leaves open:

    fuseunion LOWER[:LOWER...] UPPER MERGED
    fuseunion --read-only LOWER[:LOWER...] MERGED           also -o ro
    fuseunion --ephemeral LOWER[:LOWER...] MERGED
    fuseunion -o lowerdir=LOWER... UPPER MERGED             lowerdir= and upperdir= each replace their operand
    fuseunion [-f] -o lowerdir=...[,upperdir=...] MERGED    mount program: podman, buildah, Apptainer
    fuseunion SOURCE MERGED -o lowerdir=... [-o ...]        mount program: mount.fuse3, fstab, containerd

An operand before MERGED, when lowerdir= is given, is a SOURCE (a mere label) if UPPER cannot be meant: upperdir= or
ro is given too, or it is one of the customary labels in SOURCES. The two mount-program lines are recognised by
lowerdir= without any option that only a person would write (the long ones), or by the name that the program is called
under.
"""

import os
from typing import Any

from fuseunion.errors import UserError
from fuseunion.mounting.options import (
    Engine,
    Form,
    LinkStyle,
    Options,
    RanchOptions,
    apply_words,
    finish,
    parse_choice,
    parse_depth,
    parse_id_map,
    parse_injection,
    parse_lowers,
    parse_size,
    set_layer,
)

SOURCES = frozenset(("overlay", "overlayfs", "fuseunion", "fuse-overlayfs", "fuse", "none"))

MOUNT_PROGRAM_NAME = "fuse-overlayfs"
"""Called under this name (a symbolic link), the program is always a mount program."""

_SWITCHES = {
    "-f": "foreground",
    "--foreground": "foreground",
    "-d": "trace",
    "--debug": "trace",
    "-r": "read_only",
    "--read-only": "read_only",
    "--ephemeral": "ephemeral",
    "--volatile": "volatile",
    "--allow-other": "allow_other",
    "--fakeroot": "fakeroot",
}
_RANCH_WITH_VALUE = frozenset(("--links", "--depth", "--copy", "--inject"))
_WITH_VALUE = _RANCH_WITH_VALUE | {
    "-o", "--options", "--work", "--size", "--log-file", "--uid-map", "--gid-map", "--timeout", "--engine",
}  # fmt: skip
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

    fields: dict[str, Any] = {"form": form}
    unknown: list[str] = []
    for name, value in options:
        if name in ("-o", "--options"):
            unknown += apply_words(fields, value, form)
        else:
            unknown += _apply(fields, name, value)
    if unknown and form is Form.PLAIN:
        raise UserError(f"unknown or unavailable option '{unknown[0]}'; see fuseunion --help")
    fields["ignored"] = tuple(unknown)
    if {"-r", "--read-only"} & {name for name, _ in options} and not fields["read_only"]:
        raise UserError("--read-only and -o rw contradict each other; leave one of them out")
    _place_operands(fields, operands)
    _check_combination(fields)
    return finish(fields)


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
    given: dict[str, Any] = {}
    for text in words:
        apply_words(given, text, Form.MOUNT_PROGRAM)
    if "lowers" not in given or not names <= _MOUNT_PROGRAM_ARGUMENTS:
        return Form.PLAIN
    if len(operands) == 1 or (len(operands) == 2 and _is_source(given, operands[0])):
        return Form.MOUNT_PROGRAM
    return Form.PLAIN


def _is_source(fields: dict[str, Any], operand: str) -> bool:
    return "upper" in fields or fields.get("read_only", False) or operand in SOURCES


def _apply(fields: dict[str, Any], name: str, value: str) -> list[str]:
    """Apply one option other than -o; returns it when it is unknown."""
    if name == "--fakeroot":
        return apply_words(fields, "xattr_permissions=2", Form.PLAIN)
    if name in _SWITCHES:
        fields[_SWITCHES[name]] = True
    elif name == "--work":
        set_layer(fields, "workdir", value, Form.PLAIN)
    elif name == "--size":
        fields["size"] = parse_size(value)
    elif name == "--log-file":
        fields["log_file"] = value
    elif name == "--timeout":
        return apply_words(fields, f"timeout={value}", Form.PLAIN)
    elif name == "--engine":
        fields["engine"] = parse_choice(Engine, name, value)
    elif name in _RANCH_WITH_VALUE or name == "--allow-writable-lower":
        fields["ranch"] = _apply_ranch(fields.get("ranch", RanchOptions()), name, value)
    elif name in ("--uid-map", "--gid-map"):
        key = "uid_map" if name == "--uid-map" else "gid_map"
        fields[key] = (*fields.get(key, ()), *parse_id_map(value, name))
    else:
        return [name]
    return []


def _apply_ranch(ranch: RanchOptions, name: str, value: str) -> RanchOptions:
    if name == "--links":
        return ranch._replace(links=parse_choice(LinkStyle, name, value))
    if name == "--depth":
        return ranch._replace(depth=parse_depth(value))
    if name == "--copy":
        return ranch._replace(copies=(*ranch.copies, value))
    if name == "--inject":
        return ranch._replace(inject=(*ranch.inject, parse_injection(value)))
    return ranch._replace(allow_writable_lower=True)


def _place_operands(fields: dict[str, Any], operands: list[str]) -> None:
    """Give each operand its meaning by what the options have left open."""
    if not operands:
        raise UserError("no directories given; usage: fuseunion LOWER[:LOWER...] UPPER MERGED (see --help)")
    _refuse_empty(fields, operands)
    *others, fields["target"] = operands
    no_upper = fields.get("read_only", False) or fields.get("ephemeral", False)
    mount_program = fields["form"] is Form.MOUNT_PROGRAM

    if "lowers" in fields and len(others) == 1 and _is_source(fields, others[0]):
        others = []
    if "lowers" not in fields:
        if not others or mount_program:
            raise UserError("no lower directory given; usage: fuseunion LOWER[:LOWER...] UPPER MERGED (see --help)")
        fields["lowers"] = parse_lowers(others.pop(0))
    if not fields["lowers"]:
        raise UserError("lowerdir= names no directory")
    if others and "upper" not in fields and not no_upper:
        fields["upper"] = others.pop(0)
    if others:
        raise UserError(f"too many directories: {', '.join(map(repr, operands))} (see fuseunion --help)")
    if "upper" not in fields:
        if not (no_upper or mount_program):
            raise UserError("no UPPER directory given; for a mount without one use --read-only or --ephemeral")
        if not fields.get("ephemeral", False):
            fields["read_only"] = True


def _refuse_empty(fields: dict[str, Any], operands: list[str]) -> None:
    """An empty operand is a variable that was not set, and must not mean "none"."""
    before = ["UPPER", "MERGED"] if "lowers" in fields else ["LOWER", "UPPER", "MERGED"]
    if fields.get("read_only") or fields.get("ephemeral") or "upper" in fields:
        before.remove("UPPER")
    names = ["SOURCE", *before] if len(operands) > len(before) else [*before[: len(operands) - 1], "MERGED"]
    for name, operand in zip(names, operands, strict=False):
        if not operand:
            raise UserError(f"{name} is empty; is a variable not set?")


def _check_combination(fields: dict[str, Any]) -> None:
    if fields.get("ephemeral"):
        for key, name in (("upper", "an UPPER directory"), ("work", "--work"), ("read_only", "--read-only")):
            if fields.get(key):
                raise UserError(f"--ephemeral makes its own upper directory and cannot go with {name}")
    elif fields.get("work") and "upper" not in fields:
        raise UserError(
            f"the work directory '{fields['work']}' is given without an UPPER; give both, or neither to mount read-only"
        )
    elif fields.get("size"):
        raise UserError("--size limits the upper of --ephemeral and has no meaning without it")
