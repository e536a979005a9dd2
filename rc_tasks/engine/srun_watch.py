"""Detection of an srun that waits for ever, although its step has ended, by the lock of the image."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from rc_tasks.state.disk import locks
from rc_tasks.tools import slurm

# How often the lock is checked: each check writes a small file.
_JUDGE_S = 10.0
# How long srun may go on after its step has released the lock.
_RELEASED_S = 60.0
# How long a step may run before it takes the lock (it may clear its node first), and how often Slurm is
# asked for its run time.
_BEGIN_S = 300.0
_ASK_S = 60.0


class SrunWatch:
    """Watches the srun of one step, which never ends when slurmstepd is killed (Slurm 22.05 to 26.05).

    The step's command may end with its slurmstepd, or go on and finish. A step without the lock may
    still wait for CPUs, which only Slurm knows.
    """

    def __init__(self, lock: Path, job_id: str, task: str, done: Callable[[], bool]) -> None:
        """Watch `task`, a name in Slurm; `done` returns whether the step has written its record."""
        self._lock = lock
        self._job_id = job_id
        self._task = task
        self._done = done
        self._ask_at_s = time.monotonic() + _BEGIN_S
        # The device and inode of the lock that was read last, and whether it was our step's.
        self._read: tuple[int, int] | None = None
        self._ours = False
        self._begun = False
        self._judge_at_s = 0.0
        self._released_at_s: float | None = None
        # The last result of `srun_hangs`.
        self.hung = False

    def srun_hangs(self) -> bool:
        """Return whether srun waits for a step that has ended; called several times a second."""
        self.hung = self._srun_hangs()
        return self.hung

    def _srun_hangs(self) -> bool:
        now_s = time.monotonic()
        if self._held():
            self._released_at_s = None
            if now_s < self._judge_at_s:
                return False
            self._judge_at_s = now_s + _JUDGE_S
            return locks.expired(self._lock)
        self._begun = self._begun or self._done()
        if not self._begun:
            return self._overdue(now_s)
        if self._released_at_s is None:
            self._released_at_s = now_s
        return now_s > self._released_at_s + _RELEASED_S

    def _overdue(self, now_s: float) -> bool:
        """Return whether the step has run for `_BEGIN_S` without taking its lock."""
        if now_s < self._ask_at_s:
            return False
        self._ask_at_s = now_s + _ASK_S
        return slurm.step_time_s(self._job_id, self._task) > _BEGIN_S

    def _held(self) -> bool:
        """Return whether our step's lock exists, touched or not."""
        try:
            status = os.stat(self._lock)
        except OSError:
            self._read = None
            return False
        # A lock is touched but never rewritten, so each need be read once.
        if self._read != (status.st_dev, status.st_ino):
            holder = locks.holder(self._lock)
            self._ours = holder is not None and holder.job_id == self._job_id
            self._begun = self._begun or self._ours
            # A lock that is being created does not name its holder yet: read it again.
            if holder is None or holder.pid:
                self._read = status.st_dev, status.st_ino
        return self._ours
