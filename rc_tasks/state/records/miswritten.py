"""What earlier versions may have written wrongly: settings of an image, and the content of files.

Images of which that is so are squashed again once; no others are.
"""

import json
from collections.abc import Mapping

# An input of the squash step since then: how settings are written. Raised when that changes.
SETTINGS = "settings"
_WRITTEN = "1"
# Another one, since steps avoid what versions of mksquashfs write into files.
CONTENT = "content"
_AVOIDED = "1"


def squash_inputs(image_id: str) -> dict[str, str]:
    """The inputs of the squash step of an image, as they are recorded."""
    return {"image": image_id, SETTINGS: _WRITTEN, CONTENT: _AVOIDED}


def doubtful(inputs: Mapping[str, str], tools: Mapping[str, str]) -> str:
    """Why files in an image may have wrong content, by its record; an empty string if they have not."""
    version = tools.get("mksquashfs", "")
    if CONTENT in inputs or not version:
        return ""
    from rc_tasks.tools import squashfs

    if not squashfs.WRONG_CONTENT.affects(version):
        return ""
    return f"mksquashfs {version} may have written wrong content into its files"


def miswritten(config: bytes) -> Mapping[str, str]:
    """Return what was wrong, in words, by the name of an input of the squash step.

    `config` is an image configuration as in an image store; one that is damaged has none.
    """
    from rc_tasks.tools import enroot

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
