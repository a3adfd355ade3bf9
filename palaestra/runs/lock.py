"""A file lock that the operating system releases when its process dies, by SIGKILL too."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import msvcrt

    # A locked byte cannot be read by others, so it lies far behind the pid that the file holds.
    _PLACE = 1 << 20

    def lock(descriptor: int) -> bool:
        """Take the lock without waiting; False when somebody else has it."""
        os.lseek(descriptor, _PLACE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    # flock, not lockf: POSIX record locks are lost when the process closes any descriptor of the file.
    # A forked child shares the lock, so an orphaned environment worker keeps it until it notices and exits.

    def lock(descriptor: int) -> bool:
        """Take the lock without waiting; False when somebody else has it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
