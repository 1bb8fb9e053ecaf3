"""`python -m fuseunion` and the console script.

`--version` is answered before anything else is imported: `podman info` asks for it.
"""

import os
import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    if sys.argv[1:2] in (["--version"], ["-V"]):
        from fuseunion import __version__

        print(f"fuseunion {__version__}")
        return 0
    from fuseunion.cli.main import run

    code = run(sys.argv)
    # Without taking the interpreter apart, which for a mount would be 10 ms in which its caller waits for nothing.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass  # `fuseunion --help | head` has read enough
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
