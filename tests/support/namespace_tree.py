"""A snapshot of a tree in a namespace that pytest itself is not in: tree.py, run there by an interpreter of its own."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

from tests.support.interpreter import Interpreter
from tests.support.namespace import Namespace
from tests.support.tree import Entry

_PROGRAM = """
import base64, pickle, sys
from tests.support.tree import snapshot
print(base64.b64encode(pickle.dumps(snapshot(sys.argv[1]))).decode())
"""


def snapshot_in(namespace: Namespace, interpreter: Interpreter, root: Path) -> dict[bytes, Entry]:
    """Every object at and beneath `root`, as a process inside sees it."""
    text = namespace.run(
        interpreter.executable, "-P", "-c", _PROGRAM, root, env={"PYTHONPATH": interpreter.python_path}
    ).stdout
    tree: dict[bytes, Entry] = pickle.loads(base64.b64decode(text))
    return tree
