"""From options to Options: one word after another.

Every word of kernel overlayfs (Documentation/filesystems/overlayfs.rst) and of fuse-overlayfs (its manual page) has one
of three fates: it sets a field of Options; it is accepted in silence, because it asks for what is so anyway or has no
meaning here (SILENT); or it is unknown or unavailable. The last is an error on the plain command line and one line on
stderr in the mount-program form, since container engines pass words through that they do not understand themselves.

An error in both forms is what would make another mount than was meant, above all one without its upper: a bad value, a
layer without one, a layer word that is misspelt, `remount`.
"""

import os

from fuseunion.errors import UserError
from fuseunion.mounting.options.grammar import split_words
from fuseunion.mounting.options.records import ACCESS_TIMES, Form, Options, XattrPermissions
from fuseunion.mounting.options.values import (
    parse_id,
    parse_id_map,
    parse_images,
    parse_lowers,
    parse_path,
    parse_spin,
    parse_switch,
    parse_timeout,
    parse_xattr_permissions,
)
from fuseunion.mounting.options.vocabulary import LAYER_WORDS, ONLY, SILENT


class OptionsBuilder:
    """The options of one mount, as far as they have been read.

    Args:
        form: a person is told of more mistakes than a program, which has its reasons.

    Attributes:
        so_far: what was given until now; the last word for a field wins.
        has_lowers: lower directories were given, if perhaps none by name ("lowerdir=").
    """

    __slots__ = ("_squash_root", "has_lowers", "so_far")

    def __init__(self, form: Form) -> None:
        self.so_far = Options(target="", lowers=(), form=form)
        self.has_lowers = False
        self._squash_root = False

    def build(self) -> Options:
        """The Options; `squash_to_root` becomes an id where no other was given (fuse-overlayfs(1)).

        Raises:
            UserError: USAGE: `--mine` with what says otherwise whose the files are.
        """
        options = self.so_far
        if options.mine:
            return self._as_mine(options)
        if not self._squash_root:
            return options
        return options._replace(
            squash_uid=0 if options.squash_uid is None else options.squash_uid,
            squash_gid=0 if options.squash_gid is None else options.squash_gid,
        )

    def _as_mine(self, options: Options) -> Options:
        """Everything belongs to the one who mounts. A set-ID program of anybody must not become theirs by that."""
        others = (
            (options.uid_map or options.gid_map, "id maps"),
            (self._squash_root or options.squash_uid is not None or options.squash_gid is not None, "squash options"),
            (options.xattr_permissions is not XattrPermissions.OFF, "--fakeroot (xattr_permissions=)"),
        )
        for given, name in others:
            if given:
                raise UserError(f"--mine and {name} contradict each other about owners; leave one of them out")
        suid = False if options.suid is None else options.suid
        return options._replace(squash_uid=os.geteuid(), squash_gid=os.getegid(), suid=suid)

    def apply_words(self, text: str) -> list[str]:
        """Apply one `-o` string.

        Returns:
            The words that are unknown or cannot be honoured.
        Raises:
            UserError: USAGE, for a known word with a bad value, in either form, and what else the module says.
        """
        return [word for word in (self._apply(name, value) for name, value in split_words(text)) if word is not None]

    def set_layer(self, name: str, value: str) -> None:
        """Set the directories of lowerdir=, upperdir= or workdir=.

        Raises:
            UserError: USAGE: no value; in the plain form another one than before, since the first would be lost.
        """
        before = self.so_far
        if name == "lowerdir":
            self.set_lowers(parse_lowers(value, skip_empty=before.form is Form.MOUNT_PROGRAM))
        elif name == "upperdir":
            self.so_far = before._replace(upper=parse_path(value, name))
        else:
            self.so_far = before._replace(work=parse_path(value, name))
        if before.form is Form.PLAIN and self._replaces(before):
            remedy = "; several lower directories are one value: LOWER:LOWER" if name == "lowerdir" else ""
            raise UserError(f"{name} is given twice, the second time as '{value}'{remedy}")

    def set_lowers(self, lowers: tuple[str, ...]) -> None:
        """Set the lower directories, topmost first."""
        self.so_far = self.so_far._replace(lowers=lowers)
        self.has_lowers = True

    def _replaces(self, before: Options) -> bool:
        """Whether a layer that was given before is another one now."""
        now = self.so_far
        pairs = ((before.lowers, now.lowers), (before.upper, now.upper), (before.work, now.work))
        return any(old and old != new for old, new in pairs)

    def _apply(self, name: str, value: str | None) -> str | None:
        """Apply one word; returns it when it is unknown or cannot be honoured."""
        shown = name if value is None else f"{name}={value}"
        changed = self._flag(name) if value is None else self._assignment(name, value)
        if changed is not None:
            self.so_far = changed
            return None
        if name in LAYER_WORDS:
            if value is None:
                raise UserError(f"{name} needs a value: {name}=DIRECTORY")
            self.set_layer(name, value)
            return None
        if name == "remount":
            raise UserError(
                "remount: a mount cannot be changed; unmount it (fuseunion umount MERGED) and mount it again with the "
                "new options"
            )
        if name == "squash_to_root" and value is None:
            self._squash_root = True
            return None
        if value is None and name.removeprefix("no") in ACCESS_TIMES:
            return self._apply_access_time(name)
        if name in ONLY and value is not None:
            return None if value in ONLY[name] else shown
        if name in SILENT or name.startswith(("x-", "X-")):
            return None
        _refuse_misspelt(name)
        return shown

    def _flag(self, name: str) -> Options | None:
        """The options with one more word without a value; None for a word that is not of this kind."""
        change = self.so_far._replace
        match name:
            case "ro" | "rw":
                return change(read_only=name == "ro")
            case "allow_other":
                return change(allow_other=True)
            case "allow_root":
                return change(allow_root=True)
            case "suid" | "nosuid":
                return change(suid=name == "suid")
            case "dev" | "nodev":
                return change(dev=name == "dev")
            case "exec" | "noexec":
                return change(exec=name == "exec")
            case "volatile":
                return change(volatile=True)
            case "noacl":
                return change(acl=False)
            case "static_nlink":
                return change(static_nlink=True)
            case "list_layers":
                return change(list_layers=True)
        return None

    def _assignment(self, name: str, value: str) -> Options | None:
        """The options with one more word that has a value; None for a word that is not of this kind."""
        change = self.so_far._replace
        match name:
            case "uidmapping":
                return change(uid_map=parse_id_map(value, name))
            case "gidmapping":
                return change(gid_map=parse_id_map(value, name))
            case "fsname":
                return change(source=value or None)
            case "squash_to_uid":
                return change(squash_uid=parse_id(value, name))
            case "squash_to_gid":
                return change(squash_gid=parse_id(value, name))
            case "xattr_permissions":
                return change(xattr_permissions=parse_xattr_permissions(value, name))
            case "timeout":
                return change(timeout=parse_timeout(value, name))
            case "spin":
                return change(spin=parse_spin(value, name))
            case "images":
                return change(images=parse_images(value, name))
            case "redirect_dir" if value in ("on", "follow", "nofollow", "off"):
                return change(redirect_dir=value == "on")  # what there is, is followed always
            case "metacopy" if value in ("on", "off"):
                return change(metacopy=value == "on")
            case "noxattrs":
                return change(xattrs=not parse_switch(value, name))
            # 0 and 1 are fuse-overlayfs's, the words those of newer kernels.
            case "fsync" if value == "volatile":
                return change(volatile=True)
            case "fsync":
                return change(fsync=value in ("auto", "strict") or parse_switch(value, name))
        return None

    def _apply_access_time(self, name: str) -> str | None:
        if self.so_far.form is Form.MOUNT_PROGRAM and name in ACCESS_TIMES:
            # mount(8) and fstab pass what suits any filesystem: they get their mount, and hear that it has none.
            return name
        self.so_far = self.so_far._replace(access_times=_access_times(self.so_far.access_times, name))
        return None


def _refuse_misspelt(name: str) -> None:
    """An unknown word that was meant to name a layer: without it the mount would be another."""
    from difflib import get_close_matches  # only here: most mounts have no unknown words

    written = f"{name}dir" if f"{name}dir" in LAYER_WORDS else name.lower()
    for meant in get_close_matches(written, LAYER_WORDS, 1, 0.8):
        raise UserError(f"unknown option '{name}'; did you mean {meant}= ?")


def _access_times(words: tuple[str, ...], name: str) -> tuple[str, ...]:
    """What is asked for after one more word; noatime is the default, and takes back all the others."""
    if name == "noatime":
        return ()
    replaced = {name, name.removeprefix("no") if name.startswith("no") else f"no{name}"}
    if name in ("relatime", "strictatime"):
        replaced |= {"relatime", "strictatime"}
    left = tuple(word for word in words if word not in replaced)
    return (*left, name) if name in (*ACCESS_TIMES, "nodiratime") else left
