"""`fuseunion apply UPPER LOWER`: push the changes of an upper down into its lower, and take them back."""

from __future__ import annotations

import os
from contextlib import ExitStack

from fuseunion.cli.commands.layers import diff, said
from fuseunion.cli.parser import CommandParser
from fuseunion.cli.progress import Progress
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.offline.applying import steps
from fuseunion.offline.applying.journal import Journal, place
from fuseunion.offline.applying.steps import Target
from fuseunion.offline.layers import opening

HELP = """\
Usage: fuseunion apply UPPER LOWER [--dry-run] [--work DIR]
       fuseunion apply --undo LOWER
       fuseunion apply --forget LOWER

Makes LOWER what a mount of LOWER and UPPER shows. Neither may be mounted. UPPER stays as it is. What LOWER had is kept
beside it until it is forgotten, or until the next apply. A command that was cut off is completed by giving it again, or
taken back with --undo.

Options:
  --dry-run    print what would change, and change nothing
  --undo       give LOWER back what it had
  --forget     remove what is kept for --undo
  --work DIR   the work directory of UPPER, when that is not the default one
  -h, --help   print this help

Examples:
  fuseunion apply upper base --dry-run
  fuseunion apply upper base
  fuseunion apply --undo base
"""


def main(arguments: list[str]) -> int:
    """Push one upper down, or take it back.

    Raises:
        UserError: USAGE; LAYERS; BUSY where one of them is mounted; FAILURE where something cannot be read or written.
    """
    parser = CommandParser("apply", HELP)
    for name in ("--dry-run", "--undo", "--forget"):
        parser.flag(name)
    parser.value("--work")
    asked = parser.parse(arguments)
    if asked is None:
        return ExitCode.OK
    if asked.undo or asked.forget:
        if len(asked.operands) != 1 or (asked.undo and asked.forget) or asked.dry_run or asked.work is not None:
            raise UserError("give --undo, or --forget, and the lower directory alone: fuseunion apply --undo LOWER")
        (lower,) = asked.operands
        with said.reading(lower):
            _undo(lower) if asked.undo else _forget(lower)
        return ExitCode.OK
    if len(asked.operands) != 2:
        raise UserError("give two directories: fuseunion apply UPPER LOWER")
    upper, lower = asked.operands
    if asked.dry_run:
        # As no option can be written.
        work = [] if asked.work is None else [f"--work={asked.work}"]
        escaped = os.path.join(".", lower).replace("\\", "\\\\").replace(":", "\\:")
        return diff.main([f"--lower={escaped}", *work, "--", upper])
    with said.reading(upper, [lower], into=lower):
        _apply(upper, lower, asked.work)
    return ExitCode.OK


def _apply(upper: str, lower: str, work: str | None) -> None:
    said.refuse_shown(lower)
    with ExitStack() as stack:
        done = stack.enter_context(Progress("apply"))
        view = stack.enter_context(opening.owned(upper, [lower], work))
        said.tell_notes(view)
        target = _target(stack, lower)
        journal = Journal.found(lower)
        if journal is not None and journal.is_being_undone:
            journal.close()
            raise UserError(f"the undoing of '{lower}' was cut off; complete it: {_undo_of(lower)}", ExitCode.BUSY)
        if journal is not None and (journal.is_applied or not journal.is_planned):
            journal.remove()
            journal.close()
            journal = None
        if journal is None:
            journal = Journal.made(lower)
            stack.callback(journal.close)
            try:
                for path in steps.plan(view, target, journal, done):
                    log.tell(f"warning: '{os.fsdecode(path)}' is a device, which cannot be made here; left out")
            except BaseException:
                journal.remove()
                raise
        else:
            stack.callback(journal.close)
            log.tell(f"note: completing what was cut off before; what '{upper}' has now is not looked at")
        count = steps.carry_out(journal, target, done)
    print(f"applied {count} changes to '{lower}'; take them back with: {_undo_of(lower)}")


def _undo(lower: str) -> None:
    said.refuse_shown(lower)
    with ExitStack() as stack:
        done = stack.enter_context(Progress("undo"))
        target = _target(stack, lower)
        journal = _journal(lower)
        stack.callback(journal.close)
        if not journal.is_planned:
            journal.remove()
            print(f"nothing was changed in '{lower}'")
            return
        count = steps.take_back(journal, target, done)
        journal.remove()
    print(f"took back {count} changes of '{lower}'")


def _forget(lower: str) -> None:
    journal = _journal(lower)
    try:
        if journal.is_planned and not journal.is_applied:
            raise UserError(f"'{lower}' was changed in part only; complete that, or: {_undo_of(lower)}", ExitCode.BUSY)
        journal.remove()
    finally:
        journal.close()
    print(f"what '{lower}' had before is gone")


def _journal(lower: str) -> Journal:
    journal = Journal.found(lower)
    if journal is None:
        raise UserError(f"nothing is kept of what '{lower}' had: '{place(lower)}' is not there", ExitCode.LAYERS)
    return journal


def _undo_of(lower: str) -> str:
    return f"fuseunion apply --undo {lower!r}"


def _target(stack: ExitStack, lower: str) -> Target:
    if not os.path.isdir(lower):
        raise UserError(
            f"lower directory '{lower}' does not exist, or is no directory; check the path", ExitCode.LAYERS
        )
    owner = os.stat(lower).st_uid
    if owner != os.geteuid() and not os.access(lower, os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(
            f"lower directory '{lower}' belongs to another user ({owner}), and you may not write there; apply as that "
            "user, or make a new lower directory with fuseunion commit",
            ExitCode.LAYERS,
        )
    target = Target(stack.enter_context(opening.owned(lower, writes=True)))
    stack.callback(target.close)
    return target
