"""docs/howto-containerd.md and docs/howto-apptainer.md, with the calls that those programs make."""

from __future__ import annotations

from tests.support.document import blocks
from tests.support.namespace import Namespace


def test_containerd(as_root: Namespace) -> None:
    (commands,) = blocks("howto-containerd.md", "sh")
    as_root.run("mkdir", "/srv/containerd")
    assert as_root.output("sh", "-euc", commands, cwd="/srv/containerd") == "changed\n"


def test_apptainer(as_root: Namespace) -> None:
    as_root.run("mkdir", "/srv/apptainer")
    commands = "\n".join(["export HOME=/srv/apptainer", *blocks("howto-apptainer.md", "sh")])
    output = as_root.output("sh", "-euc", commands, cwd="/srv/apptainer")
    assert output.startswith("fuseunion ")
    assert output.endswith("changed\n")
