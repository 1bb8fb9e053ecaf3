"""FUSE_INIT: what the kernel offers and we want is added to libfuse's answer, and nothing else is touched."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest
import trio

from fuseunion.engines.fuse.pyfuse.negotiation import Negotiation, completed

EXT = 1 << 30
NO_EXPORT = 1 << 6  # of the second word


def _request(flags: int, flags2: int) -> bytes:
    header = struct.pack("=IIQQIIIHH", 104, 26, 2, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("=IIIII44x", 7, 45, 131072, flags, flags2)


def _reply(flags: int, flags2: int = 0) -> bytes:
    header = struct.pack("=IiQ", 80, 0, 2)
    return header + struct.pack("=IIIIHHIIHHI28x", 7, 31, 131072, flags, 12, 9, 1 << 20, 1, 256, 0, flags2)


def test_an_offered_flag_is_taken() -> None:
    answer = completed(_request(0xFF | EXT, NO_EXPORT | 1), _reply(0x21))
    assert answer == _reply(0x21 | EXT, NO_EXPORT)


def test_flags_of_libfuse_stay() -> None:
    answer = completed(_request(0xFF | EXT, NO_EXPORT | 1), _reply(0x21 | EXT, 1))
    assert answer == _reply(0x21 | EXT, NO_EXPORT | 1)


@pytest.mark.parametrize("request_", [_request(0xFF, NO_EXPORT), _request(0xFF | EXT, 1), _request(0xFF, 0)[:56]])
def test_what_is_not_offered_is_not_asked_for(request_: bytes) -> None:
    assert completed(request_, _reply(0x21)) == _reply(0x21)


def test_an_error_passes() -> None:
    error = struct.pack("=IiQ", 16, -71, 2)
    assert completed(_request(0xFF | EXT, NO_EXPORT), error) == error


@pytest.mark.trio
async def test_unmounted_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel then knows no such request any more, and says ENOENT: that is an end like any other, no error."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device, trio.fail_after(10):
        negotiation = Negotiation(device.fileno())
        libfuse = socket.socket(fileno=negotiation.served)
        with libfuse:
            kernel.send(_request(0xFF | EXT, NO_EXPORT))

            def gone(fd: int, data: bytes) -> int:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

            libfuse.send(_reply(0x21))
            monkeypatch.setattr(os, "write", gone)
            with pytest.raises(OSError) as caught:
                await negotiation.run()
            monkeypatch.undo()
    assert caught.value.errno == errno.ENODEV
