"""What is there before an example of the documentation runs, and what must be true after it.

An example may speak of directories that the reader has. They are made here, by root, in the example's own directory;
what is checked after it, and what takes its mounts down where it leaves them, is run by the one who ran the example.
"""

from __future__ import annotations

from dataclasses import dataclass

FINISH = "fuseunion umount merged"
LAYER = "mkdir base; printf '#!/bin/sh\\n' >base/tool; chmod 755 base/tool"

SOFTWARE = "mkdir -p software/toolkit; echo slow >software/toolkit/settings"


@dataclass(frozen=True, slots=True)
class Scene:
    """Shell scripts around an example."""

    before: str = ""
    after: str = ""
    between: str = ""
    """Run after each command, where the document lists alternatives."""
    needs: str = ""
    """A program that not every machine has."""
    owned: bool = True
    """Whether the layers are given to the one who runs the example."""


TREE = """
tree() {
    mkdir -p $1/etc $1/usr/bin; ln -s usr/bin $1/bin; echo root:x:0:0::/root:/bin/sh >$1/etc/passwd
    for program in sh cat ls rm touch; do
        path=$(command -v $program)
        for file in $path $(ldd $path | grep -o '/[^ ]*'); do
            mkdir -p $1$(dirname $file); cp --dereference $file $1$file
        done
    done
}
"""
"""A shell function: a root directory with a few programs."""

_BASE = "umask 022; mkdir -p base/etc base/bin; echo light >base/etc/settings; echo long >base/etc/manual"
_CHANGES = f"{_BASE}; mkdir -p changes/etc; echo dark >changes/etc/settings"

SCENES = {
    "layers-diff": Scene(f"{_BASE}; mkdir merged"),
    "layers-export": Scene(_CHANGES),
    "layers-import": Scene(
        f"""{_CHANGES}; mkdir merged
        fuseunion export changes -o layer.tar.gz
        fuseunion export changes --lower base --format oci-archive -o tools.tar
        rm -r base changes
        """,
        "test -f base/etc/manual",
    ),
    "layers-commit": Scene(_CHANGES, "test -f base-2/etc/manual"),
    "layers-apply": Scene(_CHANGES, "test -f base/etc/manual; test ! -e .base.fuseunion-apply"),
    "readme-layers": Scene(
        "mkdir -p LOWER/etc UPPER/etc; echo x >LOWER/etc/file; echo y >UPPER/etc/file", "test $(cat DIR/etc/file) = y"
    ),
    "readme-main": Scene("mkdir LOWER MERGED; echo x >LOWER/file", "test -d UPPER"),
    "readme-mine": Scene("mkdir MERGED", "test -d UPPER/lib/notes; test ! -e /usr/lib/notes"),
    "mine": Scene("mkdir merged", "test -d upper/lib/notes; test ! -e /usr/lib/notes"),
    "readme-more": Scene(
        "mkdir base patches MERGED; echo x >base/file; ln -s base LOWER",
        between="cat MERGED/file; fuseunion umount MERGED",
    ),
    "live": Scene("mkdir -p base/lib merged; echo grey >base/settings; touch base/lib/tool", FINISH),
    "readme-exec": Scene(
        f"{TREE}\ntree LOWER",
        "test -f UPPER/etc/new; test -f CHANGES/etc/new; test ! -e new; test ! -e LOWER/etc/new; test ! -e /etc/new",
    ),
    "images": Scene("mkdir tree merged; echo slow >tree/settings", "test $(cat tree/settings) = slow"),
    "images-exec": Scene(
        f"""{TREE}
tree tree; mksquashfs tree base.sqfs -quiet -no-progress; mkdir -p empty/upper empty/work
truncate -s 64M changes.img; mkfs.ext4 -q -d empty changes.img""",
        "test ! -e tree/etc/new",
    ),
    "apptainer-exec": Scene(f"{TREE}\ntree image", "test -f changes/etc/new; test ! -e image/etc/new"),
    "ranch-in-place": Scene("mkdir project; touch project/readme project/settings", owned=False),
    "ranch-copy": Scene(
        "mkdir project; touch project/readme project/settings",
        "test -f changes/notes; test $(ls project | wc -l) = 2",
        owned=False,
    ),
    "upkeep-check": Scene("mkdir base upper; mknod upper/gone c 0 0", "test ! -e upper/gone"),
    "upkeep-flatten": Scene(
        """
        mkdir base base/dir upper upper/new; touch base/old base/dir/inside; mknod upper/old c 0 0
        mknod upper/dir c 0 0; setfattr -n user.overlay.redirect -v dir upper/new
        """,
        "test -f upper/new/inside",
    ),
    "upkeep-vacuum": Scene("mkdir base upper; echo same >base/same; cp -p base/same upper", "test ! -e upper/same"),
    "upkeep-snapshot": Scene("mkdir upper; echo better >upper/new"),
    "python": Scene("mkdir base; printf grey >base/settings", after="test $(cat base/settings) = grey"),
    "pytest": Scene("mkdir project; echo -n grey >project/settings"),
    "ci": Scene("mkdir checkout; echo 'echo made >output' >checkout/build.sh"),
    "ci-nothing": Scene("mkdir checkout; echo 'echo made >output' >checkout/build.sh"),
    "hpc": Scene(SOFTWARE, owned=False),
    "hpc-image": Scene(
        f"{TREE}\ntree tree; mkdir tree/usr/local; mksquashfs tree base.sqfs -quiet -no-progress -all-root",
        "test -f changes/usr/local/tool; test -f project.sqfs",
    ),
    "hpc-ranch": Scene(SOFTWARE, owned=False),
    "id-map": Scene(
        f"{LAYER}; chown 100033:100044 base/tool; mkdir merged",
        f"""
        test $(stat -c %u:%g merged/tool) = 33:44
        touch merged/new; test $(stat -c %u:%g upper/new) = 100000:100000
        {FINISH}
        """,
    ),
    "fakeroot": Scene(f"{LAYER}; mkdir merged", FINISH),
    "unpack": Scene(
        """
        mkdir -p system/dev empty; mkdir merged; touch system/root system/dev/null
        cp /bin/true system/true; chown 7:8 system/true; chmod 4711 system/true
        tar -c -f system.tar -C system .
        """,
        f"""
        test "$(stat -c '%u:%g %a' merged/true)" = '7:8 4711'
        test "$(stat -c '%F %t:%T' merged/dev/null)" = 'character special file 1:3'
        {FINISH}
        """,
    ),
    "image": Scene("mkdir changes; echo x >changes/file", "test $(stat -c %s env.img) = 83886080"),
    "apptainer": Scene("mkdir session image; echo old >image/file"),
    # What systemd runs for the unit (systemd src/core/mount.c, mount_enter_mounting).
    "systemd": Scene(
        "mkdir -p /srv/base /srv/upper /srv/work /srv/merged",
        """
        setting() { sed -n "s/^$1=//p" /etc/systemd/system/srv-merged.mount; }
        mount "$(setting What)" "$(setting Where)" -t "$(setting Type)" -o "$(setting Options)"
        touch /srv/merged/file; umount /srv/merged; test -f /srv/upper/file
        """,
        needs="systemd-analyze",
    ),
    "user-service": Scene(
        after="""
        setting() { sed -n "s/^$1=//p" .config/systemd/user/project.service | sed "s|%h|$HOME|g"; }
        $(setting ExecStart); touch merged/file; $(setting ExecStop); test -f upper/file
        """,
        needs="systemd-analyze",
    ),
}
