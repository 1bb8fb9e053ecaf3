"""Building an image: what a container engine asks of its mount program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.row import Measurement, NotRun, Who, row
from bench.stage import Ground, Stage, Word
from tests.support.store import CONTAINERS_CONF
from tests.support.tiny_base import PROGRAMS, make_tiny_base

_MOVES = "for d in /srv/tree/*; do mv $d $d.moved; done; touch /srv/done"
_WRITES = "rm -r /srv/tree; mkdir /srv/tree; for n in 1 2 3 4 5 6 7 8 9; do cat /etc/passwd > /srv/tree/$n; done"

CONTAINERFILE = f"""\
FROM localhost/base
COPY tree /srv/tree
RUN {_MOVES}
RUN {_WRITES}
"""

STEPS = f"""
container=$(buildah from --quiet localhost/base)
buildah copy --quiet $container tree /srv/tree
buildah run $container sh -c '{_MOVES}'
buildah run $container sh -c '{_WRITES}'
"""
"""The same without the commits: with a mount program each of them sleeps until the next full second begins
(containers/storage drivers/fsdiff.go, NaiveDiffDriver.Diff)."""


def context_beside(ground: Ground, size: int) -> None:
    """A base image and a build context with so many files; podman makes its layers itself."""
    ground.lower()
    make_tiny_base(ground.kit / "base", PROGRAMS)
    (ground.kit / "context").mkdir()
    ground.tree(ground.kit / "context/tree", size, per_directory=20)
    (ground.kit / "context/Containerfile").write_text(CONTAINERFILE)


@row("podman", "podman build of three steps, with {size} files; the steps without the commits",
     tiny=20, small=100, full=2_000, prepare=context_beside, mounted=False, who=Who.PROGRAMS,
     programs=("podman", "buildah"))  # fmt: skip
def podman(stage: Stage, size: int) -> Iterator[Measurement]:
    """Steps run in a chroot, so that no container is started: mounts and files are what is measured."""
    store = _Store(stage.scratch("store"), stage.contestant.image_store)
    try:
        store.run("import", "--quiet", stage.kit / "base.tar", "localhost/base")
        words: list[Word] = [
            "build",
            "--quiet",
            "--no-cache",
            "--isolation=chroot",
            "--network=host",
            "-t",
            "localhost/built",
        ]
        done = stage.timed("build", "podman", *words, stage.kit / "context", env=store.environment)
        built = Path(store.run("image", "mount", "localhost/built"))
        yield done._replace(found=stage.tools.look(built / "srv"))
        store.run("image", "unmount", "localhost/built")
        yield stage.timed("steps", "sh", "-ec", STEPS, cwd=stage.kit / "context", env=store.environment)
    finally:
        store.close()


class _Store:
    """A store of podman's own, that ends with the sample."""

    def __init__(self, directory: Path, mount_program: str | None) -> None:
        self.directory = directory
        (directory / "containers.conf").write_text(CONTAINERS_CONF)
        for name in ("run", "tmp"):
            (directory / name).mkdir()
        program = f'mount_program = "{mount_program}"\n' if mount_program else ""
        (directory / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\nrunroot = "{directory}/run/containers"\ngraphroot = "{directory}/root"\n'
            f"[storage.options.overlay]\n{program}"
        )

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
            "HOME": str(self.directory),
            "TMPDIR": str(self.directory / "tmp"),
            # In a user namespace made for the benchmark podman must not make another one.
            "_CONTAINERS_USERNS_CONFIGURED": "done",
            "BUILDAH_ISOLATION": "chroot",
        }

    def run(self, *words: str | Path) -> str:
        """The output of a podman command."""
        done = subprocess.run(
            ["podman", *map(str, words)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise NotRun(f"podman {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
        return done.stdout.strip()

    def close(self) -> None:
        for mount in ("root/overlay", "root"):
            subprocess.run(["umount", "-l", self.directory / mount], stderr=subprocess.DEVNULL, check=False)
