"""The extension module beneath pyfuse3, if it was built."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType

device: ModuleType | None = None
"""`_device`, or None where it was not built or is switched off by FUSEUNION_WIRE=0."""

_INTERFACE = 13
"""Of what `_device.c` offers. An extension with another number was built from other sources, as in a checkout that was
updated: it is as if there were none, until the next `pip install`."""

compares = os.environ.get("FUSEUNION_WIRE") == "compare"
"""Whether Python is asked too where it need not be, and a difference is logged as the bug that it is: for tests."""

if os.environ.get("FUSEUNION_WIRE") != "0":
    # Where pyfuse3 looks for libfuse's functions first, it finds those of the module.
    _flags = sys.getdlopenflags()
    sys.setdlopenflags(_flags | os.RTLD_GLOBAL)
    try:
        _built = import_module("fuseunion.engines.fuse.wire.native._device")
        if getattr(_built, "INTERFACE", 0) == _INTERFACE:
            device = _built
    except ImportError:
        pass
    finally:
        sys.setdlopenflags(_flags)
