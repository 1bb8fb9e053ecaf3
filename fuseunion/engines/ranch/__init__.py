"""The symlink ranch: a merged tree without FUSE and without overlayfs, made of links.

The names come from symlink farms, as GNU Stow and Conda make them:

    farm     the tree of links: every file of a lower is a symbolic link, every directory a real one, every file of
             UPPER a private copy. Where mounts are allowed it lies beside UPPER and is mounted over MERGED, else MERGED
             itself is the farm.
    ranch    a farm with all that belongs to it: the layers that its links lead to, which are reachable aside, in a
             directory beside UPPER, even where MERGED lies over them; and a record there, from which another process,
             or the next boot, can go on.
    corral   what keeps the ranch together: it makes a ranch, goes on with one, collects from it and takes it down.

What is written, removed or made in the farm is kept there until it is collected: compared with what UPPER and the
lowers show, and brought into UPPER as an overlay filesystem would have written it. The merging, the whiteouts and the
copies are the union's (core/union.py); only the links are made here.

    engine.py     what the commands see of it
    corral.py     a whole ranch, in the order of its steps: create, go on, sync, take down
    making.py     the steps: the parts of a ranch put in place, and taken away
    view.py       what a ranch shows, opened
    promoter.py   from links to private copies, on request
    descend.py    going through a deep tree, one generator for each directory
    record/       what is kept beside UPPER: the record, marks that lead to it, who made the farm, lent permissions
    farm/         the tree of links: what each object becomes, guarded, copied, compared; the layers aside
    collecting/   from a changed tree to UPPER: what is new, what is one file, and the single changes
"""
