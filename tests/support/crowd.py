"""Several processes at once, each with a piece of work; what goes wrong in one of them is the failure of the test."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence


def run_at_once(works: Sequence[Callable[[], object]]) -> None:
    """Run each in a forked process of its own, all side by side, to their ends.

    :raises AssertionError: some failed; with what the first of them said
    """
    pipes = []
    for work in works:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(work, write_end)
        os.close(write_end)
        pipes.append((pid, read_end))
    failed = []
    for number, (pid, read_end) in enumerate(pipes):
        with open(read_end, encoding="utf-8", errors="replace") as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            failed.append((number, code, said))
    assert not failed, f"{len(failed)} of {len(works)} processes failed; number {failed[0][0]}: {failed[0][1:]}"


def _run(work: Callable[[], object], report: int) -> None:
    """Precondition: called in the child; never returns."""
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - reported by the parent, whatever it is
        os.write(report, traceback.format_exc().encode(errors="replace")[-4000:])
    finally:
        os._exit(code)
