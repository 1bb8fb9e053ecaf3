"""The symlink ranch: a merged tree without FUSE and without overlayfs, made of links.

Every file of a lower is one symbolic link in MERGED, every directory a real one, every file of UPPER a private copy.
What is written, removed or made there is kept apart until it is collected: compared with what UPPER and the lowers
show, and brought into UPPER as an overlay filesystem would have written it. The merging, the whiteouts and the copies
are the core's; only the links live here.

    state.py      what is known of a ranch beside UPPER, and its phases
    marker.py     how MERGED leads to it
    aside.py      the layers, reachable while the ranch stands over them
    links.py      the text of a link, made and read, and what it stands for
    owners.py     whose the objects of a ranch are, and whether somebody changed that
    private.py    copies of files, and whether one still equals what it was made from
    guard.py      whether the user could change a lower through its links
    build.py      from a union to a tree of links
    promote.py    from links to private copies
    collect.py    from a changed tree to UPPER
    compare.py    whether there is anything to collect
    several.py    objects with several names
    ledger.py     permissions that collecting lends itself in a farm
    publish.py    the single changes of UPPER
    dismantle.py  removing a tree of links
    corral.py     a whole ranch: create, go on, sync, take down
"""
