"""What the kernel is told to answer instead of doing it (seccomp(2)), for the command and all that it starts.

* Pushing characters into the terminal (TIOCSTI, TIOCLINUX) is refused: they would be read by the shell that started us,
  when the command has ended.
* Where the user has a single id, giving files away and becoming another user succeed and change nothing. Package
  managers do both, and the kernel would answer EINVAL for every id but one. Charliecloud's "root emulation" does the
  same.

A classic BPF program (linux/filter.h), which looks at numbers alone. Calls of an unknown architecture go through.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple

from fuseunion.linux import syscalls

_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_ALU|BPF_AND|BPF_K, BPF_RET|BPF_K."""

_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24
"""Offsets in struct seccomp_data; of the argument the lower half, on the little-endian machines below."""

_ALLOW = 0x7FFF0000
_ANSWER = 0x00050000
"""SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO, to which an errno is added: 0 is success."""

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_WITHOUT_X32 = 0xBFFFFFFF
"""The calls of x32 are those of x86-64 with a bit more (__X32_SYSCALL_BIT)."""


class _Table(NamedTuple):
    """The numbers of one architecture.

    Attributes:
        audit: what seccomp calls it (linux/audit.h).
        ioctl: its numbers.
        ids: chown, fchown, lchown, fchownat, setuid and its kin, setgroups.
    """

    audit: int
    ioctl: tuple[int, ...]
    ids: tuple[int, ...]


_TABLES = (
    _Table(0xC000003E, (16, 514), (92, 93, 94, 260, 105, 106, 113, 114, 116, 117, 119, 122, 123)),  # x86-64
    _Table(
        0x40000003,  # i386: calls with 16 bits, then with 32
        (54,),
        (
            182,
            95,
            16,
            23,
            46,
            70,
            71,
            81,
            164,
            170,
            138,
            139,
            212,
            207,
            198,
            298,
            213,
            214,
            203,
            204,
            206,
            208,
            210,
            215,
            216,
        ),
    ),
    _Table(0xC00000B7, (29,), (54, 55, 143, 144, 145, 146, 147, 149, 151, 152, 159)),  # aarch64
)


def install(*, single_id: bool) -> None:
    """Filter the calls of this process and of everything that it becomes and starts.

    Args:
        single_id: answer for chown(2), setuid(2) and the like.

    Raises:
        OSError: EACCES without privileges in the user namespace; EINVAL where the kernel has no seccomp.
    """
    syscalls.filter_system_calls(program(single_id=single_id))


def program(*, single_id: bool) -> bytes:
    """The filter, as an array of struct sock_filter."""
    code: list[tuple[int, int, int, int]] = []
    for table in _TABLES:
        block = _block(table, single_id=single_id)
        code += [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, len(block), table.audit), *block]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _block(table: _Table, *, single_id: bool) -> list[tuple[int, int, int, int]]:
    """What is done for the calls of one architecture; it never goes on to what follows."""
    block = [(_LOAD, 0, 0, _NUMBER), (_AND, 0, 0, _WITHOUT_X32)]
    for number in table.ids if single_id else ():
        block += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ANSWER)]
    for number in table.ioctl:
        block += [(_EQUAL, 0, 5, number), (_LOAD, 0, 0, _SECOND_ARGUMENT)]
        block += [(_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX)]
        block += [(_RETURN, 0, 0, _ANSWER | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]
    return [*block, (_RETURN, 0, 0, _ALLOW)]
