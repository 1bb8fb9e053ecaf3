"""Extended attributes: what shows, what is hidden, and that no symbolic link is ever followed by the daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.actor import Role
from tests.support.arena import Arena
from tests.support.layers import Dir, File, Name, Node, Opacity, Opaque, Symlink
from tests.support.product import WITH_EXTENSION
from tests.support.twin import Twin


def test_like_a_plain_directory(arena: Arena) -> None:
    """Set, replace, list and remove answer what a plain directory answers."""
    lower = arena.lower({"f": File(xattrs={"user.a": b"1"}), "d": Dir(xattrs={"user.d": b""}), "l": Symlink("f")})
    with arena.mount(lower) as mount:
        twin = Twin(arena, mount)
        for name in ("f", "d", "l"):
            for flags in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
                for key in ("user.a", "user.new"):

                    def store(root: Path, name: str = name, key: str = key, flags: int = flags) -> None:
                        os.setxattr(root / name, key, b"v%d" % flags, flags, follow_symlinks=False)

                    twin.both(store)
            for key in ("user.a", "user.none", "user.d"):
                twin.both(lambda root, n=name, k=key: os.getxattr(root / n, k))  # type: ignore[misc]
                twin.both(lambda root, n=name, k=key: os.removexattr(root / n, k))  # type: ignore[misc]
        twin.both(lambda root: os.setxattr(root / "f", "user.large", b"x" * 3000))
        twin.both(lambda root: os.setxattr(root / "f", "user." + "n" * 250, b"long name"))
        twin.both(lambda root: os.setxattr(root / "f", "user." + "n" * 251, b"too long"))
        twin.both(lambda root: os.setxattr(root / "f", "nonsense.x", b"1"))
        twin.remount()


@pytest.mark.actors("root")
@pytest.mark.parametrize("name", ["lower", "new", "d"])
def test_an_empty_capability(arena: Arena, name: str) -> None:
    """It can be set and listed, but not be read (EINVAL); and be set again and removed."""
    with arena.mount(arena.lower({"lower": File(b"x"), "d": Dir()})) as mount:
        twin = Twin(arena, mount)
        if name == "new":
            twin.both(lambda root: (root / name).write_bytes(b"x"))
        # pyfuse3 answers what getxattr(2) does to whoever asks for either.
        tries = (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, os.XATTR_REPLACE, 0) if WITH_EXTENSION else (0, 0)
        for flags in tries:

            def store(root: Path, flags: int = flags) -> None:
                os.setxattr(root / name, "security.capability", b"", flags)

            twin.both(store)
        twin.both(lambda root: os.listxattr(root / name))
        for _ in range(2):
            twin.both(lambda root: os.removexattr(root / name, "security.capability"))
        twin.both(lambda root: os.listxattr(root / name))


def test_without_attributes(arena: Arena) -> None:
    """noxattrs=1: there are none, ACLs neither; and who does not own a file is judged by its mode."""
    lower = arena.lower({"d": Dir(mode=0o775), "d/f": File(b"x", mode=0o664, xattrs={"user.a": b"1"})})
    stranger = arena.actor.user.uid + 1
    for path in ("d", "d/f"):
        if arena.actor.role is Role.ROOT:
            os.chown(lower / path, stranger, stranger)
    arena.guard(lower)
    with arena.mount(lower, options=["noxattrs=1"]) as mount:
        assert os.listdir(mount / "d") == ["f"]
        assert (mount / "d/f").read_bytes() == b"x"
        for path in ("d", "d/f"):
            with pytest.raises(OSError, match="not supported"):
                os.getxattr(mount / path, "user.a")
            assert os.listxattr(mount / path) == []


def test_symbolic_links_are_not_followed_by_the_daemon(arena: Arena) -> None:
    """chmod, chown and xattrs through links into the mount itself answer (a daemon that follows them deadlocks)."""
    lower = arena.lower({"f": File(b"x"), "relative": Symlink("f"), "dangling": Symlink("nowhere"), "d/x": File()})
    with arena.mount(lower) as mount:
        (mount / "absolute").symlink_to(mount / "f")
        for link in ("relative", "absolute"):
            path = mount / link
            os.setxattr(path, "user.through", link.encode())
            assert os.getxattr(path, "user.through") == link.encode()
            os.chmod(path, 0o640)
            os.chown(path, os.geteuid(), os.getegid())
            os.utime(path)
            os.truncate(path, 1)
            os.lchown(path, os.geteuid(), os.getegid())
            os.utime(path, ns=(1, 1), follow_symlinks=False)
            assert os.listxattr(path, follow_symlinks=False) == []
            with pytest.raises(PermissionError):
                os.setxattr(path, "user.own", b"1", follow_symlinks=False)
        with pytest.raises(FileNotFoundError):
            os.chmod(mount / "dangling", 0o600)
        os.utime(mount / "dangling", ns=(1, 1), follow_symlinks=False)
        assert os.readlink(mount / "dangling") == "nowhere"


@pytest.mark.actors("root")
def test_trusted_xattr_of_a_symbolic_link(arena: Arena) -> None:
    """A link can hold trusted attributes; they go to the link."""
    lower = arena.lower({"f": File(), "l": Symlink("f")})
    with arena.mount(lower) as mount:
        os.setxattr(mount / "l", "trusted.x", b"1", follow_symlinks=False)
        assert os.listxattr(mount / "l", follow_symlinks=False) == ["trusted.x"]
        assert os.listxattr(mount / "f") == []


def test_marks_never_show(arena: Arena) -> None:
    """No mark of any overlay is listed or read, on the root, on directories made anew, or on copies."""
    forms = [Opacity.USER, Opacity.FUSE_OVERLAYFS, *([Opacity.TRUSTED] if arena.actor.has_devices else [])]
    marked: dict[Name, Node] = {form.name: Opaque(form, xattrs={"user.mine": b"1"}) for form in forms}
    top = arena.lower(marked | {"gone/x": File()})
    bottom = arena.lower({"gone/old": File(), "f": File()})
    with arena.mount(top, bottom) as mount:
        (mount / "gone/x").unlink()
        (mount / "gone/old").unlink()
        (mount / "gone").rmdir()
        (mount / "gone").mkdir()
        for form in forms:
            (mount / form.name).chmod(0o750)
            assert os.listxattr(mount / form.name) == ["user.mine"]
            with pytest.raises(OSError, match="No data"):
                os.getxattr(mount / form.name, form.value)
        for path in (mount.merged, mount / "gone"):
            assert not [name for name in os.listxattr(path) if "overlay" in name]


@pytest.mark.parametrize("name", ["user.overlay.opaque", "trusted.overlay.opaque"])
def test_a_user_cannot_write_a_mark(arena: Arena, name: str) -> None:
    """Setting the name of a mark through the mount never changes what the tree shows: refused, or stored escaped."""
    lower = arena.lower({"d/old": File()})
    with arena.mount(lower) as mount:
        try:
            os.setxattr(mount / "d", name, b"y")
            stored = True
        except OSError:
            stored = False
        mount.stop()
        mount.start()
        assert os.listdir(mount / "d") == ["old"]
        assert not stored or os.getxattr(mount / "d", name) == b"y"
