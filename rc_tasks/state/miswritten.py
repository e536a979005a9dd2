"""Settings of an image that earlier versions wrote wrongly into /etc/rc and /etc/environment.

Images that have such settings are squashed again once; no others are.
"""

import json
from collections.abc import Mapping

from rc_tasks.tools import enroot

# The value of these parts in the records of images that were squashed since.
RIGHT = "right"


def miswritten(config: bytes) -> Mapping[str, str]:
    """Return what was wrong, in words, by the name of an input of the squash step.

    `config` is an image configuration as in an image store; one that is damaged has none.
    """
    try:
        settings = json.loads(config).get("config") or {}
        env, entrypoint = settings.get("Env") or (), settings.get("Entrypoint")
        lost = enroot.lost(env)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
    wrong = {}
    if entrypoint == [""]:
        wrong["entrypoint"] = 'ENTRYPOINT [""] was written into /etc/rc as a command'
    return wrong | {f"env/{name}": f"Enroot reads another value of ENV {name}" for name in lost}
