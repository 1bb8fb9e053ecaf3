"""Images where directories could be: what `prepare` does with a LOWER or an UPPER that is a file."""

import errno
import os
import stat

from fuseunion.core.ids.identity import overflow_id
from fuseunion.core.ownership.store_choice import has_database
from fuseunion.errors import ExitCode, UserError
from fuseunion.images import recognise
from fuseunion.images.layers import stack
from fuseunion.images.layers.mounted import Mounted
from fuseunion.images.layers.showing import Way
from fuseunion.images.recognise import Kind
from fuseunion.linux import namespaces
from fuseunion.mounting import log
from fuseunion.mounting.checks.placement import Place
from fuseunion.mounting.options import Form, ImageChoice, Options
from fuseunion.mounting.prepared import Opened, Prepared


def add_lowers(prepared: Prepared, place: Place, choice: ImageChoice, *, is_upper: bool) -> None:
    """Show an image that is only read, and add its layers.

    Args:
        place: of the image.
        choice: who is to show it.
        is_upper: the same file is the upper: of a SIF, all but the partition that is written.

    Raises:
        UserError: LAYERS, BUSY, UNAVAILABLE.
    """
    image = _opened(prepared, place, choice)
    for layer in image.lowers(but_the_upper=is_upper):
        opened = prepared.opened(layer.fd, layer.label)
        prepared.lowers.append(opened._replace(by_squashfuse=layer.by_squashfuse))


def add_upper(prepared: Prepared, place: Place, options: Options) -> tuple[Opened, Opened]:
    """Show an image that is written.

    Args:
        place: of the image.
        options: who is to show it, and whether it is a person who is told what is not as usual.

    Returns:
        The upper and the work directory.

    Raises:
        UserError: LAYERS, BUSY, UNAVAILABLE.
    """
    upper = _opened(prepared, place, options.images, writable=True).upper()
    opened = prepared.opened(upper.upper.fd, upper.upper.label), prepared.opened(upper.work.fd, upper.work.label)
    if upper.is_new:
        _adopt(prepared.lowers[0].fd, upper.upper.fd, upper.work.fd)
    elif os.fstat(upper.upper.fd).st_uid == overflow_id("uid"):
        whom = "root" if _has_root() else "me"
        raise UserError(
            f"what is in '{place.given}' belongs to a user who has no number here; give it to {whom} with: "
            f"fuseunion image chown '{place.given}' --to {whom}",
            ExitCode.LAYERS,
        )
    if has_database(upper.work.fd):
        raise UserError(
            f"image '{place.given}' keeps owners in a database, which cannot be reached in an image; use a directory",
            ExitCode.LAYERS,
        )
    says = upper.says
    if says is None and not upper.is_new and os.geteuid() == 0:
        says = _of_somebody(place, os.fstat(upper.upper.fd).st_uid, os.fstat(prepared.lowers[0].fd).st_uid)
    if says is not None:
        prepared.notes.append(says)
        if options.form is Form.PLAIN:
            log.tell(says)
    return opened


def _of_somebody(place: Place, owner: int, below: int) -> str | None:
    """What root is told of an upper that belongs neither to root nor to whom the lower does; a person at a terminal who
    is root in a user namespace, as in `exec`, of root's too; None for any other."""
    if owner == 0 and not namespaces.in_first_user_namespace() and os.isatty(2):
        return f"what is in '{place.given}' belongs to root, who you are here, as with --fakeroot"
    if owner in (0, below):
        return None
    return (
        f"what is in '{place.given}' belongs to user {owner}; to make it root's: "
        f"fuseunion image chown '{place.given}' --to root"
    )


def _has_root() -> bool:
    return "0" in namespaces.id_map("uid")[::3]


def look_at(place: Place, choice: ImageChoice, *, writable: bool, is_upper: bool = False) -> None:
    """Refuse what could not be shown, with nothing mounted and the lock given back.

    Args:
        place: of the image.
        choice: who is to show it.
        writable: as the upper.
        is_upper: as in `add_lowers`.

    Raises:
        UserError: LAYERS, BUSY, UNAVAILABLE.
    """

    def none_is_made(mounted: Mounted) -> None:
        raise AssertionError("nothing is mounted to look")

    image = stack.open_image(place.given, place.part.value, none_is_made, writable=writable, way=Way(choice.value))
    try:
        image.look_at(writable=writable, but_the_upper=is_upper)
    finally:
        os.close(image.fd)


def is_the_same_sif(lower: Place, upper: Place) -> bool:
    """Whether one SIF is both: its root filesystem is read and its overlay partition is written."""
    if lower.key is None or lower.key != upper.key or not lower.is_file:
        return False
    fd = recognise.open_file(lower.given)
    try:
        return recognise.kind_of(fd) is Kind.SIF
    finally:
        os.close(fd)


def _opened(prepared: Prepared, place: Place, choice: ImageChoice, *, writable: bool = False) -> stack.Image:
    """Open the file that was looked at; the descriptor and its lock last as long as the mount."""
    image = stack.open_image(
        place.given, place.part.value, prepared.add_image, writable=writable, way=Way(choice.value)
    )
    prepared.on_last(os.close, image.fd)
    st = os.fstat(image.fd)
    if place.key != (st.st_dev, st.st_ino):
        raise UserError(f"image '{place.given}' was exchanged just now; try again", ExitCode.LAYERS)
    prepared.is_anybodys |= image.is_anybodys
    return image


def _adopt(lower_fd: int, upper_fd: int, work_fd: int) -> None:
    """Give the upper of a new image the mode and owner of the topmost lower, as a new directory would get them.

    Who made the image may have been another id than root of this namespace is. An ordinary user becomes the owner.
    """
    st = os.fstat(lower_fd)
    me, mine = os.geteuid(), os.getegid()
    uid = st.st_uid if me == 0 and st.st_uid != overflow_id("uid") else me
    gid = st.st_gid if me == 0 and st.st_gid != overflow_id("gid") else mine
    try:
        os.fchown(work_fd, me, mine)
        for _, _, _, fd in os.fwalk(".", dir_fd=upper_fd):
            os.fchown(fd, me, mine)  # what --create-dir has made
        os.fchown(upper_fd, uid, gid)
        os.fchmod(upper_fd, stat.S_IMODE(st.st_mode) & 0o1777 | (0 if uid == st.st_uid else 0o700))
    except OSError as error:
        # It stays as it was made; whether anything can be written shows in a moment.
        if error.errno not in (errno.ENOSPC, errno.EPERM, errno.EOVERFLOW):
            raise
