"""docs/howto-fstab-systemd.md, run as it stands, as root in a mount namespace."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from tests.support.document import blocks
from tests.support.namespace import Namespace

PAGE = "howto-fstab-systemd.md"


@pytest.fixture
def layers(as_root: Namespace) -> Namespace:
    """Root, with fresh layers in /srv."""
    as_root.run(
        "sh", "-euc", "cd /srv; rm -rf lower upper work merged; mkdir lower upper work merged; echo x >lower/file"
    )
    return as_root


@pytest.mark.parametrize("line", blocks(PAGE, "fstab"), ids=["type", "hash"])
def test_fstab(layers: Namespace, tmp_path: Path, line: str) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text(line)
    layers.run("mount", "--bind", fstab, "/etc/fstab")
    (commands,) = blocks(PAGE, "sh")
    layers.run("sh", "-euxc", commands)
    layers.run("umount", "/etc/fstab")
    assert layers.output("cat", "/srv/upper/file") == "changed\n"
    assert layers.output("cat", "/srv/lower/file") == "x\n"


def test_the_units_are_valid(layers: Namespace, tmp_path: Path) -> None:
    for name, text in zip(("srv-merged.mount", "project.service"), blocks(PAGE, "ini"), strict=True):
        (tmp_path / name).write_text(text)
        done = layers.run("systemd-analyze", "verify", "--man=no", tmp_path / name, check=False)
        assert name not in done.stderr, done.stderr


def test_the_mount_unit_mounts(layers: Namespace) -> None:
    unit = read_unit(blocks(PAGE, "ini")[0])["Mount"]
    layers.run("mount", "-t", unit["Type"], "-o", unit["Options"], unit["What"], unit["Where"])
    layers.run("sh", "-euc", "echo changed >/srv/merged/file; umount /srv/merged")
    assert layers.output("cat", "/srv/upper/file") == "changed\n"


def test_the_service_starts_and_stops(layers: Namespace) -> None:
    service = read_unit(blocks(PAGE, "ini")[1])["Service"]
    start, stop = (service[key].replace("%h", "/srv").split() for key in ("ExecStart", "ExecStop"))
    layers.run(*start)
    layers.run("sh", "-euc", "echo changed >/srv/merged/file")
    layers.run(*stop)
    assert layers.output("cat", "/srv/upper/file") == "changed\n"


def read_unit(text: str) -> configparser.ConfigParser:
    """A unit file."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys are not lower case
    unit.read_string(text)
    return unit
