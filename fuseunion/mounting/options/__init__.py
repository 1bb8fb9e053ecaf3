"""What the user asked for. The records are imported from here, what reads them from text from where it stands."""

from fuseunion.mounting.options.records import (
    DEFAULT_TIMEOUT,
    MAX_ID,
    EngineChoice,
    Form,
    IdTriple,
    ImageChoice,
    LinkStyle,
    Options,
    RanchOptions,
    XattrPermissions,
)

__all__ = [
    "DEFAULT_TIMEOUT",
    "MAX_ID",
    "EngineChoice",
    "Form",
    "IdTriple",
    "ImageChoice",
    "LinkStyle",
    "Options",
    "RanchOptions",
    "XattrPermissions",
]
