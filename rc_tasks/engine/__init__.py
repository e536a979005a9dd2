"""doit: task groups, up-to-date objects, state backend, reporter, running steps.

`dodo.py` takes these names from here. Each is imported when it is asked for: commands that do not need
doit start faster without it.
"""

import importlib

_NAMES = {
    "ContentChecker": "rc_tasks.engine.backend",
    "Reporter": "rc_tasks.engine.doit.reporter",
    "task_images": "rc_tasks.engine.doit.tasks",
}


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(name)
    return getattr(importlib.import_module(_NAMES[name]), name)
