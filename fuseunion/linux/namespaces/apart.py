"""A process that serves a mount without keeping the mount namespace of that mount alive.

A mount ends with the last process of its mount namespace (mount_namespaces(7)). The process that serves it must not be
that one, or `unshare --map-root-user --mount` leaves a mount behind that nobody can see and nobody can unmount. So it
goes to a mount namespace of its own. That begins as a copy, with another mount of everything, ours and others': it
would keep all of them busy. So everything is taken out of it again.

What is left is /proc, through which descriptors are opened again. Everything else it reaches by descriptors that it has
already: they keep a mount each, and no namespace. For an unmount `Namespace.enter_and` goes back, with the help of any
process that is still there.

Nobody waits and nothing is polled: the kernel tells the end of a FUSE mount through /dev/fuse.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from fuseunion.linux import namespaces, syscalls
from fuseunion.linux.os_error import os_error
from fuseunion.linux.proc import processes

_ROOT = b"/dev"
"""Where the new root is mounted for a moment, in the own namespace: any directory that is there, but /proc."""


def is_private() -> bool:
    """Whether this mount namespace can end before the machine, or the container, does.

    The first process of a pid namespace ends last. Where it may not be looked at, it is somebody else's.
    """
    try:
        return processes.mount_namespace() != processes.mount_namespace(1)
    except PermissionError:
        return True
    except OSError:
        return False  # no /proc: there are no processes to be found again either


class Namespace:
    """The mount namespace in which a process began.

    Attributes:
        left: it is elsewhere now.
    """

    def __init__(self) -> None:
        self.left = False
        self._name = ""

    def leave(self) -> None:
        """Go to a mount namespace that holds /proc alone, where this one is private; stay where that is not allowed.

        Precondition: the process has one thread, and needs no path any more but in /proc.
        """
        if not is_private():
            return
        import logging  # the daemon has it; umount, which imports this module, does without

        log = logging.getLogger("fuseunion.apart")
        self._name = processes.mount_namespace()
        here = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            try:
                _empty()
                self.left = True
            except OSError as error:
                log.info("the daemon stays in its mount namespace, and the mount with it: %s", error.strerror)
                syscalls.setns(here, syscalls.CLONE_NEWNS)
                os.fchdir(root)
                os.chroot(".")
        except OSError as error:
            # Not for an ordinary user, whose mount lies in a namespace of others.
            log.debug("no mount namespace of its own: %s", error)
        finally:
            os.close(here)
            os.close(root)

    def enter_and(self, do: Callable[[], None]) -> None:
        """Do something there, in a child.

        Args:
            do: changes nothing of this process, and raises nothing but OSError.

        Raises:
            OSError: what `do` raised; ENOENT where nobody is left there.
        """
        entrance = self._entrance()
        try:
            child = os.fork()
            if child == 0:
                code = errno.EIO
                try:
                    syscalls.setns(entrance, syscalls.CLONE_NEWNS)
                    do()
                    code = 0
                except OSError as error:
                    code = error.errno or errno.EIO
                finally:
                    os._exit(code)
        finally:
            os.close(entrance)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise os_error(code if code > 0 else errno.EIO)

    def _entrance(self) -> int:
        for pid in processes.process_ids():
            try:
                if processes.mount_namespace(pid) == self._name:
                    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                    # The number may be another process's meanwhile.
                    if f"mnt:[{os.fstat(fd).st_ino}]" == self._name:
                        return fd
                    os.close(fd)
            except OSError:
                continue  # ended, or not ours to look at
        raise os_error(errno.ENOENT)


def _empty() -> None:
    """Take every mount but /proc out of this namespace, which is a copy; the original keeps them."""
    namespaces.keep_mounts_private()
    syscalls.mount(b"none", _ROOT, b"tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, b"mode=0555,size=4k")
    os.mkdir(_ROOT + b"/proc", 0o555)
    # With what lies over parts of it, which may not be taken off.
    syscalls.mount(b"/proc", _ROOT + b"/proc", b"", syscalls.MS_BIND | syscalls.MS_REC, b"")
    os.chdir(_ROOT)
    # The old root comes to lie over the new one, and goes from there (pivot_root(2), "pivot_root(".", ".")").
    syscalls.pivot_root(b".", b".")
    syscalls.umount2(b".", syscalls.MNT_DETACH)
    os.chdir("/")
