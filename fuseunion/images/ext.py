"""What the superblock of an ext2, ext3 or ext4 filesystem says of its state (fs/ext4/ext4.h, struct ext4_super_block).

A filesystem that was not unmounted has counts and bitmaps that are behind what is in it: to write to it gives blocks
away that are in use. The kernel replays the journal first; fuse2fs keeps none, and begins to write with a warning that
nobody sees. So the state is looked at before a program gets to write.
"""

from typing import NamedTuple

from fuseunion.errors import ExitCode, UserError
from fuseunion.images.recognise import HEAD, read_head

_SUPERBLOCK = 1024
_VALID = 0x0001
_ERROR = 0x0002
_HAS_JOURNAL = 0x0004
_RECOVER = 0x0004


class State(NamedTuple):
    """How a filesystem was left.

    Attributes:
        unmounted: nobody writes to it, and who did last has finished.
        damaged: the kernel or a program has found an error in it.
        recover: what is in the journal has to be put in its place first.
        journal: there is one.
    """

    unmounted: bool
    damaged: bool
    recover: bool
    journal: bool


def state_of(fd: int, offset: int = 0) -> State:
    """Look at a filesystem that has been recognised.

    Args:
        fd: of the file.
        offset: where in it the filesystem begins, in bytes.

    Raises:
        OSError: EIO and the like of the file.
    """
    head = read_head(fd, offset).ljust(HEAD, b"\0")
    state = _number(head, 58, 2)
    compatible, incompatible = _number(head, 92, 4), _number(head, 96, 4)
    return State(
        unmounted=bool(state & _VALID),
        damaged=bool(state & _ERROR),
        recover=bool(incompatible & _RECOVER),
        journal=bool(compatible & _HAS_JOURNAL),
    )


def refuse_disorder(fd: int, path: str, offset: int, why: str) -> None:
    """Complain of a filesystem that was written and is not in order now.

    Args:
        fd: of the file.
        path: of the file, for the message.
        offset: where in it the filesystem begins, in bytes.
        why: it was not unmounted, for the message.

    Raises:
        UserError: FAILURE.
        OSError: EIO and the like of the file.
    """
    state = state_of(fd, offset)
    if state.unmounted and not state.damaged and not state.recover:
        return
    if state.damaged:
        why = "there were errors in writing it, and what was changed last may be lost"
    raise UserError(
        f"image '{path}' was not put in order: {why}; repair it with: {repair(path, offset)}", ExitCode.FAILURE
    )


def _number(head: bytes, offset: int, size: int) -> int:
    return int.from_bytes(head[_SUPERBLOCK + offset : _SUPERBLOCK + offset + size], "little")


def repair(path: str, offset: int = 0) -> str:
    """The command that repairs a filesystem, for messages: e2fsck(8) takes the offset behind the name.

    Args:
        path: of the file.
        offset: where in it the filesystem begins, in bytes.
    """
    return f"e2fsck -f '{path}{f'?offset={offset}' if offset else ''}'"
