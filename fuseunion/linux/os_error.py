"""An errno as an exception, in one spelling."""

import os


def os_error(code: int, name: bytes | None = None) -> OSError:
    """The error for an errno, of the class that Python gives it (FileNotFoundError for ENOENT, and so on).

    Args:
        code: the errno.
        name: the name of the file, for messages.
    """
    return OSError(code, os.strerror(code)) if name is None else OSError(code, os.strerror(code), name)
