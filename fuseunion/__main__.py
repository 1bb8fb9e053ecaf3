"""`python -m fuseunion` and the console script.

`--version` is answered before anything else is imported: `podman info` asks for it.
"""

import os
import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    _open_the_first_three()
    code = 0
    try:
        code = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130  # the shell's number for it; nothing has been done yet
    except BrokenPipeError:
        pass  # `fuseunion --help | head` has read enough
    except OSError as error:
        sys.stderr.write(f"fuseunion: cannot write to stdout: {error.strerror}\n")
        code = code or 1
    if "fuseunion.cli.main" not in sys.modules and not code:
        return code
    # Without taking the interpreter apart, which for a mount would be 10 ms in which its caller waits for nothing.
    os._exit(code)


def _run() -> int:
    if sys.argv[1:2] in (["--version"], ["-V"]):
        from fuseunion import __version__

        print(f"fuseunion {__version__}")
        return 0
    from fuseunion import bytecode

    bytecode.install()
    import signal
    from io import TextIOWrapper

    # A name that the terminal's encoding has no characters for is still to be told.
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")

    # Where the caller ignores it, nobody hears of the end of a child (waitpid(2), ECHILD).
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    from fuseunion.cli.main import run

    return run(sys.argv)


def _open_the_first_three() -> None:
    """Where the caller has closed one, a layer would get its number, and what we say would be written to it."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None or sys.stderr is None:
        null = open(os.devnull, "w")  # noqa: SIM115 - for as long as the program runs
        sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null


if __name__ == "__main__":
    sys.exit(main())
