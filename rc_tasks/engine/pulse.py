"""Whether a step that srun waits for still lives, seen from the lock of its image."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from rc_tasks.state.disk import locks
from rc_tasks.tools import slurm

# How often the lock is judged: that writes a small file.
_JUDGE_S = 10.0
# How long srun may go on after its step has released the lock.
_RELEASED_S = 60.0
# How long a step may run before it takes the lock, as when it first clears its node, and how often Slurm
# is asked for how long it has run.
_BEGIN_S = 300.0
_ASK_S = 60.0


class Pulse:
    """Watches one step of a job: when its slurmstepd is killed, srun never ends (Slurm 22.05 to 26.05).

    The command may end with its slurmstepd, or go on and finish. While it has not taken the lock, it may
    still wait for CPUs, which only Slurm knows.
    """

    def __init__(self, lock: Path, job_id: str, task: str, done: Callable[[], bool]) -> None:
        """`task` is the step's name in Slurm; `done` answers whether it has written its record."""
        self._lock = lock
        self._job_id = job_id
        self._task = task
        self._done = done
        self._ask_at_s = time.monotonic() + _BEGIN_S
        # The lock that was read last, and whether it was our step's.
        self._read: tuple[int, int] | None = None
        self._ours = False
        self._begun = False
        self._judge_at_s = 0.0
        self._released_at_s: float | None = None
        # Whether the answer was yes.
        self.ended = False

    def lost(self) -> bool:
        """Return whether srun waits for nothing any more; asked several times a second."""
        self.ended = self._lost()
        return self.ended

    def _lost(self) -> bool:
        now_s = time.monotonic()
        if self._held():
            self._released_at_s = None
            if now_s < self._judge_at_s:
                return False
            self._judge_at_s = now_s + _JUDGE_S
            return locks.lost(self._lock)
        self._begun = self._begun or self._done()
        if not self._begun:
            return self._overdue(now_s)
        if self._released_at_s is None:
            self._released_at_s = now_s
        return now_s > self._released_at_s + _RELEASED_S

    def _overdue(self, now_s: float) -> bool:
        """Whether Slurm has long run a step that has not even taken its lock."""
        if now_s < self._ask_at_s:
            return False
        self._ask_at_s = now_s + _ASK_S
        return slurm.step_time_s(self._job_id, self._task) > _BEGIN_S

    def _held(self) -> bool:
        """Whether our step's lock is there, touched or not."""
        try:
            found = os.stat(self._lock)
        except OSError:
            self._read = None
            return False
        # A lock is touched, and never written again.
        if self._read != (found.st_dev, found.st_ino):
            holder = locks.holder(self._lock)
            self._ours = holder is not None and holder.job_id == self._job_id
            self._begun = self._begun or self._ours
            # One that is just being made says nothing of its holder yet.
            if holder is None or holder.pid:
                self._read = found.st_dev, found.st_ino
        return self._ours
