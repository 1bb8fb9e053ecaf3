"""The engine of the kernel's overlayfs, as the commands see it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fuseunion.engines.engine import Engine, Progress, Wish, for_a_daemon, has_image
from fuseunion.engines.kernel import recognise
from fuseunion.engines.live import LiveMount, cannot_write_out
from fuseunion.errors import ExitCode
from fuseunion.linux.mountinfo import Mount
from fuseunion.mounting.options import EngineChoice, ImageChoice, Options

if TYPE_CHECKING:
    from fuseunion.engines.status import Status


class KernelEngine(Engine):
    """Overlayfs, mounted in the namespaces of the caller; there is no daemon."""

    choice = EngineChoice.KERNEL
    losses = (
        "renaming a directory of a lower answers EXDEV",
        "names of one lower file become separate files when one of them is written",
        "no id maps, no --fakeroot",
    )

    def refusals(self, options: Options) -> list[str]:
        """See Engine."""
        wishes = (
            *for_a_daemon(options),
            *_of_images(options),
            (not options.acl, "it cannot leave ACLs out (noacl)"),
            (not options.xattrs, "it cannot leave attributes out (noxattrs)"),
            (not options.fsync and not options.volatile, "it cannot skip fsync alone; use --volatile"),
            (options.static_nlink, "it shows the links that a directory has (static_nlink)"),
            (options.ranch.inject, "it cannot inject files"),
            (options.target.startswith("/dev/fd/"), "it mounts at a directory"),
        )
        return [reason for wish, reason in wishes if wish]

    def start(self, options: Options, progress: Progress) -> ExitCode:
        """See Engine."""
        from fuseunion.engines.kernel import overlay

        overlay.show(options)
        return ExitCode.OK

    def preload(self) -> None:
        """See Engine."""
        from fuseunion.engines.kernel import end_overlay, overlay  # noqa: F401

    def find(self, given: str, path: str, entry: Mount | None) -> LiveMount | None:
        """See Engine."""
        return LiveMount(given, path, entry) if entry is not None and recognise.is_ours(entry) else None

    def flush(self, live: LiveMount, progress: Progress) -> None:
        """See Engine. Of a volatile mount too."""
        from fuseunion.engines.kernel import end_overlay

        try:
            end_overlay.write_out(live)
        except OSError as error:
            raise cannot_write_out(live, error) from None

    def stop(self, live: LiveMount, progress: Progress, *, lazy: bool, discard: bool) -> None:
        """See Engine."""
        from fuseunion.engines.kernel import end_overlay

        end_overlay.stop(live, lazy=lazy)

    def statuses(self, path: str | None = None) -> Iterator[Status]:
        """See Engine. There is no daemon: what the kernel says of its mounts is all that is known."""
        from fuseunion.engines.kernel import overlays

        return overlays.statuses()


def _of_images(options: Options) -> tuple[Wish, ...]:
    """What stands in the way where a layer is an image file."""
    if not has_image(options):
        return ()
    from fuseunion.images.layers import trust  # most mounts have none

    # What is in an image is not reached any more when it is unmounted, to take the mark of a volatile mount away.
    keeps_a_mark = options.volatile and options.upper is not None and os.path.isfile(options.upper)
    return (
        (options.images is ImageChoice.FUSE, "images are not to be mounted by the kernel (images=fuse)"),
        (trust.of_user() is not None, "it shows image files for the machine's root only"),
        (keeps_a_mark and not options.ephemeral, "it cannot write to an image with --volatile"),
    )
