"""The Python API: mounts for a `with` block, each kept by a process of its own.

    program                         keeper (its own session)         daemon of the FUSE engine
    -------                         ------------------------         -------------------------
    mount() -- a line of JSON ----> runs `fuseunion ...` in a child --> serves
            <---- what came of it --
    reset(), diff(), stats() -----> ...
    end of the block, of the interpreter, of the process, by whatever --> unmounts, removes what it made, ends

The keeper (keeper.py) is a plain interpreter without threads. It sees the end of the program twice: the socket closes,
also when the program executes another one; and a pidfd of the program becomes readable, also when children of the
program, forked without exec, still hold the socket. PR_SET_PDEATHSIG would tell of the end of the *thread* that started
the keeper (prctl(2)).

The program itself imports nothing of the union: mount.py and talk.py are all that runs in it.
"""
