"""The benchmark: fuseunion beside its rivals, in one run.

    python -m bench [ROW...] [--scale small|full] [--json FILE]      # `make bench` is `python -m bench`
    python -m bench --list
    python -m bench --report FILE                                    # write docs/performance.md from a run

The rules, which every number follows:

- Side by side: each round of a row runs every contestant once, in an order that turns from round to round. What other
  work on the machine does to one, it does to all. Only numbers of one run are compared.
- Each sample has a fresh upper, a fresh mount and a daemon of its own; the lower is made once for a row and shared.
- The measured process reports its own time (bench/loops.c): starting it does not count where it does not belong.
- What was done is counted too: a contestant that found other names, lines or bytes than the others was not fast but
  wrong, and its times do not count.
- What cannot be run is reported with the reason, never left out.

Where it happens: `__main__` starts, for each medium (tmpfs, disk) and player (root, an ordinary user in a user
namespace), one process in mount and process namespaces of its own (`place`), which plays the rows (`play`) on stages
(`stage`) with each contestant (`contestants`). Daemons and mounts end with the namespaces, whatever happens. `report`
makes the table, the chart and the document from the results.

A row is a function in `rows`: it says how the lower is made, does the measured work, and yields measurements.
"""
