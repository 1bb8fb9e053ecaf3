"""fuseunion: a read-only lower tree with a writable upper directory on top, shown as one merged tree.

Only the version lives here, so that `fuseunion --version` and every mount start without importing more.
"""

__version__ = "0.1.0"
