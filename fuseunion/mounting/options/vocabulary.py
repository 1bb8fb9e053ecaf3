"""The words of `-o`: which there are. What each does is in options_builder.py, and in docs/options.md for the user.

Messages that guess what was meant and shell completion read them here; tests/docs/test_options_agree.py compares them
with docs/options.md, and has the parser read each.
"""

from fuseunion.mounting.options.records import ACCESS_TIMES

LAYER_WORDS = ("lowerdir", "upperdir", "workdir")

WORDS = (
    "lowerdir=", "upperdir=", "workdir=",
    "ro", "rw", "allow_other", "allow_root", "suid", "nosuid", "dev", "nodev", "exec", "noexec",
    *ACCESS_TIMES,
    "static_nlink", "list_layers",
    "volatile", "fsync=volatile", "fsync=0", "fsync=1", "fsync=auto", "fsync=strict",
    "timeout=", "spin=",
    "images=auto", "images=fuse", "images=kernel",
    "noacl", "noxattrs=1",
    "uidmapping=", "gidmapping=",
    "redirect_dir=on", "redirect_dir=off", "redirect_dir=nofollow", "redirect_dir=follow",
    "metacopy=on", "metacopy=off",
    "fsname=", "squash_to_root", "squash_to_uid=", "squash_to_gid=",
    "xattr_permissions=1", "xattr_permissions=2",
)  # fmt: skip
"""Words that set something; after `=` nothing where any value may stand."""

SILENT = frozenset((
    # what mount(8), fstab and systemd add for themselves
    "defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev", "nonempty",
    "subtype", "comment", "async", "silent", "loud", "mand", "nomand", "iversion", "noiversion",
    "bind", "rbind", "private", "rprivate", "shared", "rshared", "slave", "rslave",
    # security labels: fuse-overlayfs ignores them too
    "context", "fscontext", "defcontext", "rootcontext",
    # tuning of other implementations
    "kernel_cache", "auto_cache", "big_writes", "max_write", "max_read", "max_readahead", "threaded", "writeback",
    "splice_read", "splice_write", "splice_move", "no_splice_read", "no_splice_write", "no_splice_move",
    "fast_ino",
    # what is so here anyway
    "default_permissions", "userxattr", "index", "xino", "ino32_t", "uuid",
))  # fmt: skip
"""Words that change nothing here and are accepted without a remark, in both forms, with any value."""

ONLY: dict[str, tuple[str, ...]] = {
    "nfs_export": ("off",),
    "verity": ("off",),
}
"""Words of the kernel of which only these values can be honoured."""
