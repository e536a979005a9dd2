"""Settings and file content of images that earlier versions may have written wrongly.

Only the images concerned are squashed again, once.
"""

import json
from collections.abc import Mapping

# An input of the squash step since the fix: how settings are written. Raise it when that changes.
SETTINGS = "settings"
_WRITTEN = "1"
# An input since steps avoid the wrong content that versions of mksquashfs write into files.
CONTENT = "content"
_AVOIDED = "1"


def squash_inputs(image_id: str) -> dict[str, str]:
    """Return the inputs of the squash step of an image, as they are recorded."""
    return {"image": image_id, SETTINGS: _WRITTEN, CONTENT: _AVOIDED}


def doubtful(inputs: Mapping[str, str], tools: Mapping[str, str]) -> str:
    """Return why files in an image may have wrong content by its record, or an empty string."""
    version = tools.get("mksquashfs", "")
    if CONTENT in inputs or not version:
        return ""
    from rc_tasks.tools import squashfs

    if not squashfs.WRONG_CONTENT.affects(version):
        return ""
    return f"mksquashfs {version} may have written wrong content into its files"


def miswritten(config: bytes) -> Mapping[str, str]:
    """Return a description of each wrong setting, by the name of an input of the squash step.

    `config` is an image configuration as in an image store; the result of a damaged one is empty.
    """
    from rc_tasks.tools import enroot

    try:
        settings = json.loads(config).get("config") or {}
        env, entrypoint = settings.get("Env") or (), settings.get("Entrypoint")
        misread = enroot.misread(env)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
    wrong = {}
    if entrypoint == [""]:
        wrong["entrypoint"] = 'ENTRYPOINT [""] was written into /etc/rc as a command'
    return wrong | {f"env/{name}": f"Enroot reads another value of ENV {name}" for name in misread}
