"""The `-o` grammar, the fate of every word, and how operands get their meaning."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuseunion.cli.arguments import parse
from fuseunion.errors import ExitCode, UserError
from fuseunion.mounting.options import Form, Options, XattrPermissions
from fuseunion.mounting.options.grammar import escape, split_words
from fuseunion.mounting.options.values import parse_id_map, parse_lowers
from fuseunion.mounting.options.vocabulary import SILENT

PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=12)


def mount_program(words: str, *operands: str) -> Options:
    return parse(["-o", words, *(operands or ("/m",))])


# -- the grammar -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (",,", []),
        ("a,b=c", [("a", None), ("b", "c")]),
        ("workdir=W,,volatile", [("workdir", "W"), ("volatile", None)]),
        ("workdir=W,", [("workdir", "W")]),
        (r"a=x\,y,b", [("a", r"x\,y"), ("b", None)]),
        ('context="s0:c1,c2",b', [("context", "s0:c1,c2"), ("b", None)]),
        ('context="a\\"b,c"', [("context", r"a\"b,c")]),
        ('a="open,b', [("a", '"open'), ("b", None)]),
        ('a="x"y,b', [("a", '"x"y'), ("b", None)]),
        ("a=", [("a", "")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=b\\", [("a", "b\\")]),
    ],
)
def test_words(text: str, words: list[tuple[str, str | None]]) -> None:
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("text", "lowers"),
    [
        ("a", ("a",)),
        ("a:b:c", ("a", "b", "c")),
        (r"a\:b:c", ("a:b", "c")),
        (r"a\\:b", ("a\\", "b")),
        (r"/home/DOMAIN\user", (r"/home/DOMAIN\user",)),
        (r"a\,b", ("a,b",)),
    ],
)
def test_lowers(text: str, lowers: tuple[str, ...]) -> None:
    assert parse_lowers(text) == lowers


@pytest.mark.parametrize("text", ["", ":", "a:", ":a", "a::b"])
def test_empty_lowers_are_a_mistake_of_a_person_and_normal_from_a_program(text: str) -> None:
    with pytest.raises(UserError, match="empty directory name"):
        parse_lowers(text)
    assert parse_lowers(text, skip_empty=True) == tuple(part for part in text.split(":") if part)


@given(st.lists(PATHS, min_size=1, max_size=5))
def test_every_path_survives_escaping(paths: list[str]) -> None:
    lowers = ":".join(escape(path) for path in paths)
    assert parse_lowers(lowers) == tuple(paths)
    assert mount_program(f"lowerdir={lowers},upperdir={escape(paths[0])},noacl") == Options(
        target="/m", lowers=tuple(paths), upper=paths[0], form=Form.MOUNT_PROGRAM, acl=False
    )


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        mount_program(text)


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("allow_other", "allow_other", True),
        ("allow_root", "allow_root", True),
        ("nosuid", "suid", False),
        ("suid", "suid", True),
        ("dev", "dev", True),
        ("noexec", "exec", False),
        ("static_nlink", "static_nlink", True),
        ("volatile", "volatile", True),
        ("fsync=0", "fsync", False),
        ("fsync=1", "fsync", True),
        ("fsync=volatile", "volatile", True),
        ("noacl", "acl", False),
        ("noxattrs=1", "xattrs", False),
        ("noxattrs=0", "xattrs", True),
        ("timeout=0", "timeout", 0.0),
        ("timeout=1.5", "timeout", 1.5),
        ("timeout=1e9", "timeout", 1e9),
        ("xattr_permissions=2", "xattr_permissions", XattrPermissions.CONTAINERS),
        ("xattr_permissions=1", "xattr_permissions", XattrPermissions.PRIVILEGED),
        ("squash_to_uid=7", "squash_uid", 7),
        ("uidmapping=:0:1:1055:1055:0:1", "uid_map", ((0, 1, 1055), (1055, 0, 1))),
        ("gidmapping=0:1:1::5:6:7", "gid_map", ((0, 1, 1), (5, 6, 7))),
        ("redirect_dir=on", "redirect_dir", True),
        ("redirect_dir=on,redirect_dir=follow", "redirect_dir", False),
        ("redirect_dir=off", "redirect_dir", False),
        ("metacopy=on", "metacopy", True),
        ("metacopy=on,metacopy=off", "metacopy", False),
        ("redirect_dir=nofollow", "redirect_dir", False),
        ("workdir=/w", "work", "/w"),
    ],
)
@pytest.mark.parametrize("lowers", ["-o", "operand"])
def test_word_sets_its_field_in_both_forms(word: str, field: str, value: object, lowers: str) -> None:
    if lowers == "-o":
        options = mount_program(f"lowerdir=/l,upperdir=/u,{word}")
    else:
        options = parse(["-o", word, "/l", "/u", "/m"])
    assert getattr(options, field) == value
    assert options.ignored == ()


@pytest.mark.parametrize("word", ["noatime", "norelatime", "nostrictatime", "nolazytime"])
def test_no_access_times_is_what_is_so(word: str) -> None:
    assert parse(["-o", word, "/l", "/u", "/m"]) == Options(target="/m", lowers=("/l",), upper="/u")
    assert mount_program(f"lowerdir=/l,{word}").ignored == ()


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("atime", ("atime",)),
        ("relatime,lazytime", ("relatime", "lazytime")),
        ("relatime,strictatime", ("strictatime",)),
        ("strictatime,relatime", ("relatime",)),
        ("atime,nodiratime", ("atime", "nodiratime")),
        ("nodiratime,diratime", ("diratime",)),
        ("strictatime,nostrictatime", ()),
        ("atime,lazytime,noatime", ()),
        ("noatime,relatime", ("relatime",)),
    ],
)
def test_access_times_of_a_person(words: str, left: tuple[str, ...]) -> None:
    """The last word wins."""
    options = parse(["-o", words, "/l", "/u", "/m"])
    assert options.access_times == left
    assert options.wants_access_times == ", ".join(word for word in left if word != "nodiratime")


@pytest.mark.parametrize("word", ["atime", "relatime", "strictatime", "diratime", "lazytime"])
def test_a_mount_program_says_that_there_are_no_access_times(word: str) -> None:
    options = mount_program(f"lowerdir=/l,{word}")
    assert (options.ignored, options.access_times) == ((word,), ())


def test_specific_squash_beats_squash_to_root_in_any_order() -> None:
    for words in ("squash_to_root,squash_to_uid=5", "squash_to_uid=5,squash_to_root"):
        options = mount_program(f"lowerdir=/l,{words}")
        assert (options.squash_uid, options.squash_gid) == (5, 0)


@pytest.mark.parametrize("word", sorted(SILENT))
def test_silent_words_are_accepted_with_and_without_a_value(word: str) -> None:
    for text in (word, f"{word}=value"):
        assert parse(["-o", text, "/l", "/u", "/m"]) == Options(target="/m", lowers=("/l",), upper="/u")


@pytest.mark.parametrize(
    "word",
    [
        "bogus",
        "bogus=1",
        "sync",
        "dirsync",
        "atime=1",
        "redirect_dir=maybe",
        "metacopy=maybe",
        "timeout",
        "plugins=x",
        "-x",
    ],
)
def test_what_is_not_understood(word: str) -> None:
    assert mount_program(f"lowerdir=/l,{word},noacl").ignored == (word,)
    with pytest.raises(UserError, match=word):
        parse(["-o", word, "/l", "/u", "/m"])


@pytest.mark.parametrize(
    "word",
    [
        "timeout=soon",
        "timeout=-1",
        "timeout=nan",
        "fsync=2",
        "noxattrs=yes",
        "squash_to_uid=-1",
        "squash_to_uid=4294967295",
        "uidmapping=1:2",
        "uidmapping=",
        "uidmapping=a:b:c",
        "uidmapping=٣:0:1",
        "xattr_permissions=3",
        "upperdir=",
        "workdir=",
        "upperdir",
        "workdir",
        "lowerdir",
        "remount",
        "remount,ro",
        "uperdir=/u",
        "upperdirs=/u",
        "upper=/u",
        "upper_dir=/u",
        "UPPERDIR=/u",
        "wokrdir=/w",
        "work-dir=/w",
        "loverdir=/l2",
        "lowerdir+=/l2",
    ],
)
def test_a_bad_value_is_refused_in_both_forms(word: str) -> None:
    for arguments in (["-o", f"lowerdir=/l,{word}", "/m"], ["-o", word, "/l", "/u", "/m"]):
        with pytest.raises(UserError) as raised:
            parse(arguments)
        assert raised.value.exit_code is ExitCode.USAGE
        assert re.split("[=,]", word)[0] in raised.value.message


@pytest.mark.parametrize(
    ("word", "meant"), [("uperdir=/u", "upperdir="), ("wrokdir", "workdir="), ("lowerdir+=/l", "lowerdir=")]
)
def test_a_misspelt_layer_is_never_ignored(word: str, meant: str) -> None:
    """Without its upper the mount would be read-only."""
    for arguments in (["-o", f"lowerdir=/l,{word}", "/m"], ["-o", word, "/l", "/u", "/m"]):
        with pytest.raises(UserError) as raised:
            parse(arguments)
        assert raised.value.message == f"unknown option '{word.partition('=')[0]}'; did you mean {meant} ?"


@pytest.mark.parametrize("word", [*sorted(SILENT), "writeback=1", "frobnicate", "datadir=/d", "worker", "directory=/d"])
def test_other_words_are_no_misspelt_layers(word: str) -> None:
    assert mount_program(f"lowerdir=/l,{word}").lowers == ("/l",)


def test_id_map_counts_its_numbers() -> None:
    with pytest.raises(UserError, match="found 4 numbers"):
        parse_id_map("0:1:2:3", "uidmapping")


# -- operands and forms ------------------------------------------------------------------------------------------------

PODMAN = [
    "lowerdir=/c/empty,upperdir=/c/diff,workdir=/c/work,,volatile",
    "lowerdir=/l/A:/l/B,upperdir=/c/diff,workdir=/c/work,",
    "lowerdir=/l/A,upperdir=/c/diff,workdir=/c/work,noacl,fsync=0,volatile",
    "lowerdir=/l/A,upperdir=/c/diff,workdir=/c/work,,volatile,uidmapping=:0:1:1055:1055:0:1:1056:1056:64481,"
    "gidmapping=:0:1:1055:1055:0:1",
    "lowerdir=/l/A,upperdir=/c/diff,workdir=/c/work,,volatile,xattr_permissions=2",
    "lowerdir=/path/rootfs,upperdir=/c/upper,workdir=/c/work,private",
    'lowerdir=/l/A,upperdir=/c/diff,workdir=/c/work,context="system_u:object_r:container_file_t:s0:c1,c2"',
]


@pytest.mark.parametrize("words", PODMAN)
def test_lines_observed_from_podman_and_buildah(words: str) -> None:
    options = mount_program(words, "/c/merged")
    assert options.form is Form.MOUNT_PROGRAM
    assert options.upper in ("/c/diff", "/c/upper")
    assert options.work == "/c/work"
    assert not options.read_only
    assert options.ignored == ()


def test_without_upper_a_mount_program_mounts_read_only() -> None:
    options = mount_program("lowerdir=/f/diff:/f/empty", "/f/merged")
    assert options.read_only
    assert options.upper is None


def test_apptainer() -> None:
    options = parse(["-f", "-o", "allow_other,ro,lowerdir=/a:/b,noacl", "/dev/fd/3"])
    assert (options.form, options.foreground, options.read_only) == (Form.MOUNT_PROGRAM, True, True)
    assert options.target == "/dev/fd/3"


@pytest.mark.parametrize("source", ["overlay", "none", "fuseunion"])
def test_mount_fuse3_passes_a_source_first(source: str) -> None:
    arguments = [source, "/t", "-o", "workdir=/w", "-o", "upperdir=/u", "-o", "lowerdir=/l", "-o", "writeback=0"]
    options = parse(arguments)
    assert (options.form, options.target, options.upper) == (Form.MOUNT_PROGRAM, "/t", "/u")
    assert parse([source, "/t", "-o", "lowerdir=/l"]).read_only


def test_any_other_operand_beside_lowerdir_is_the_upper() -> None:
    options = parse(["-o", "lowerdir=/l", "changes", "/m"])
    assert (options.form, options.upper, options.read_only) == (Form.PLAIN, "changes", False)


def test_fstab_source_can_be_the_lower() -> None:
    options = parse(["/l", "/m", "-o", "upperdir=/u,rw,dev,suid,_netdev,x-systemd.automount"])
    assert (options.lowers, options.upper, options.target) == (("/l",), "/u", "/m")


def test_the_name_fuse_overlayfs_is_always_a_mount_program() -> None:
    options = parse(["-o", "bogus,lowerdir=/l", "--squash", "/m"], "/usr/bin/fuse-overlayfs")
    assert options.form is Form.MOUNT_PROGRAM
    assert options.ignored == ("bogus", "--squash")


def test_plain_forms() -> None:
    assert parse(["/a:/b", "/u", "/m"]) == Options(target="/m", lowers=("/a", "/b"), upper="/u")
    assert parse(["--read-only", "/a", "/m"]) == Options(target="/m", lowers=("/a",), read_only=True)
    assert parse(["/a", "/m", "--ephemeral", "--size=64m"]) == Options(
        target="/m", lowers=("/a",), ephemeral=True, size="64m"
    )
    assert parse(["--work", "/w", "/a", "/u", "--", "-m"]).target == "-m"
    assert parse(["-ovolatile,ro", "/a", "/m"]).volatile
    maps = parse(["--uid-map", "0:5:1", "--uid-map=1:9:1", "--gid-map", "0:7:1", "/a", "/u", "/m"])
    assert (maps.uid_map, maps.gid_map) == (((0, 5, 1), (1, 9, 1)), ((0, 7, 1),))
    assert parse(["--fakeroot", "/a", "/u", "/m"]).xattr_permissions is XattrPermissions.CONTAINERS


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no directories given"),
        (["/m"], "'/m' alone is not enough"),
        (["/l", "/m"], "no UPPER"),
        (["/l", "/u", "/m", "/x"], "too many directories: '/l', '/u', '/m', '/x'"),
        (["--read-only", "/l", "/u", "/m", "/x"], "too many directories: '/l', '/u', '/m', '/x'"),
        (["--ephemeral", "/l", "/u", "/m"], "too many directories: '/l', '/u', '/m'"),
        (["--volatile", "-o", "lowerdir=/l,upperdir=/u", "/x", "/m"], "too many directories: '/x', '/m'"),
        (["-o", "lowerdir=", "/m"], "names no directory"),
        (["-o", "lowerdir=:", "/m"], "names no directory"),
        (["--frobnicate", "/l", "/u", "/m"], "--frobnicate"),
        (["-x", "/l", "/u", "/m"], "-x"),
        (["--work"], "--work needs a value"),
        (["--size", "1g", "/l", "/u", "/m"], "--size"),
        (["--ephemeral", "--size", "many", "/l", "/m"], "--size many"),
        (["--ephemeral", "--size", "0", "/l", "/m"], "--size 0"),
        (["--ephemeral", "-o", "upperdir=/u", "/l", "/m"], "--ephemeral"),
        (["--ephemeral", "--read-only", "/l", "/m"], "--ephemeral"),
        (["--ephemeral", "--work", "/w", "/l", "/m"], "--ephemeral"),
        (["/l", "/u", ""], "MERGED is empty"),
        ([""], "MERGED is empty"),
        (["/l", "", "/m"], "UPPER is empty; is a variable not set?"),
        (["", "/u", "/m"], "LOWER is empty"),
        (["", "/m"], "LOWER is empty"),
        (["--read-only", "", "/m"], "LOWER is empty"),
        (["--ephemeral", "", "/m"], "LOWER is empty"),
        (["-o", "upperdir=/u", "", "/m"], "LOWER is empty"),
        (["-o", "lowerdir=/l", "", "/m"], "UPPER is empty"),
        (["-o", "lowerdir=/l,upperdir=/u", "", "/m"], "SOURCE is empty"),
        (["-o", "lowerdir=/l,upperdir=/u", ""], "MERGED is empty"),
        (["--work", "", "/l", "/u", "/m"], "the value of --work is empty"),
        (["--work=", "/l", "/u", "/m"], "the value of --work is empty"),
        (["--log-file", "", "/l", "/u", "/m"], "the value of --log-file is empty"),
        (["--copy=", "/l", "/u", "/m"], "the value of --copy is empty"),
        (["--size", "", "--ephemeral", "/l", "/m"], "the value of --size is empty"),
        (["-o", "lowerdir=/l,workdir=/w", "/m"], "work directory '/w' is given without an UPPER"),
        (["overlay", "/m", "-o", "lowerdir=/l,workdir=/w"], "work directory '/w' is given without an UPPER"),
        (["--read-only", "--work", "/w", "/l", "/m"], "work directory '/w' is given without an UPPER"),
        (["--read-only", "-o", "rw", "/l", "/u", "/m"], "--read-only and -o rw contradict"),
        (["--ephemeral", "-o", "ro", "/l", "/m"], "--ephemeral"),
        (["-o", "lowerdir=/a", "-o", "lowerdir=/b", "/u", "/m"], "lowerdir is given twice, the second time as '/b'"),
        (["-o", "upperdir=/a,upperdir=/b", "/l", "/m"], "upperdir is given twice"),
        (["--work", "/a", "-o", "workdir=/b", "/l", "/u", "/m"], "workdir is given twice"),
    ],
)
def test_usage_errors(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError) as raised:
        parse(arguments)
    assert raised.value.exit_code is ExitCode.USAGE
    assert says in raised.value.message
    assert "\n" not in raised.value.message
