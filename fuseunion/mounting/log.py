"""Where log lines go: stderr while a person watches, syslog or a file once the daemon is on its own.

A daemon keeps no stderr: podman waits for every holder of that pipe to close it (containers/storage overlay.go, mount
program). Where there is no syslog, as in most containers, lines of a daemon without --log-file are dropped.
"""

import errno
import logging
import os
import sys

from fuseunion.errors import ExitCode, UserError, one_line

_ROOT = logging.getLogger("fuseunion")
_LIBRARY = logging.getLogger("pyfuse3")


class _NotForgotten(logging.Filter):
    """Drops pyfuse3's error about a reply to a request that the kernel has given up meanwhile.

    Writing such a reply answers ENOENT (fs/fuse/dev.c, fuse_dev_do_write), which is normal when a caller was
    interrupted, and for the last RELEASE of a mount that goes.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not ("fuse_reply" in message and message.endswith(os.strerror(errno.ENOENT)))


class _SyslogHandler(logging.Handler):
    """logging.handlers.SysLogHandler needs a socket module and a working /dev/log; syslog(3) just tries."""

    def __init__(self) -> None:
        import syslog

        super().__init__()
        self._syslog = syslog
        # Connected now: the daemon may reach no path later (linux/namespaces/apart.py).
        syslog.openlog("fuseunion", syslog.LOG_PID | syslog.LOG_NDELAY, syslog.LOG_DAEMON)

    def emit(self, record: logging.LogRecord) -> None:
        syslog = self._syslog
        if record.levelno >= logging.ERROR:
            priority = syslog.LOG_ERR
        elif record.levelno >= logging.WARNING:
            priority = syslog.LOG_WARNING
        else:
            priority = syslog.LOG_INFO if record.levelno >= logging.INFO else syslog.LOG_DEBUG
        syslog.syslog(priority, self.format(record))


def tell(message: str) -> None:
    """One line to the person at the terminal, whatever happens to the log."""
    sys.stderr.write(f"fuseunion: {one_line(message)}\n")


def to_stderr(*, trace: bool = False) -> None:
    """Write to stderr: warnings, or with `trace` everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("fuseunion: %(message)s"))
    _replace(handler, logging.DEBUG if trace else logging.WARNING)


def to_syslog() -> None:
    """Write to the system's log."""
    handler = _SyslogHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    _replace(handler, logging.INFO)


def file_handler(path: str) -> logging.Handler:
    """A handler that appends to a file, opened now so that a bad path is refused in the foreground.

    Raises:
        UserError: USAGE, when it cannot be opened.
    """
    try:
        stream = open(path, "a", encoding="utf-8", errors="backslashreplace", opener=_open_at_once)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--log-file '{path}' cannot be opened: {error.strerror}", ExitCode.USAGE) from None
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    return handler


def _open_at_once(path: str, flags: int) -> int:
    """Nobody waits for the reader of a FIFO, now or later: what does not fit is lost."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def to_handler(handler: logging.Handler, *, trace: bool = False) -> None:
    """Write to a handler made before."""
    _replace(handler, logging.DEBUG if trace else logging.INFO)


def _replace(handler: logging.Handler, level: int) -> None:
    handler.addFilter(_NotForgotten())
    for logger in (_ROOT, _LIBRARY):
        for old in logger.handlers[:]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.propagate = False
    _ROOT.setLevel(level)
    _LIBRARY.setLevel(logging.WARNING)
