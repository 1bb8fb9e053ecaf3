"""File capabilities: the binary form, and the shift of the root id."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.core.ids import capability
from fuseunion.core.ids.capability import Capability
from fuseunion.core.ids.identity import IDENTITY, Identity, IdMap

CAP_NET_RAW = 13
CAP_BPF = 39

bit_sets = st.integers(0, 2**64 - 1)
capabilities = st.builds(Capability, bit_sets, bit_sets, st.booleans(), st.integers(0, 2**32 - 2))


@given(capabilities)
def test_binary_round_trip(value: Capability) -> None:
    assert capability.parse(capability.unparse(value)) == value


@given(capabilities.map(lambda value: value._replace(rootid=value.rootid % 100)))
def test_a_mapped_root_comes_back(value: Capability) -> None:
    identity = Identity(IdMap([(0, 1000, 100)]))
    shown = capability.to_shown(capability.unparse(value), identity)
    assert capability.parse(shown) == value._replace(rootid=value.rootid + 1000)
    assert capability.to_disk(shown, identity) == capability.unparse(value)


def test_a_root_shown_as_0_is_version_2() -> None:
    identity = Identity(IdMap([(1000, 0, 1)]))
    value = capability.unparse(Capability(1 << CAP_NET_RAW, 0, True, 1000))
    assert len(value) == 24
    shown = capability.to_shown(value, identity)
    assert len(shown) == 20
    assert capability.to_disk(shown, identity) == value


def test_without_a_map_nothing_is_read() -> None:
    assert capability.to_shown(b"anything", IDENTITY) == capability.to_disk(b"anything", IDENTITY) == b"anything"


def test_an_unmapped_root_overflows_and_cannot_be_stored() -> None:
    identity = Identity(IdMap([(0, 1000, 100)]))
    value = capability.unparse(Capability(1, 0, True, 500))
    with pytest.raises(OSError) as shown:
        capability.to_shown(value, identity)
    assert shown.value.errno == errno.EOVERFLOW
    with pytest.raises(OSError) as stored:
        capability.to_disk(value, identity)
    assert stored.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "value",
    [
        b"",
        struct.pack("<III", 0x01000000, 1, 1),
        struct.pack("<IIIII", 0x03000000, 1, 1, 1, 1),
        struct.pack("<IIIIII", 0x02000000, 1, 1, 1, 1, 1),
    ],
    ids=["empty", "version 1", "version 3 too short", "version 2 too long"],
)
def test_other_values_are_invalid(value: bytes) -> None:
    with pytest.raises(OSError) as refused:
        capability.parse(value)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.root
def test_the_kernel_takes_what_we_write_and_setcap_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.touch()
    wanted = Capability(1 << CAP_NET_RAW | 1 << CAP_BPF, 1 << CAP_NET_RAW, True)
    os.setxattr(file, "security.capability", capability.unparse(wanted))
    assert capability.parse(os.getxattr(file, "security.capability")) == wanted
    if getcap := shutil.which("getcap", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        told = subprocess.run([getcap, "-n", file], capture_output=True, text=True, check=True).stdout
        assert "cap_net_raw+eip" in told.replace("=", "+")
        assert "cap_bpf" in told


@pytest.mark.root
def test_the_kernel_keeps_a_root_id_as_we_write_it(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.touch()
    wanted = Capability(1 << CAP_NET_RAW, 0, False, 100_000)
    os.setxattr(file, "security.capability", capability.unparse(wanted))
    assert capability.parse(os.getxattr(file, "security.capability")) == wanted
