"""What a program and the keeper of its mount say to each other: one JSON object per line, over a stream socket.

A request names what is to be done (`do`); an answer has `value`, or `error` and `code` of the UserError that it became.
File names are text with surrogates for bytes that are none (PEP 383), which JSON escapes.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from fuseunion.errors import ExitCode, UserError


class Line:
    """One end of the talk.

    Args:
        end: a connected stream socket, owned by this from now on.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._rest = b""

    def fileno(self) -> int:
        """The descriptor, for poll(2)."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the talk; the other side reads its end."""
        self._socket.close()

    def say(self, **words: Any) -> None:
        """Send one object.

        Raises:
            OSError: the other side has gone.
        """
        self._socket.sendall(json.dumps(words).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        """Wait for one object; None when the other side has gone."""
        while b"\n" not in self._rest:
            try:
                more = self._socket.recv(1 << 16)
            except ConnectionError:
                more = b""
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def ask(self, **words: Any) -> Any:
        """Send a request and wait for the value of its answer.

        Raises:
            UserError: what the answer says; FAILURE when the keeper has gone.
        """
        try:
            self.say(**words)
            answer = self.hear()
        except ConnectionError:
            answer = None
        if answer is None:
            raise UserError("the process that kept this mount has gone", ExitCode.FAILURE)
        if "error" in answer:
            raise UserError(answer["error"], ExitCode(answer["code"]))
        return answer["value"]
