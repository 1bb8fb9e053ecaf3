"""fuseunion: a read-only lower tree with a writable upper directory on top, shown as one merged tree.

    with fuseunion.mount("/srv/base") as m:
        (m.merged / "new").write_text("gone with the block")

The names of the Python API (docs/python.md) are imported when they are asked for: only the version lives here, so that
`fuseunion --version` and every mount start without importing more. Their types are in the stub beside this module.
"""

__version__ = "0.1.0"

_HOMES = {
    "Changes": "fuseunion.api.changes",
    "ExitCode": "fuseunion.errors",
    "Mount": "fuseunion.api.mount",
    "Stats": "fuseunion.api.mount",
    "UserError": "fuseunion.errors",
    "mount": "fuseunion.api.mount",
    "run": "fuseunion.api.run",
}
"""The module of each name. `trio` is a module itself, fuseunion.api.trio."""

__all__ = ["Changes", "ExitCode", "Mount", "Stats", "UserError", "mount", "run", "trio"]


def __getattr__(name: str) -> object:
    if name not in _HOMES and name != "trio":
        raise AttributeError(f"module 'fuseunion' has no attribute '{name}'")
    from importlib import import_module

    value = import_module("fuseunion.api.trio") if name == "trio" else getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
