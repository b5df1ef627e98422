"""Detects that the disk with a run's log was full: then the log does not show how the run failed."""

import os
from pathlib import Path

_FULL_BYTES = 64 * 2**10  # a program's last words and their buffer


class RoomMeter:
    """Looks at the disk of a folder every now and then; `was_full` says whether it had no room at one of the looks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.was_full = False

    def look(self) -> None:
        """Take note of whether there is room; call it often while the run goes on, and once when it has ended."""
        try:
            seen = os.statvfs(self._folder)
        except OSError:
            return
        # Some blocks are kept for root on most file systems, so what others may use says nothing of its programs.
        blocks = seen.f_bfree if os.geteuid() == 0 else seen.f_bavail
        self.was_full = self.was_full or blocks * seen.f_frsize < _FULL_BYTES
