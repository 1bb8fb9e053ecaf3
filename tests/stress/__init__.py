"""Minutes of work: `make stress`, or `pytest -m stress`. FUSEUNION_STRESS_SECONDS says how long each test works."""

from __future__ import annotations

import os

SECONDS = float(os.environ.get("FUSEUNION_STRESS_SECONDS", "180"))
