"""Child processes that end with their parent, and take with them what they started.

A child leads a session of its own, so Ctrl-C reaches its parent alone. A watcher in its process group waits until the
parent's end of a pipe closes, then kills the group: whatever ends the parent, SIGKILL too, leaves no process of it.
"""

from __future__ import annotations

import os
import signal


class Lifeline:
    """The parent's hold on a child's process group.

    Start the child with `start_new_session=True` and `pass_fds=(lifeline.fd,)`, then call `started`. The child calls
    `watch(fd)` before anything else.
    """

    def __init__(self) -> None:
        self.fd, self._held = os.pipe()
        self._group = 0

    def started(self, pid: int) -> None:
        """The child is there; from now on it alone holds the far end of the pipe."""
        self._group = pid
        os.close(self.fd)
        self.fd = -1

    def kill(self) -> None:
        """Ends the child, its watcher and every process of the group; safe to call again."""
        group, self._group = self._group, 0  # the number may be another group's later
        if group:
            try:
                os.killpg(group, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
                pass

    def close(self) -> None:
        """`kill`, and the pipe is closed; safe to call again."""
        self.kill()
        for descriptor in (self.fd, self._held):
            if descriptor >= 0:
                os.close(descriptor)
        self.fd = self._held = -1


def watch(lifeline: int) -> int:
    """In a child, before any thread or library is there: starts its watcher, and returns that process's id."""
    if (watcher := os.fork()) == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.closerange(0, lifeline)
        os.closerange(lifeline + 1, 1024)
        os.read(lifeline, 1)  # returns when the parent is gone or lets go
        os.killpg(0, signal.SIGKILL)
    os.close(lifeline)
    return watcher
