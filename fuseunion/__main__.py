"""`python -m fuseunion` and the console script.

`--version` is answered before anything else is imported: `podman info` asks for it.
"""

import sys


def main() -> int:
    """Run the command line; returns the exit status."""
    if sys.argv[1:2] in (["--version"], ["-V"]):
        from fuseunion import __version__

        print(f"fuseunion {__version__}")
        return 0
    from fuseunion.cli.main import run

    return run(sys.argv)


if __name__ == "__main__":
    sys.exit(main())
