"""From Options to opened, checked and locked directories: all that is done before any engine starts.

Every refusal that the user can act upon happens here, in the foreground, before pyfuse3 is imported and before anything
changes. The steps:

    look        where each directory lies; refuse impossible arrangements (placement.py)
    make        UPPER and the work directory where they are missing, undone if the mount fails
    open        lowers first: the mount may cover them, also MERGED == LOWER
    lock        upper, then work (in_use.py)
    judge       what is in the work directory (foreign files, a volatile mark)
"""

import errno
import logging
import os
import resource
import stat
from collections.abc import Collection, Sequence
from contextlib import suppress

from fuseunion.core.disk.work import INNER
from fuseunion.core.ids.identity import overflow_id
from fuseunion.core.ownership import belief
from fuseunion.core.ownership.facts import DATABASE_FILE
from fuseunion.errors import ExitCode, UserError
from fuseunion.linux import owned
from fuseunion.linux.namespaces import in_first_user_namespace
from fuseunion.mounting.checks import in_use, placement, ranches, space, volatile
from fuseunion.mounting.checks.placement import Part, Place, Survey
from fuseunion.mounting.options import Form, Options, XattrPermissions
from fuseunion.mounting.prepared import Prepared

_log = logging.getLogger("fuseunion.setup")

_DATABASE = os.fsdecode(DATABASE_FILE)
_OURS_IN_WORK = frozenset(
    ("work", "index", "links", _DATABASE, f"{_DATABASE}-wal", f"{_DATABASE}-shm", f"{_DATABASE}-journal")
)
"""What overlay filesystems leave in a work directory: work and index are the kernel's too."""

_MAX_LOWERS = 500
"""As in the kernel (fs/overlayfs/ovl_entry.h, OVL_MAX_STACK)."""


def prepare(options: Options, *, for_ranch: bool = False, mark: bool = True) -> Prepared:
    """Check and open everything.

    Args:
        options: what was asked for.
        for_ranch: the caller is the ranch that may stand on the upper; everybody else is refused there.
        mark: UPPER is to say that it is mounted, and with which work directory; a command that locks it for a while
            leaves it as it is.
    Returns:
        What the engine needs, to be closed when the mount has ended. Without space for a work directory it says so in
        `full`.
    Raises:
        UserError: LAYERS or BUSY, with nothing changed.
    """
    _raise_file_limit()
    refuse_too_many(options.lowers)
    survey = Survey()
    merged = merged_place(survey, options.target)
    prepared = Prepared(merged.path if merged else options.target, options.form)
    try:
        lowers = lower_places(survey, options)
        if options.form is Form.PLAIN:
            placement.refuse_twice(lowers)
        for place in lowers:
            _add_lower(prepared, options, survey, place, merged)
        if len(prepared.lowers) > _MAX_LOWERS:
            refuse_too_many([lower.label for lower in prepared.lowers])
        if options.ephemeral:
            _prepare_scratch(prepared, options)
        elif options.upper and not options.read_only:
            _prepare_upper(prepared, options, survey, lowers, merged, for_ranch=for_ranch, mark=mark and not for_ranch)
        else:
            placement.check(lowers, None, None, merged)
            if options.upper and options.hides_upper:
                prepared.hide(prepared.lowers[0].fd)
                prepared.hide_file(lowers[0])
    except BaseException:
        # Of two errors the first is told: of an image that is in disorder now it is what has found that.
        with suppress(UserError):
            prepared.close()
        raise
    return prepared


def _add_lower(prepared: Prepared, options: Options, survey: Survey, place: Place, merged: Place | None) -> None:
    if place.is_file:
        from fuseunion.mounting.sources import images  # most mounts have none

        images.add_lowers(prepared, place, options.images, is_upper=is_upper(survey, options, place))
        return
    fd = placement.open_directory(place)
    prepared.lowers.append(prepared.opened(fd, place.path, merged.way_from(place) if merged else ()))


def is_upper(survey: Survey, options: Options, lower: Place) -> bool:
    """Whether a lower is the file that is written as well."""
    if options.upper is None or options.read_only:
        return False
    return lower.key is not None and survey.place(Part.UPPER, options.upper).key == lower.key


def refuse_too_many(lowers: Sequence[str]) -> None:
    """Refuse more lowers than can be stacked.

    Raises:
        UserError: LAYERS.
    """
    if len(lowers) > _MAX_LOWERS:
        raise UserError(
            f"{len(lowers)} lower directories are more than the {_MAX_LOWERS} that can be stacked", ExitCode.LAYERS
        )


def lower_places(survey: Survey, options: Options) -> list[Place]:
    """The layers that are only read, topmost first.

    A read-only mount with an upper shows it as one more of them, as the kernel does with "ro,upperdir=".

    Raises:
        UserError: LAYERS, where a path with a colon was taken for two.
    """
    lowers = [survey.place(Part.LOWER, path) for path in options.lowers]
    whole = ":".join(options.lowers)
    if len(lowers) > 1 and not all(place.key for place in lowers) and os.path.isdir(whole):
        raise UserError(
            f"lower directory '{options.lowers[0]}' is a part of '{whole}'; write a colon in a path as '\\:'",
            ExitCode.LAYERS,
        )
    for place in lowers[1:]:
        if place.given in ("ro", "rw") and place.key is None:
            raise UserError(
                f"lower directory '{place.given}' does not exist; if ':{place.given}' belongs to the layer before it: "
                "every LOWER is only read, so leave it out",
                ExitCode.LAYERS,
            )
    if options.upper and options.read_only:
        lowers.insert(0, survey.place(Part.UPPER, options.upper))
    return lowers


def _raise_file_limit() -> None:
    """As many descriptors as the user may have: each layer keeps one, and each open file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def merged_place(survey: Survey, target: str) -> Place | None:
    """The merged directory; None for /dev/fd/N, which the engine judges.

    Raises:
        UserError: LAYERS, where nothing can be mounted on it.
    """
    if target.startswith("/dev/fd/"):
        return None
    place = survey.place(Part.MERGED, target)
    if place.path == "/":
        # Every process starts beneath such a mount, which nobody would see, nor could take away.
        raise UserError("merged directory '/' cannot be covered; give another directory", ExitCode.LAYERS)
    try:
        if not stat.S_ISDIR(os.stat(place.path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        # A dead FUSE mount may still answer stat from the kernel's cache, but not this.
        os.statvfs(place.path)
    except OSError as error:
        raise placement.refusal(Part.MERGED, target, error, f"make it with: mkdir '{target}'") from None
    return place


def _prepare_scratch(prepared: Prepared, options: Options) -> None:
    # Imported here, because no other mount needs it.
    from fuseunion.mounting.sources import scratch

    private = scratch.make(options.size)
    prepared.on_end(private.remove)
    for name in ("upper", "work"):
        os.mkdir(name, 0o700, dir_fd=private.root_fd)
    prepared.upper = prepared.opened(_open_in(private.root_fd, "upper"), f"{private.label}/upper")
    prepared.work = prepared.opened(_open_in(private.root_fd, "work"), f"{private.label}/work")
    _adopt_attributes(prepared.lowers[0].fd, prepared.upper.fd)


def _prepare_upper(
    prepared: Prepared,
    options: Options,
    survey: Survey,
    lowers: list[Place],
    merged: Place | None,
    *,
    for_ranch: bool,
    mark: bool,
) -> None:
    assert options.upper is not None
    upper = survey.place(Part.UPPER, options.upper)
    if upper.is_file:
        _prepare_image(prepared, options, lowers, upper, merged)
        return
    default_work = options.work is None
    work = work_place(survey, upper, options.work)
    placement.check(lowers, upper, work, merged, hides_upper=options.hides_upper)
    if not for_ranch and ranches.may_stand_on(upper.path):
        ranches.refuse(upper.path)

    upper_fd = _open_or_make(prepared, upper, 0o755)
    prepared.upper = prepared.opened(upper_fd, upper.path, merged.way_from(upper) if merged else ())
    if options.hides_upper:
        prepared.hide(upper_fd)
    if options.form is Form.PLAIN:
        refuse_unwritable(upper, upper_fd)
    if upper.key is None and options.xattr_permissions is not XattrPermissions.OFF and belief.is_needed():
        # It stays root's: with an option the objects of its owner are believed (core/ownership/belief.py).
        prepared.shown_as = os.fstat(prepared.lowers[0].fd)
    elif upper.key is None:
        _adopt_attributes(prepared.lowers[0].fd, upper_fd)
    occupancy = in_use.Occupancy(upper, upper_fd)
    prepared.on_end(occupancy.close)
    try:
        _prepare_work(prepared, options, upper, work, upper_fd, occupancy, default_work)
    except OSError as error:
        if not space.is_lacking(error):
            raise placement.refusal(Part.WORK, work.given, error) from None
        prepared.give_up_writing(error)
    # The record of a ranch keeps others off its upper; one that has not changed is left as it is.
    occupancy.enter(mark=mark and prepared.full is None)
    prepared.notes += occupancy.ignored
    prepared.compare_lowers()


def _prepare_image(
    prepared: Prepared, options: Options, lowers: list[Place], upper: Place, merged: Place | None
) -> None:
    """An upper and a work directory in an image, which the lock on the image keeps others off."""
    from fuseunion.mounting.sources import images

    check_image(options, lowers, upper, merged)
    prepared.upper, work = images.add_upper(prepared, upper, options)
    if options.hides_upper:
        prepared.hide_file(upper)
    judge_work(upper, upper, prepared.upper.fd, work.fd, default_work=False)
    try:
        _make_inner(prepared, upper, upper, work.fd)
        prepared.work = work
    except OSError as error:
        if not space.is_lacking(error):
            raise placement.refusal(Part.WORK, work.label, error) from None
        prepared.give_up_writing(error)
    prepared.compare_lowers()


def check_image(options: Options, lowers: list[Place], upper: Place, merged: Place | None) -> None:
    """Refuse an image as the upper where it lies, or with a work directory elsewhere.

    Raises:
        UserError: LAYERS.
    """
    from fuseunion.mounting.sources import images

    if options.work is not None:
        raise UserError(
            f"upper image '{upper.given}' holds its own work directory; leave --work '{options.work}' out",
            ExitCode.LAYERS,
        )
    others = [place for place in lowers if not images.is_the_same_sif(place, upper)]
    placement.check(others, upper, None, merged, hides_upper=options.hides_upper)


def _prepare_work(
    prepared: Prepared,
    options: Options,
    upper: Place,
    work: Place,
    upper_fd: int,
    occupancy: in_use.Occupancy,
    default_work: bool,
) -> None:
    """Open, judge and lock the work directory.

    Raises:
        UserError: LAYERS, BUSY.
        OSError: ENOSPC, EDQUOT: it cannot be made, and holds nothing without which the upper would show another tree.
    """
    work_fd = _open_or_make(prepared, work, 0o700)
    try:
        if options.hides_upper:
            prepared.hide(work_fd)
        in_engine_form = options.form is Form.MOUNT_PROGRAM
        refuse_foreign_work(work, work_fd, engine_owners(upper_fd, work_fd) if in_engine_form else ())
        occupancy.add_work(work, work_fd, default=work.path == default_work_path(upper.path))
        in_use.refuse_kernel_overlays(upper, work)
        judge_work(upper, work, upper_fd, work_fd, default_work)
        if default_work:
            parent_fd, name = _parent_of(work)
            own_fd = os.dup(work_fd)
            for fd in (parent_fd, own_fd):
                prepared.on_end(os.close, fd)
            prepared.on_end(_remove_directory, parent_fd, name, own_fd)
        _make_inner(prepared, upper, work, work_fd)
        occupancy.add_inner(work, work_fd)
    except BaseException:
        os.close(work_fd)
        raise
    prepared.work = prepared.opened(work_fd, work.path)


def _make_inner(prepared: Prepared, upper: Place, work: Place, work_fd: int) -> None:
    """Make WORK/work, on which other mounts see that this one is there."""
    try:
        os.mkdir(INNER, 0o700, dir_fd=work_fd)
    except FileExistsError:
        return  # of an earlier mount
    except OSError as error:
        space.refuse_if_needed(error, upper.given, work.given, work_fd)
        raise
    prepared.on_failure(volatile.clear, prepared.hold(os.dup(work_fd)))


def refuse_unwritable(upper: Place, fd: int) -> None:
    """Refuse a person's upper in which nothing could ever be made: somebody else's that the person may not write.

    An upper of one's own that is closed by its mode is no mistake: MERGED shows that mode, and there it can be changed.
    A container engine knows what it does: directories within the upper may be the container's.

    Args:
        upper: for the message.
        fd: of it.

    Raises:
        UserError: LAYERS.
    """
    owner = os.fstat(fd).st_uid
    if owner != os.geteuid() and not os.access(f"/proc/self/fd/{fd}", os.W_OK | os.X_OK, effective_ids=True):
        raise UserError(
            f"upper directory '{upper.given}' belongs to another user ({owner}), and you may not write there; use "
            "another, or mount with --read-only",
            ExitCode.LAYERS,
        )


def default_work_path(upper: str) -> str:
    """The hidden sibling of an upper directory: on the same filesystem unless the upper is a mount point."""
    return os.path.join(os.path.dirname(upper), f".{os.path.basename(upper)}.fuseunion-work")


def work_place(survey: Survey, upper: Place, given: str | None) -> Place:
    """The work directory of an upper.

    Args:
        given: what the user names; None for the default, which anybody who may write beside the upper can put there.

    Raises:
        UserError: LAYERS; a default work directory that is a symbolic link.
    """
    usual = default_work_path(upper.path)
    if given is None and os.path.islink(usual):
        raise UserError(
            f"work directory '{usual}' is a symbolic link, which no mount makes; remove it, or give another "
            "with --work",
            ExitCode.LAYERS,
        )
    return survey.place(Part.WORK, given or usual)


def engine_owners(upper_fd: int, work_fd: int) -> set[int]:
    """Who may own a work directory that a container engine made, which is the root of the container.

    That is the owner of the upper. In a user namespace, where every id that is mapped is the user's own
    (user_namespaces(7)), the upper may have another: it gets the owner of the directory in the layer below
    (containers/storage, drivers/overlay/overlay.go).
    """
    owners = {os.fstat(upper_fd).st_uid}
    if not in_first_user_namespace():
        owners |= {os.fstat(work_fd).st_uid} - {overflow_id("uid")}
    return owners


def refuse_foreign_work(work: Place, fd: int, owners: Collection[int] = ()) -> None:
    """Refuse a work directory in which somebody else could put what is believed, or take away what is being made.

    Args:
        fd: of the directory.
        owners: who may own it besides the effective user.

    Raises:
        UserError: LAYERS.
    """
    reason = owned.objection(os.fstat(fd), owners)
    if reason is not None:
        raise UserError(
            f"work directory '{work.given}' {reason}; make it yours alone (chown, chmod go-w), or give another with "
            "--work",
            ExitCode.LAYERS,
        )


def judge_work(upper: Place, work: Place, upper_fd: int, work_fd: int, default_work: bool) -> None:
    """Refuse a work directory that cannot serve this upper, or holds what is not of a mount.

    Raises:
        UserError: LAYERS.
    """
    if os.fstat(upper_fd).st_dev != os.fstat(work_fd).st_dev:
        remedy = (
            "the upper is a mount point: use a directory inside it as UPPER"
            if default_work
            else "give one beside UPPER"
        )
        raise UserError(
            f"work directory '{work.given}' is on another filesystem than the upper '{upper.given}'; {remedy}",
            ExitCode.LAYERS,
        )
    foreign = sorted(set(os.listdir(work_fd)) - _OURS_IN_WORK)
    if foreign:
        raise UserError(
            f"work directory '{work.given}' holds foreign files ('{foreign[0]}'); give an empty or new directory",
            ExitCode.LAYERS,
        )
    _refuse_foreign_index(work, work_fd)
    volatile.refuse_older(work_fd, work.path)


def _refuse_foreign_index(work: Place, work_fd: int) -> None:
    """Refuse a hard-link index that somebody else can have written: who owns WORK need not be who mounts.

    The index looks again when it is opened (core/marks/link_index.py).
    """
    try:
        st = os.stat("links", dir_fd=work_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    reason = owned.objection(st) if stat.S_ISDIR(st.st_mode) else "is no directory"
    if reason is not None:
        raise UserError(
            f"'links' in the work directory '{work.given}' {reason}; remove it, which separates hard links that were "
            "copied up, or give another work directory with --work",
            ExitCode.LAYERS,
        )


def _open_or_make(prepared: Prepared, place: Place, mode: int) -> int:
    if place.key is None:
        parent = os.path.dirname(place.path)
        try:
            os.mkdir(place.path, mode)
        except FileExistsError:
            pass  # it is there, but could not be looked at; opening says why
        except OSError as error:
            if place.part is Part.WORK and space.is_lacking(error):
                raise
            why = f"{error.strerror}; choose another place"
            if not os.path.isdir(parent):
                why = f"make the directory '{parent}' first"
            raise UserError(f"{place.part.value} '{place.given}' cannot be made: {why}", ExitCode.LAYERS) from None
        else:
            fd = placement.open_found(place)
            if os.fstat(fd).st_uid != os.geteuid():
                # Else somebody's directory would get the attributes of the topmost lower.
                os.close(fd)
                raise UserError(
                    f"{place.part.value} '{place.given}' was exchanged while it was made, or its filesystem gives it "
                    "another owner; make it first",
                    ExitCode.LAYERS,
                )
            parent_fd, name = _parent_of(place)
            prepared.on_failure(_remove_directory, prepared.hold(parent_fd), name, prepared.hold(os.dup(fd)))
            return fd
    return placement.open_found(place)


def _parent_of(place: Place) -> tuple[int, str]:
    """A descriptor of the directory above, so that it is found even when the mount covers the path, and the name."""
    parent, name = os.path.split(place.path)
    return os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), name


def _remove_directory(parent_fd: int, name: str, fd: int) -> None:
    """Remove a directory of ours, unless something in it must outlive the mount: then it is not empty."""
    try:
        volatile.clear(fd)
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            _log.warning("cannot remove the directory '%s': %s", name, error.strerror)


def _adopt_attributes(lower_fd: int, upper_fd: int) -> None:
    """Give a new upper the mode and owner of the topmost lower, since merged shows the upper's.

    An ordinary user stays the owner and keeps all rights, without which nothing could be written.
    """
    st = os.fstat(lower_fd)
    mode = stat.S_IMODE(st.st_mode)
    owned = False
    if overflow_id("uid") != st.st_uid and overflow_id("gid") != st.st_gid:
        try:
            os.fchown(upper_fd, st.st_uid, st.st_gid)
            owned = True
        except OSError as error:
            # EPERM for an ordinary user; EINVAL for an owner that this user namespace or this tmpfs does not know.
            _log.debug("the new upper keeps its own owner: %s", error)
    os.fchmod(upper_fd, mode if owned else mode & 0o1777 | 0o700)


def _open_in(directory_fd: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
