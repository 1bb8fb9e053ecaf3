"""What programs do to a tree, each in a directory of its own (`description`); each returns what it saw."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.layers import Dir, File, Link, Name, Node, Symlink

Behaviour = Callable[[Path], object]
BEHAVIOURS: dict[str, Behaviour] = {}


def behaviour(function: Behaviour) -> Behaviour:
    """Add a behaviour to the list."""
    BEHAVIOURS[function.__name__.replace("_", " ")] = function
    return function


def description() -> dict[Name, Node]:
    """One directory for each behaviour, all alike."""
    made: dict[Name, Node] = {}
    for name in BEHAVIOURS:
        made |= {
            f"{name}/file": File(b"content\n", mode=0o644),
            f"{name}/script": File(b"#!/bin/sh\necho ran\n", mode=0o755),
            f"{name}/link": Symlink(target="file"),
            f"{name}/dir/inner": File(b"inner\n"),
            f"{name}/dir/deep/deeper": File(b"deeper\n"),
            f"{name}/empty": Dir(mode=0o711),
            f"{name}/first": File(b"linked\n"),
            f"{name}/second": Link(target=f"{name}/first"),
        }
    return made


def answer(function: Behaviour, directory: Path) -> object:
    """What a behaviour returned, or the name of its error."""
    try:
        return function(directory)
    except OSError as error:
        return os.strerror(error.errno or 0)


def _names(path: Path) -> list[str]:
    return sorted(os.listdir(path))


@behaviour
def reading(d: Path) -> object:
    return (d / "file").read_bytes(), (d / "dir/deep/deeper").read_bytes(), _names(d), _names(d / "dir")


@behaviour
def stat_of_a_file(d: Path) -> object:
    st = (d / "file").stat()
    return stat.S_ISREG(st.st_mode), oct(st.st_mode), st.st_size, st.st_mtime_ns


@behaviour
def lstat_of_a_file(d: Path) -> object:
    return stat.filemode(os.lstat(d / "file").st_mode)


@behaviour
def attributes_of_directories(d: Path) -> object:
    return [(oct(st.st_mode), st.st_mtime_ns) for st in (os.lstat(d / "dir"), os.lstat(d / "empty"))]


@behaviour
def a_symbolic_link(d: Path) -> object:
    return os.readlink(d / "link"), (d / "link").read_bytes()


@behaviour
def realpath_stays_in_the_tree(d: Path) -> object:
    return os.path.realpath(d / "file") == str(d / "file")


@behaviour
def opening_without_following_links(d: Path) -> object:
    os.close(os.open(d / "file", os.O_RDONLY | os.O_NOFOLLOW))
    return "opened"


@behaviour
def finding_regular_files(d: Path) -> object:
    found = subprocess.run(["find", str(d), "-type", "f"], capture_output=True, text=True, check=True).stdout
    return len(found.splitlines())


@behaviour
def running_a_script(d: Path) -> object:
    return subprocess.run([str(d / "script")], capture_output=True, text=True, check=True).stdout


@behaviour
def parent_of_a_directory(d: Path) -> object:
    return _names(d / "dir" / "..") == _names(d)


@behaviour
def making_new_things(d: Path) -> object:
    (d / "new").write_bytes(b"new")
    (d / "dir/new").mkdir(mode=0o750)
    os.symlink("nowhere", d / "dir/new/link")
    os.mkfifo(d / "fifo")
    return _names(d), _names(d / "dir/new"), oct((d / "dir/new").stat().st_mode)


@behaviour
def attributes_of_a_new_file(d: Path) -> object:
    (d / "new").write_bytes(b"new")
    os.setxattr(d / "new", "user.mine", b"value")
    os.utime(d / "new", ns=(1, 2))
    (d / "new").chmod(0o600)
    return os.getxattr(d / "new", "user.mine"), (d / "new").stat().st_mtime_ns, oct((d / "new").stat().st_mode)


@behaviour
def appending_to_a_file(d: Path) -> object:
    with open(d / "file", "ab") as file:
        file.write(b"more\n")
    return (d / "file").read_bytes()


@behaviour
def truncating_a_file(d: Path) -> object:
    os.truncate(d / "file", 3)
    return (d / "file").read_bytes()


@behaviour
def changing_the_mode_of_a_file(d: Path) -> object:
    (d / "file").chmod(0o600)
    return oct((d / "file").stat().st_mode)


@behaviour
def changing_the_times_of_a_file(d: Path) -> object:
    os.utime(d / "file", ns=(1, 2))
    return (d / "file").stat().st_mtime_ns


@behaviour
def changing_the_times_of_a_file_without_following_links(d: Path) -> object:
    os.utime(d / "file", ns=(1, 2), follow_symlinks=False)
    return (d / "file").stat().st_mtime_ns


@behaviour
def moving_one_of_two_names(d: Path) -> object:
    os.rename(d / "first", d / "moved")
    return os.path.samefile(d / "moved", d / "second"), os.lstat(d / "moved").st_nlink


@behaviour
def setting_an_attribute_of_a_file(d: Path) -> object:
    os.setxattr(d / "file", "user.mine", b"value")
    return os.getxattr(d / "file", "user.mine")


@behaviour
def replacing_a_file_by_rename(d: Path) -> object:
    (d / "temporary").write_bytes(b"replaced\n")
    os.replace(d / "temporary", d / "file")
    return (d / "file").read_bytes(), stat.filemode(os.lstat(d / "file").st_mode), _names(d)


@behaviour
def removing_a_file(d: Path) -> object:
    (d / "file").unlink()
    return _names(d), (d / "file").exists()


@behaviour
def removing_a_directory_that_is_not_empty(d: Path) -> object:
    os.rmdir(d / "dir")
    return "removed"


@behaviour
def removing_a_tree(d: Path) -> object:
    subprocess.run(["rm", "-r", str(d / "dir")], check=True)
    return _names(d)


@behaviour
def a_directory_in_the_place_of_another(d: Path) -> object:
    subprocess.run(["rm", "-r", str(d / "dir")], check=True)
    (d / "dir").mkdir()
    return _names(d / "dir")


@behaviour
def a_file_in_the_place_of_a_directory(d: Path) -> object:
    (d / "empty").rmdir()
    (d / "empty").write_bytes(b"file")
    return (d / "empty").read_bytes()


@behaviour
def renaming_a_file(d: Path) -> object:
    os.rename(d / "file", d / "dir/moved")
    return (d / "dir/moved").read_bytes(), _names(d), _names(d / "dir")


@behaviour
def renaming_a_directory(d: Path) -> object:
    os.rename(d / "dir", d / "moved")
    return _names(d), (d / "moved/deep/deeper").read_bytes()


@behaviour
def renaming_a_new_directory(d: Path) -> object:
    (d / "new").mkdir()
    (d / "new/file").write_bytes(b"x")
    os.rename(d / "new", d / "dir/new")
    return _names(d / "dir"), (d / "dir/new/file").read_bytes()


@behaviour
def changing_the_mode_of_a_directory(d: Path) -> object:
    (d / "dir").chmod(0o700)
    return oct((d / "dir").stat().st_mode), _names(d / "dir")


@behaviour
def hard_links_of_a_file(d: Path) -> object:
    return os.path.samefile(d / "first", d / "second"), os.lstat(d / "first").st_nlink


@behaviour
def writing_to_one_of_two_names(d: Path) -> object:
    with open(d / "first", "ab") as file:
        file.write(b"more\n")
    return (d / "second").read_bytes()


@behaviour
def making_a_hard_link(d: Path) -> object:
    os.link(d / "file", d / "third")
    return (d / "third").read_bytes(), stat.filemode(os.lstat(d / "third").st_mode), os.lstat(d / "file").st_nlink


@behaviour
def hard_links_of_a_new_file(d: Path) -> object:
    (d / "new").write_bytes(b"x")
    os.link(d / "new", d / "dir/other")
    (d / "dir/other").write_bytes(b"y")
    return (d / "new").read_bytes(), (d / "new").stat().st_nlink


@behaviour
def copying_a_file_with_cp(d: Path) -> object:
    subprocess.run(["cp", str(d / "file"), str(d / "copy")], check=True)
    return (d / "copy").read_bytes(), stat.filemode(os.lstat(d / "copy").st_mode)[0]


@behaviour
def copying_a_tree_with_cp_a(d: Path) -> object:
    subprocess.run(["cp", "-a", str(d / "dir"), str(d / "copy")], check=True)
    return (d / "copy/inner").read_bytes(), stat.filemode(os.lstat(d / "copy/inner").st_mode)[0]


@behaviour
def editing_in_place_with_sed(d: Path) -> object:
    subprocess.run(["sed", "-i", "s/content/edited/", str(d / "file")], check=True)
    return (d / "file").read_bytes(), stat.filemode(os.lstat(d / "file").st_mode)
