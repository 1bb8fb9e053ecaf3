"""What an object of a squashfs image really has, made of what squashfuse lists and answers.

squashfs keeps of each attribute a number, 0 user, 1 trusted, 2 security, and the rest of its name
(fs/squashfs/squashfs_fs.h). squashfuse is wrong about both questions that can be asked:

    listxattr   releases before 0.2 have 1 and 2 the wrong way round (xattr.c, sqfs_xattr_prefixes): security.capability
                is listed as trusted.capability, trusted.overlay.opaque as security.overlay.opaque. Which release runs
                does not tell: it is distributed with and without the correction under one number.
    getxattr    all releases up to 0.5.2 answer with the first attribute that has the same number or a rest of the same
                length, and a rest that begins as the wanted one (xattr.c, sqfs_xattr_find): user.a with the value of
                user.abc, trusted.a with that of user.a. A longer rest is read into a buffer that is too small.

So what a rest is in practice tells in which namespace it belongs, and one such name tells it of all on the same object.
What remains unknown is not shown. And only a name that is listed is asked for, in the words to which that attribute is
the first that is found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_USER, _TRUSTED, _SECURITY = b"user.", b"trusted.", b"security."
_OTHER = {_TRUSTED: _SECURITY, _SECURITY: _TRUSTED}

_OF_SECURITY = (
    b"capability",
    b"selinux",
    b"ima",
    b"evm",
    b"apparmor",
    b"SMACK64",
    b"sehash",
    b"restorecon_last",
    b"NTACL",
    b"fuseoverlayfs.override_stat",
)
"""What the namespace `security` is used for: xattr(7), include/uapi/linux/xattr.h, and user space."""

_OF_TRUSTED = (b"overlay.", b"glusterfs.", b"gfid", b"afr.", b"lov", b"lma", b"link", b"fid", b"som", b"hsm")
"""What `trusted` is used for: overlayfs, Gluster and Lustre."""


def names(listed: Sequence[bytes]) -> Mapping[bytes, tuple[bytes, ...]]:
    """The attributes of one object.

    Args:
        listed: what listxattr(2) answers, in its order, which is that of the image.

    Returns:
        Their names, and for each by which it may be asked for, one after the other while the answer is ENODATA: the
        kernel keeps trusted.* from ordinary users, and a squashfuse that is right knows it by its own name only. One
        whose value cannot be asked for is left out.
    """
    exchanged = _exchanged(listed)
    found: dict[bytes, tuple[bytes, ...]] = {}
    for place, name in enumerate(listed):
        prefix, rest = _split(name)
        if prefix in _OTHER:
            own = _namespace(rest)
            if own is None and exchanged is None:
                continue
            prefix = own if own is not None else _OTHER[prefix] if exchanged else prefix
        words = _words(listed, place, prefix + rest)
        if words and prefix + rest not in found:
            found[prefix + rest] = words
    return found


def _split(name: bytes) -> tuple[bytes, bytes]:
    prefix, dot, rest = name.partition(b".")
    return prefix + dot, rest


def _namespace(rest: bytes) -> bytes | None:
    if rest.startswith(_OF_TRUSTED):
        return _TRUSTED
    return _SECURITY if rest.startswith(_OF_SECURITY) else None


def _exchanged(listed: Sequence[bytes]) -> bool | None:
    """Whether the two namespaces are listed the wrong way round; None where nothing tells, or all contradicts."""
    told = set()
    for name in listed:
        prefix, rest = _split(name)
        if prefix in _OTHER and (own := _namespace(rest)) is not None:
            told.add(own != prefix)
    return told.pop() if len(told) == 1 else None


def _words(listed: Sequence[bytes], place: int, true: bytes) -> tuple[bytes, ...]:
    """By which names the attribute at a place in the listing can be asked for; none where each finds another."""
    prefix, rest = _split(listed[place])
    if true.startswith(_TRUSTED) and not _is_mark(rest):
        tried = [_TRUSTED]  # not to be had by ordinary users, as everywhere
    else:
        # By the number under which it is listed it is found by a squashfuse that compares as it should.
        tried = list(dict.fromkeys((prefix, _split(true)[0], _SECURITY, _USER)))
    others = {*listed} - {listed[place]}
    words = [each + rest for each in tried if _first(listed, each, rest) == place and each + rest not in others]
    if _SECURITY + rest in words and prefix + rest not in words:
        words.append(prefix + rest)  # what knows nothing by another name searches as it should
    return tuple(words)


def _is_mark(rest: bytes) -> bool:
    return rest.startswith(b"overlay.") and not rest.startswith(b"overlay.overlay.")


def _first(listed: Sequence[bytes], prefix: bytes, wanted: bytes) -> int | None:
    """The place of what is found by a name; None where the search is not to be trusted.

    A name of the same number is read into a buffer of the length of the wanted one, and compared with what was in it.
    """
    for place, name in enumerate(listed):
        same, rest = _split(name)
        if rest == wanted:
            return place
        if same == prefix and (len(rest) > len(wanted) or wanted.startswith(rest)):
            return None
    return None
