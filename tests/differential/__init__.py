"""The differential test: one sequence of operations, two filesystems, one answer.

A seed makes layers (`recipes`) and a sequence of operations (`generator`). Each operation (`operations`) goes to an
oracle and to a fuseunion mount over the same layers; results and errnos must be equal after every operation, trees
after every remount and at the end (`lockstep`). Two oracles together cover everything:

- the kernel's overlayfs, for all that overlayfs does as POSIX says. What fuseunion is documented to do better (a
  rename of a directory that lower holds) is withheld from both sides, and lowers hold no hard links;
- a plain directory, a copy of the merged tree, for everything, with the improvements.

`known_differences` names every difference that is meant, with its reason. A failure is cut down to the operations
that it needs (`shrink`) and printed as a list that can be run again.
"""
