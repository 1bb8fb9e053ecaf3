"""The symlink ranch: a merged tree without FUSE and without overlayfs, made of links.

Every file of a lower is one symbolic link in MERGED, every directory a real one, every file of UPPER a private copy.
What is written, removed or made there is kept apart until it is collected: compared with what UPPER and the lowers
show, and brought into UPPER as an overlay filesystem would have written it. The merging, the whiteouts and the copies
are the core's; only the links live here.

    engine.py     what the commands see of it
    corral.py     a whole ranch: create, go on, sync, take down
    promoter.py   from links to private copies
    record/       what a ranch remembers: its phase, marks that lead to it, whose its objects are, lent permissions
    farm/         the tree of links: built, guarded, copied from, removed; the layers aside while it stands over them
    collecting/   from a changed tree to UPPER: what is new, and the single changes
"""
