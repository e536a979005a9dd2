"""Python starts this in every process of a run under test; in the step that is meant, a fault waits."""

import os
import sys

# Of the interpreter's own words only these are there before any module runs.
_step = [word for word in sys.orig_argv if word in {"podman", "enroot", "env"}]
if "TEST_LOST_S" in os.environ:
    from rc_tasks.state.disk import locks

    # In the same proportions as they are.
    _shorter = float(os.environ["TEST_LOST_S"]) / locks._EXPIRED_S
    for _name in ("_EXPIRED_S", "_TOUCH_S", "_WATCH_S"):
        setattr(locks, _name, _shorter * getattr(locks, _name))

if "TEST_FAULT" in os.environ and "rc_tasks.steps" in sys.orig_argv and _step:
    from tests.faults.injected import arm

    arm(_step[0], sys.orig_argv[sys.orig_argv.index(_step[0]) + 1])
