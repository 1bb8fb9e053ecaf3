"""Attributes and marks in squashfs images, which squashfuse lists and answers under names that are not theirs."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.core.format import squashfuse_xattrs
from tests.exec.stage import Stage, tree
from tests.images.conftest import squashfs
from tests.support.arena import Arena
from tests.support.layers import Dir, File, build

USER, TRUSTED, SECURITY = range(3)
PREFIXES = {USER: b"user.", TRUSTED: b"trusted.", SECURITY: b"security."}

CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""cap_net_raw=ep"""


# -- as squashfuse has it ----------------------------------------------------------------------------------------------


class Squashfuse:
    """What squashfuse says of an object with these attributes: number, rest of the name, value.

    Args:
        exchanged: as releases before 0.2 list them.
        searches: as it should, which none does yet.
        root: the kernel lets it be asked for trusted.*.
    """

    def __init__(self, has: list[tuple[int, bytes, bytes]], *, exchanged: bool, searches: bool, root: bool) -> None:
        self.has, self.searches, self.root = has, searches, root
        other = {TRUSTED: SECURITY, SECURITY: TRUSTED} if exchanged else {}
        self.prefixes = {number: PREFIXES[other.get(number, number)] for number in PREFIXES}

    def listxattr(self) -> list[bytes]:
        """Its listing."""
        return [self.prefixes[number] + rest for number, rest, _ in self.has]

    def getxattr(self, name: bytes) -> bytes:
        """Its answer; what it reads into too small a buffer, or compares with what was in it, is an error here."""
        if name.startswith(b"trusted.") and not self.root:
            raise OSError(errno.ENODATA, "")
        wanted = next(number for number, prefix in self.prefixes.items() if name.startswith(prefix))
        rest = name.partition(b".")[2]
        for number, found, value in self.has:
            if self.searches:
                if (number, found) == (wanted, rest):
                    return value
            elif number == wanted or len(found) == len(rest):
                assert len(found) <= len(rest), "beyond the buffer"
                assert found == rest or not rest.startswith(found), "compared with what was in the buffer"
                if found == rest:
                    return value
        raise OSError(errno.ENODATA, "")


def _told(one: Squashfuse) -> dict[bytes, bytes]:
    """What is made of it."""
    told = {}
    for name, words in squashfuse_xattrs.names(one.listxattr()).items():
        for word in words:
            try:
                told[name] = one.getxattr(word)
                break
            except OSError:
                continue
    return told


KNOWN = {
    b"capability": {SECURITY, USER},
    b"selinux": {SECURITY, USER},
    b"overlay.opaque": {TRUSTED, USER},
    b"overlay.opaquely": {TRUSTED, USER},
    b"overlay.overlay.opaque": {TRUSTED, USER},
}
RESTS = [*KNOWN, b"a", b"ab", b"abc", b"xbc"]
ATTRIBUTES = st.lists(
    st.tuples(st.sampled_from(list(PREFIXES)), st.sampled_from(RESTS)).filter(
        lambda each: each[0] in KNOWN.get(each[1], PREFIXES)
    ),
    unique=True,
    max_size=6,
)


@given(ATTRIBUTES, st.booleans(), st.booleans(), st.booleans())
def test_nothing_is_told_that_is_not_so(
    attributes: list[tuple[int, bytes]], exchanged: bool, searches: bool, root: bool
) -> None:
    has = [(number, rest, b"%d" % place) for place, (number, rest) in enumerate(attributes)]
    true = {PREFIXES[number] + rest: value for number, rest, value in has}
    told = _told(Squashfuse(has, exchanged=exchanged, searches=searches, root=root))
    assert told.items() <= true.items()
    if len(attributes) == 1 and not (exchanged and searches):
        ((name, _),) = true.items()
        rest = name.partition(b".")[2]
        is_told = name.startswith(b"user.") or rest in KNOWN
        if name.startswith(b"trusted.") and not root:
            # The kernel refuses its name, and a search that is right knows no other.
            is_told &= rest in (b"overlay.opaque", b"overlay.opaquely") and not searches
        assert (name in told) == is_told


@pytest.mark.parametrize("exchanged", [False, True])
def test_one_name_tells_of_all_on_the_object(exchanged: bool) -> None:
    has = [(TRUSTED, b"mine", b"1"), (SECURITY, b"other", b"2")]
    for known in ((SECURITY, b"capability", b"3"), (TRUSTED, b"overlay.opaque", b"y")):
        one = Squashfuse([*has, known], exchanged=exchanged, searches=False, root=True)
        assert _told(one) == {b"trusted.mine": b"1", b"security.other": b"2", PREFIXES[known[0]] + known[1]: known[2]}
    assert _told(Squashfuse(has, exchanged=exchanged, searches=False, root=True)) == {}


# -- for real ----------------------------------------------------------------------------------------------------------


def _image(arena: Arena, attributes: Mapping[str, Mapping[tuple[int, str], bytes]]) -> Path:
    """A squashfs image with attributes of every namespace, which needs no root: they are user.* first."""
    described = arena.root / "attributes"
    for path, has in attributes.items():
        for (_, rest), value in has.items():
            os.setxattr(described / path, f"user.{rest}", value)
    image = squashfs(described, arena.root / "image", "-noX")
    data = bytearray(image.read_bytes())
    for has in attributes.values():
        for number, rest in has:
            entry = struct.pack("<HH", USER, len(rest)) + rest.encode()
            if number != USER and entry in data:
                assert data.count(entry) == 1, rest
                struct.pack_into("<H", data, data.index(entry), number)
    image.write_bytes(data)
    return image


@pytest.mark.mount
@pytest.mark.actors("root", "user")
def test_what_is_shown_and_copied_up(arena: Arena) -> None:
    build(arena.root / "attributes", {"ping": File(b"p", mode=0o755), "tagged": File(b"t"), "dir": Dir()})
    image = _image(
        arena,
        {
            "ping": {(SECURITY, "capability"): CAPABILITY, (USER, "some"): b"1"},
            "tagged": {(USER, "abcdef"): b"long", (TRUSTED, "mine"): b"2", (SECURITY, "selinux"): b"label"},
            "dir": {(TRUSTED, "overlay.origin"): b"", (USER, "x"): b"3"},
        },
    )
    is_root = os.geteuid() == 0
    with arena.mount(image) as mount:
        assert set(os.listxattr(mount / "ping")) == {"security.capability", "user.some"}
        assert os.getxattr(mount / "ping", "security.capability") == CAPABILITY
        tagged = {"user.abcdef", "security.selinux"} | ({"trusted.mine"} if is_root else set())
        assert set(os.listxattr(mount / "tagged")) == tagged
        for path, name in (("tagged", "user.abc"), ("ping", "user.capability"), ("ping", "trusted.capability")):
            with pytest.raises(OSError) as caught:
                os.getxattr(mount / path, name)
            assert caught.value.errno == errno.ENODATA, name
        assert os.listxattr(mount / "dir") == ["user.x"]
        (mount / "tagged").chmod(0o600)
        (mount / "dir").chmod(0o700)
        if is_root:
            (mount / "ping").chmod(0o750)
            assert os.getxattr(mount / "ping", "security.capability") == CAPABILITY
        else:
            with pytest.raises(PermissionError):
                (mount / "ping").chmod(0o750)  # a capability that cannot be kept is not dropped, as of any lower
    kept = {path: _of_user(arena.upper / path) for path in os.listdir(arena.upper)}
    assert kept.pop("dir") == {"user.x": b"3"}
    if is_root:
        assert kept.pop("ping") == {"security.capability": CAPABILITY, "user.some": b"1"}
        assert kept["tagged"].pop("trusted.mine") == b"2"
    # With SELinux in the kernel a label is not for ordinary users to give.
    assert kept["tagged"].pop("security.selinux", b"label") == b"label"
    assert kept == {"tagged": {"user.abcdef": b"long"}}


def _of_user(path: Path) -> dict[str, bytes]:
    """The attributes of an object but for the marks of the union."""
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if ".overlay." not in name}


@pytest.mark.mount
@pytest.mark.actors("root", "user")
@pytest.mark.parametrize("number", [USER, TRUSTED])
def test_what_a_squashed_upper_hides_stays_hidden(arena: Arena, number: int) -> None:
    lower = arena.lower({"dir/old": File(b"o"), "kept/old": File(b"o")})
    build(arena.root / "attributes", {"dir/new": File(b"n"), "kept/new": File(b"n")})
    image = _image(arena, {"dir": {(number, "overlay.opaque"): b"y"}, "kept": {(SECURITY, "selinux"): b"opaque"}})
    with arena.mount(image, lower) as mount:
        assert os.listdir(mount / "dir") == ["new"]
        assert sorted(os.listdir(mount / "kept")) == ["new", "old"]
        assert os.listxattr(mount / "dir") == []
        assert os.listxattr(mount / "kept") == ["security.selinux"]


@pytest.mark.mount
@pytest.mark.actors("root", "user", "lone")
def test_capabilities_in_exec(stage: Stage) -> None:
    build(stage.arena.root / "attributes", {**tree(), "data/ping": File(b"p", mode=0o755)})
    image = _image(stage.arena, {"data/ping": {(SECURITY, "capability"): CAPABILITY}})
    script = "getcap /data/ping; chmod 700 /data/ping; getcap /data/ping; stat -c %a /data/ping"
    assert stage.shell([image], script) == ["/data/ping cap_net_raw=ep"] * 2 + ["700"]
