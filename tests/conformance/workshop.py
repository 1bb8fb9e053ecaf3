"""Stores on demand, the base image in them, and the big image that each builds once."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.debian import Debian
from tests.support.image import Image, read_image
from tests.support.namespace import Namespace
from tests.support.store import Driver, Store, make_store

CONTEXT = Path(__file__).parent / "context"
BASE = "localhost/debian"
APP = "localhost/app"


@dataclass(frozen=True, slots=True)
class Built:
    """An image that a store built, saved and read again."""

    started: int
    image: Image


@dataclass
class Workshop:
    """Everything that the conformance tests share. Stores and images are made at their first use."""

    login: Namespace
    user: str
    directory: Path
    launcher: Path
    debian: Debian | None
    _stores: dict[str, Store] = field(default_factory=dict)
    _built: dict[tuple[Path, str], Built] = field(default_factory=dict)

    @property
    def context(self) -> Path:
        """The build context, where the user can read it."""
        return self.directory / "context"

    @property
    def packages(self) -> Path:
        """The package repository for builds."""
        assert self.debian is not None
        return self.debian.packages

    def program(self, driver: Driver) -> Path | None:
        """The mount program of a driver."""
        match driver:
            case Driver.NATIVE:
                return None
            case Driver.FUSEUNION:
                return self.launcher
            case Driver.ALIAS:
                return self.launcher.with_name("fuse-overlayfs")

    def bare_store(self, name: str, driver: Driver, options: Mapping[str, str] | None = None) -> Store:
        """The empty store of that name."""
        if name not in self._stores:
            directory = self.directory / name
            self._stores[name] = make_store(self.login, self.user, directory, self.program(driver), options or {})
        return self._stores[name]

    def store(self, driver: Driver, name: str = "", options: Mapping[str, str] | None = None) -> Store:
        """The store of that name (by default the driver's), with the Debian base imported."""
        name = name or driver.name.lower()
        fresh = name not in self._stores
        store = self.bare_store(name, driver, options)
        if fresh:
            assert self.debian is not None
            store.podman("import", "--quiet", self.debian.base, BASE)
        return store

    def build(self, store: Store, *program: str) -> Built:
        """The Containerfile, built by `program` (`podman build`, `buildah bud`), as APP-podman or APP-buildah."""
        key = (store.directory, " ".join(program))
        if key not in self._built:
            started = int(time.time())
            volume = f"{self.packages}:/debs:ro"
            store.run(*program, "--quiet", "--volume", volume, "--tag", f"{APP}-{program[0]}", self.context)
            self._built[key] = Built(started, self.save(store, f"{APP}-{program[0]}"))
        return self._built[key]

    def save(self, store: Store, name: str) -> Image:
        """Save an image and read it."""
        archive = store.directory / "saved.tar"
        store.podman("save", "--quiet", "--format=docker-archive", "--output", archive, name)
        image = read_image(archive)
        archive.unlink()
        return image

    def close(self) -> None:
        """Remove all stores."""
        for store in self._stores.values():
            store.close()
        shutil.rmtree(self.directory)
