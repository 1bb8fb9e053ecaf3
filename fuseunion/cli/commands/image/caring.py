"""`fuseunion image check`, `resize` and `chown`."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack

from fuseunion.cli.commands import chown as owners
from fuseunion.cli.parser import Arguments
from fuseunion.cli.progress import Progress
from fuseunion.core.ownership.store_choice import choose
from fuseunion.errors import ExitCode, UserError, one_line
from fuseunion.images.tools import consistency, sizes
from fuseunion.images.tools.ext import checking, facts, resizing
from fuseunion.images.tools.opened import Access, Opened, inside, open_image

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check(asked: Arguments) -> int:
    """Look at an image, and put it in order."""
    (path,) = asked.operands
    if asked.dry_run and asked.repair:
        raise UserError("--dry-run changes nothing and --repair everything; give one of them")
    care = checking.Care.NOTHING if asked.dry_run else checking.Care.EVERYTHING if asked.repair else checking.Care.SAFE
    with ExitStack() as stack:
        image = open_image(stack, path, Access.READ if asked.dry_run else Access.WRITE)
        image.require_ext()
        with Progress("check", 100, every=1) as progress:
            report = checking.check(image, care, progress)
        union = _union(image) if report.outcome is not checking.Outcome.DAMAGED else []
    if asked.json:
        print(json.dumps({"path": path, "outcome": report.outcome.value, "e2fsck": report.said, "union": union}))
    else:
        for line in (*report.said, *union):
            print(one_line(line))
        print(f"'{path}' is {report.outcome.value}")
    if report.outcome is not checking.Outcome.DAMAGED:
        return ExitCode.OK
    more = "correct them" if asked.dry_run or asked.repair else "correct all of them, perhaps with a loss"
    option = "" if asked.dry_run else " --repair"
    raise UserError(f"'{path}' has errors; to {more}: fuseunion image check{option} {path}", ExitCode.FAILURE)


def _union(image: Opened) -> list[str]:
    try:
        with inside(image) as root_fd:
            return list(consistency.of_root(root_fd))
    except UserError as error:
        if error.exit_code != ExitCode.UNAVAILABLE:
            raise
        return [f"what is in it was not looked at: {error.message}"]


def resize(asked: Arguments) -> int:
    """Make an image larger, or smaller."""
    path, text = asked.operands
    with ExitStack() as stack:
        image = open_image(stack, path, Access.WRITE)
        image.require_ext()
        before = facts.read(image.fd, path, image.offset).size
        size = sizes.parse(text, "SIZE", before=before)
        with Progress("resize", os.fstat(image.fd).st_size, every=1) as progress:
            size = resizing.resize(image, size, progress)
    print(f"'{path}' was {sizes.shown(before)} and is {sizes.shown(size)}")
    return ExitCode.OK


def chown(asked: Arguments) -> int:
    """Change whose the files in an image are."""
    (path,) = asked.operands
    if asked.to is None:
        raise UserError("say whose it is to be: fuseunion image chown FILE --to root|me|UID:GID")
    to = f"{os.getuid()}:{os.getgid()}" if asked.to == "me" else asked.to
    rule = owners.one_owner(to, keep_set_id=asked.keep_set_id)
    with ExitStack() as stack:
        image = open_image(stack, path, Access.READ if asked.dry_run else Access.WRITE)
        image.require_ext()
        root_fd = stack.enter_context(inside(image, writable=not asked.dry_run))
        with ExitStack() as trees:
            work_fd, upper_fd = _directory(trees, root_fd, "work"), _directory(trees, root_fd, "upper")
            if upper_fd is None:
                raise UserError(f"'{path}' has no directory upper/, so it is no upper", ExitCode.LAYERS)
            store = choose(upper_fd, None, work_fd, in_image=True)
            if store is not None:
                trees.callback(store.close)
            found = [owners.Tree(upper_fd, f"{path}: upper", store)]
            if work_fd is not None:
                found.append(owners.Tree(work_fd, f"{path}: work", None))
            surveys = [owners.survey(tree, rule, show=asked.dry_run) for tree in found]
            total, changes, cleared = map(sum, zip(*surveys, strict=True))
            if asked.dry_run:
                print(f"{changes} of {total} objects would change")
                return ExitCode.OK
            for tree, (count, _, _) in zip(found, surveys, strict=True):
                owners.change(tree, rule, count)
            if store is not None:
                # The real ones too: they decide who may use the image.
                real = owners.Tree(upper_fd, f"{path}: upper", None)
                owners.change(real, rule, owners.survey(real, rule, show=False)[0])
    note = f", {cleared} lost set-id bits or capabilities" if cleared else ""
    print(f"changed {changes} of {total} objects{note}")
    return ExitCode.OK


def _directory(stack: ExitStack, root_fd: int, name: str) -> int | None:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=root_fd)
    except (FileNotFoundError, NotADirectoryError):
        return None
    stack.callback(os.close, fd)
    return fd
