"""From opened directories to the core's objects."""

import logging
import os
from typing import NamedTuple

from fuseunion.core.disk.descriptors import Descriptors
from fuseunion.core.disk.layer import Layer
from fuseunion.core.disk.remote import is_remote
from fuseunion.core.disk.work import WorkDirectory
from fuseunion.core.format.xattr_names import MalformedError
from fuseunion.core.ids.identity import IDENTITY, Identity, IdMap, IdRange
from fuseunion.core.ownership import belief
from fuseunion.core.ownership.facts import Facts
from fuseunion.core.ownership.guarded_store import GuardedStore, IgnoredStore
from fuseunion.core.ownership.store import OwnershipStore
from fuseunion.core.ownership.store_choice import choose, detect, has_database
from fuseunion.core.ownership.stored_names import OverrideName
from fuseunion.core.tree.state import Settings
from fuseunion.core.union import Union
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting import log
from fuseunion.mounting.checks import owners, space, volatile
from fuseunion.mounting.options import Form, Options, XattrPermissions
from fuseunion.mounting.prepared import Prepared

_log = logging.getLogger("fuseunion.ownership")

DISABLE_WHITEOUT_DEVICES = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"
"""Environment variable of fuse-overlayfs: write whiteouts as `.wh.` files only."""


_STORED_IN = {
    XattrPermissions.OFF: None,
    XattrPermissions.PRIVILEGED: OverrideName.PRIVILEGED,
    XattrPermissions.CONTAINERS: OverrideName.CONTAINERS,
}


class Layers(NamedTuple):
    """What a Union is made of.

    Attributes:
        lowers: topmost first; among them an upper to which nothing can be written (Prepared.full).
        upper, work: None for a read-only mount.
        ignored: the layers whose stored ownership is not believed.
    """

    lowers: list[Layer]
    upper: Layer | None
    work: WorkDirectory | None
    ignored: list[str]

    @property
    def says_ignored(self) -> list[str]:
        """What a user is told of them, one line each."""
        return [
            f"stored owners of '{label}' are ignored: for the machine's root they count only where root alone may write"
            for label in self.ignored
        ]


def open_layers(prepared: Prepared, options: Options) -> Layers:
    """Make the layers, before anything is mounted over them.

    Raises:
        UserError: LAYERS, when the upper's filesystem cannot serve.
    """
    prepared.claim()
    descriptors = Descriptors()
    lowers = [
        Layer(
            opened.fd,
            writable=False,
            label=opened.label,
            covered=opened.covered,
            descriptors=descriptors,
            hidden=frozenset(prepared.hidden),
            closed_is_empty=options.closed_is_empty,
        )
        for opened in prepared.lowers
    ]
    ignored: list[str] = []
    for lower, opened in zip(lowers, prepared.lowers, strict=True):
        if opened.by_squashfuse:
            from fuseunion.core.format import squashfuse_xattrs  # most mounts have none

            lower.true_names = squashfuse_xattrs.names
        # Who shows an image here ends with the mount.
        lower.remote = is_remote(lower.root_fd) and all(lower.st_dev != image.device for image in prepared.images)
        lower.ownership = store_of_lower(lower, options, ignored)
    if prepared.upper is None:
        return Layers(lowers, None, None, ignored)
    work = _open_work(prepared, options, descriptors) if prepared.work is not None else None
    upper = Layer(
        prepared.upper.fd,
        writable=work is not None,
        label=prepared.upper.label,
        covered=prepared.upper.covered,
        descriptors=descriptors,
    )
    if work is None:
        upper.ownership = _store_of_full_upper(upper, options, ignored)
        return Layers([upper, *lowers], None, None, ignored)
    try:
        upper.ownership = _store_of_upper(upper, work.layer, lowers, options, prepared, ignored)
    except OSError as error:
        raise UserError(
            f"owners cannot be stored in upper '{upper.label}' ({error.strerror}); "
            "xattr_permissions=1 is for root, --fakeroot (xattr_permissions=2) for everybody",
            ExitCode.LAYERS,
        ) from None
    return Layers(lowers, upper, work, ignored)


def _open_work(prepared: Prepared, options: Options, descriptors: Descriptors) -> WorkDirectory | None:
    """The work directory, ready for use; None where there is no space for it, which `prepared` then says.

    Raises:
        UserError: LAYERS.
    """
    assert prepared.work is not None and prepared.upper is not None
    kept = os.dup(prepared.work.fd)
    work = None
    try:
        work = WorkDirectory(
            prepared.work.fd,
            prepared.work.label,
            allow_devices=not os.environ.get(DISABLE_WHITEOUT_DEVICES),
            descriptors=descriptors,
        )
        if options.volatile and not options.ephemeral:
            volatile.mark(work.layer.root_fd)
    except OSError as error:
        if work is not None:
            work.close()
        if not space.is_lacking(error):
            raise UserError(
                f"the filesystem of upper '{prepared.upper.label}' cannot be written "
                f"({error.strerror} in the work directory '{prepared.work.label}'); use another or mount with "
                "--read-only",
                ExitCode.LAYERS,
            ) from None
        space.refuse_if_needed(error, prepared.upper.label, prepared.work.label, kept)
        prepared.give_up_writing(error)
        return None
    finally:
        os.close(kept)
    return work


def _store_of_full_upper(upper: Layer, options: Options, ignored: list[str]) -> OwnershipStore | None:
    """What an upper that is only read was written with: without space nothing new begins to be stored."""
    found = detect(upper.root_fd)
    if found is None or not belief.is_needed():
        return found
    privileged = found.name is OverrideName.PRIVILEGED
    believed = belief.of_upper(os.fstat(upper.root_fd), asked=_asked(options), privileged=privileged)
    if believed is None:
        ignored.append(upper.label)
        return None
    return GuardedStore(found, believed, upper.label)


def store_of_lower(lower: Layer, options: Options, ignored: list[str]) -> OwnershipStore | None:
    """What a lower was written with.

    Args:
        ignored: gets the label of one whose stored ownership is not believed.

    Returns:
        None where its files are what they look like.

    Raises:
        OSError: of the layer.
    """
    found = detect(lower.root_fd)
    if found is None or not belief.is_needed():
        return found
    believed = belief.of_lower(
        os.fstat(lower.root_fd), asked=_asked(options), privileged=found.name is OverrideName.PRIVILEGED
    )
    if believed is None:
        ignored.append(lower.label)
        return IgnoredStore()
    return GuardedStore(found, believed, lower.label)


def _store_of_upper(
    upper: Layer,
    work: Layer,
    lowers: list[Layer],
    options: Options,
    prepared: Prepared,
    ignored: list[str],
) -> OwnershipStore | None:
    wanted, volatile_ = _STORED_IN[options.xattr_permissions], _never_syncs(options)
    shown_as, in_image = prepared.shown_as, prepared.has_image_upper
    if not belief.is_needed():
        roots = [lower.root_fd for lower in lowers]
        return choose(upper.root_fd, wanted, work.root_fd, roots, volatile=volatile_, in_image=in_image)
    marked = detect(upper.root_fd)
    privileged = (wanted if marked is None else marked.name) is OverrideName.PRIVILEGED
    believed = belief.of_upper(os.fstat(upper.root_fd), asked=_asked(options), privileged=privileged)
    may_use_database = _asked(options) or belief.is_roots_database(work.root_fd)
    stored = marked is not None or has_database(work.root_fd)
    if stored and (believed is None or not (may_use_database or marked is not None)):
        ignored.append(upper.label)
    if believed is None:
        return None
    store = choose(
        upper.root_fd,
        wanted,
        work.root_fd if may_use_database else None,
        [lower.root_fd for lower in lowers if isinstance(lower.ownership, GuardedStore)],
        None if shown_as is None else Facts.of(shown_as),
        volatile=volatile_,
        in_image=in_image,
    )
    return None if store is None else GuardedStore(store, believed, upper.label)


def _asked(options: Options) -> bool:
    return options.xattr_permissions is not XattrPermissions.OFF


def announce(layers: Layers, prepared: Prepared) -> None:
    """Say in the log whose facts are shown for which layer, and of exchanged lowers; called once the log is open."""
    for line in (*([prepared.full] if prepared.full is not None else []), *prepared.notes):
        _log.warning("%s", line)
    if prepared.exchanged:
        _log.info("%s", prepared.says_exchanged)
    for line in layers.says_ignored:
        _log.info("%s", line)
    for layer in (layers.upper, *layers.lowers):
        if layer is not None and not isinstance(layer.ownership, IgnoredStore | None):
            _log.info("owners and modes of '%s' are stored in %s", layer.label, layer.ownership.label)


def tell(layers: Layers, prepared: Prepared, options: Options) -> None:
    """Tell a person whose stored ownership is not believed and how little of another's tree can be changed, and
    everybody of a mount that came out read-only.

    Called while there still is a stderr; with -f the log goes there too.
    """
    if prepared.full is not None and (options.log_file is not None or not (options.foreground or options.trace)):
        log.tell(f"warning: {prepared.full}")
    if options.form is Form.PLAIN:
        for line in layers.says_ignored:
            log.tell(f"warning: {line}")
        if layers.upper is not None and layers.upper.ownership is None:
            warn_of_owners(layers, options)


def warn_of_owners(layers: Layers, options: Options) -> None:
    """Tell a person that little can be changed, where a lower is another's."""
    for lower in layers.lowers:
        says = owners.objection(os.fstat(lower.root_fd), options)
        if says is not None:
            log.tell(f"warning: lower directory '{lower.label}' {says}")
            return


def build_union(layers: Layers, options: Options, *, posix_acl: bool, owner_optional: bool = False) -> Union:
    """Make the union.

    Args:
        posix_acl: the kernel leaves the umask to us.
        owner_optional: copies get as much of their owner as can be given.
    Raises:
        OSError: a layer cannot be read.
        UserError: USAGE, for id maps that are none; LAYERS, when what is stored of the owner of the root means nothing.
    """
    settings = Settings(
        volatile=_never_syncs(options),
        acl=options.keeps_acls,
        xattrs=options.xattrs,
        umask_pending=posix_acl,
        identity=identity(options),
        static_nlink=options.static_nlink,
        owner_optional=owner_optional or options.stranger_uid is not None or options.stranger_gid is not None,
        redirect_dir=options.redirect_dir,
        metacopy=options.metacopy,
    )
    union = Union(layers.lowers, layers.upper, layers.work, settings)
    try:
        union.stat(union.root)
    except MalformedError:
        union.close()
        top = (layers.upper or layers.lowers[0]).label
        raise UserError(
            f"owner and mode that are stored in an attribute of '{top}' itself are malformed; remove the attribute, or "
            "mount without stored ownership",
            ExitCode.LAYERS,
        ) from None
    return union


def _never_syncs(options: Options) -> bool:
    return options.volatile or options.ephemeral or not options.fsync


def identity(options: Options) -> Identity:
    """The ids that the mount shows and stores.

    Raises:
        UserError: USAGE, when ranges overlap or lie outside the ids.
    """
    shown = (options.squash_uid, options.squash_gid, options.stranger_uid, options.stranger_gid)
    if not (options.uid_map or options.gid_map) and shown == (None, None, None, None):
        return IDENTITY
    try:
        return Identity(
            IdMap((IdRange(*triple) for triple in options.uid_map), "uid"),
            IdMap((IdRange(*triple) for triple in options.gid_map), "gid"),
            *shown,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
