"""`--inject SRC:DST`: links to files from outside, put into a new ranch and never collected.

Made for the libraries of a graphics driver, which have to match the machine's kernel and so belong to no image.
"""

from __future__ import annotations

import os
import stat

from fuseunion.core.disk.realdir import RealDir
from fuseunion.engines.ranch.farm import private
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux.objects.permission import opened
from fuseunion.mounting.options import LinkStyle


def plan(injections: tuple[tuple[str, str], ...], merged: str, style: LinkStyle) -> tuple[tuple[str, str], ...]:
    """Check what is to be put in.

    Args:
        injections: (SRC, DST) of each.
        merged: where the ranch is seen.
        style: of the links.

    Returns:
        Path in the ranch and text of each link.
    Raises:
        UserError: LAYERS, when SRC is missing or DST is not in MERGED.
    """
    planned = []
    for source, path in injections:
        if not os.path.exists(source):
            raise UserError(f"--inject: '{source}' does not exist", ExitCode.LAYERS)
        names = [name for name in path.split("/") if name not in ("", ".")]
        if ".." in names:
            raise UserError(f"--inject: '{path}' leads out of MERGED", ExitCode.LAYERS)
        text = os.path.realpath(source)
        if style is LinkStyle.RELATIVE:
            text = os.path.relpath(text, os.path.join(merged, *names[:-1]))
        planned.append(("/".join(names), text))
    return tuple(planned)


def put(planned: tuple[tuple[str, str], ...], farm: RealDir) -> None:
    """Put the links into a farm that is built.

    Args:
        planned: what `plan` answered.

    Raises:
        UserError: LAYERS, where DST cannot be one.
    """
    for path, text in planned:
        *above, name = os.fsencode(path).split(b"/")
        directory = farm
        for part in above:
            directory = _enter(directory, part, path)
        st = directory.stat(name)
        if st is not None and stat.S_ISDIR(st.st_mode):
            raise UserError(f"--inject: '{path}' is a directory of the ranch; name a file in it", ExitCode.LAYERS)
        with opened(directory), directory.times_kept():
            temporary = private.temporary_name(name)
            os.symlink(os.fsencode(text), temporary, dir_fd=directory.fd())
            os.rename(temporary, name, src_dir_fd=directory.fd(), dst_dir_fd=directory.fd())


def remove(planned: tuple[tuple[str, str], ...], farm: RealDir) -> None:
    """Take out of a farm what an interrupted command put in.

    Args:
        planned: what `plan` answered.
    """
    for path, text in planned:
        *above, name = os.fsencode(path).split(b"/")
        directory = farm
        for part in above:
            directory = directory.child(part)
        if not _is_directory(farm, above):
            continue
        st = directory.stat(name)
        linked = st is not None and stat.S_ISLNK(st.st_mode)
        if linked and os.readlink(name, dir_fd=directory.fd()) == os.fsencode(text):
            os.unlink(name, dir_fd=directory.fd())


def _is_directory(farm: RealDir, names: list[bytes]) -> bool:
    directory = farm
    for name in names:
        st = directory.stat(name)
        if st is None or not stat.S_ISDIR(st.st_mode):
            return False
        directory = directory.child(name)
    return True


def _enter(directory: RealDir, name: bytes, path: str) -> RealDir:
    st = directory.stat(name)
    if st is None:
        with opened(directory), directory.times_kept():
            os.mkdir(name, 0o755, dir_fd=directory.fd())
    elif not stat.S_ISDIR(st.st_mode):
        raise UserError(
            f"--inject: '{os.fsdecode(name)}' on the way to '{path}' is no real directory; inject elsewhere, or use a "
            "greater --depth",
            ExitCode.LAYERS,
        )
    return directory.child(name)
