"""`edf.entrypoint = "auto"`: what the podman step finds out of an ENTRYPOINT, and who is told."""

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from rc_tasks.model.edf.entrypoint import Behaviour, note
from rc_tasks.steps.podman import entrypoint
from rc_tasks.tools import command
from rc_tasks.tools.podman import Podman
from tests.support.checkouts import write_checkout
from tests.support.containers import working_runtime
from tests.support.family import Family
from tests.support.images import BUSYBOX, Layer, load
from tests.support.storage import own_storage
from tests.support.tools import require_tools

pytestmark = pytest.mark.podman

BASE = (
    "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n'
)


def containers(podman: Podman) -> str:
    return command.capture(podman.command("container", "ls", "--all", "--quiet")).stdout


def script(text: str) -> str:
    return f'FROM base\nENTRYPOINT ["sh", "-c", "{text}", "entrypoint"]\n'


FILES = {
    "base/Dockerfile": BASE,
    "projects/becomes:1/Dockerfile": script('echo banner; exec \\"$@\\"'),
    "projects/inherits:1/Dockerfile": "FROM becomes:1\nRUN true\n",
    "projects/starts:1/Dockerfile": script('\\"$@\\"; exit $?'),
    "projects/ignores:1/Dockerfile": script("echo hello, $*"),
    "projects/fails:1/Dockerfile": script("echo no licence server >&2; exit 3"),
    # A shell splits the words of the command anew.
    "projects/joins:1/Dockerfile": script('exec sh -c \\"$*\\"'),
    "projects/chosen:1/Dockerfile": script("echo hello, $*"),
    "projects/chosen:1/project.toml": "edf.entrypoint = true\n",
}
NEEDS = 'Pyxis and the Container Engine start only one that becomes its command, as by `exec "$@"`.'
NOTES = f"""\
note: becomes:1, inherits:1: edf.entrypoint = "auto" means true here: jobs begin with their ENTRYPOINT;
`entrypoint = false` under [edf] in their project.toml turns that off
note: starts:1: edf.entrypoint = "auto" means false here,
as its ENTRYPOINT starts the command that it is given as a child.
{NEEDS}
`entrypoint = true` under [edf] in its project.toml is for all other launchers
note: fails:1, ignores:1, joins:1: edf.entrypoint = "auto" means true here,
though their ENTRYPOINT did not start the command that it was given where it was built.
{NEEDS}
`doit local fails:1 -- true` tries it; `entrypoint = false` under [edf] in their
project.toml turns it off
"""


def test_an_entrypoint_is_tried_once_and_told_once(tmp_path: Path) -> None:
    require_tools("podman", "mksquashfs", "unsquashfs", "busybox")
    root = write_checkout(tmp_path / "a checkout", FILES)
    shutil.copy(BUSYBOX, root / "base/busybox")
    with own_storage() as (podman, environment):
        environment |= {
            "RC_RUNNER": "local",
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_RUNTIME": working_runtime(podman, tmp_path / "rootfs"),
        }
        family = Family(root, podman, environment)
        told = family.doit()
        assert NOTES in told, told
        said = {
            name: line
            for name in (
                "base",
                "becomes:1",
                "inherits:1",
                "starts:1",
                "ignores:1",
                "joins:1",
                "fails:1",
                "chosen:1",
            )
            for line in (family.directory(name) / "env.toml").read_text().splitlines()
            if line.startswith("entrypoint")
        }
        assert said == {
            "base": "entrypoint = false",
            "becomes:1": "entrypoint = true",
            "inherits:1": "entrypoint = true",
            "starts:1": "entrypoint = false",
            "ignores:1": "entrypoint = true",
            "joins:1": "entrypoint = true",
            "fails:1": "entrypoint = true",
            "chosen:1": "entrypoint = true",
        }
        # Another image with the same ENTRYPOINT is no news; another ENTRYPOINT is.
        family.write(
            "projects/becomes:1/Dockerfile", FILES["projects/becomes:1/Dockerfile"] + "RUN true\n"
        )
        family.write("projects/starts:1/Dockerfile", script("exit 4"))
        told = family.doit()
        assert "becomes:1, inherits:1" not in told, told
        assert 'note: starts:1: edf.entrypoint = "auto" means true here,\nthough its' in told, told
        assert family.doit().startswith("8 images: 8 fresh")
        assert containers(podman) == ""


def test_an_entrypoint_that_could_not_be_started_leads_to_the_log() -> None:
    assert note(Behaviour.UNKNOWN, ["a:1"]) == (
        'a:1: edf.entrypoint = "auto" means true here,\n'
        "though its ENTRYPOINT could not be started where it was built.\n"
        f"{NEEDS}\n"
        "`doit log a:1 podman` shows why; `entrypoint = false` under [edf] in its\n"
        "project.toml turns it off"
    )


@pytest.mark.parametrize(
    ("text", "behaviour"),
    [
        pytest.param("exec sleep 1000", Behaviour.ENDED, id="never ends"),
        pytest.param("yes", Behaviour.ENDED, id="prints without end"),
        pytest.param('yes | head -c 9999999; exec "$@"', Behaviour.BECOMES, id="prints much before"),
        pytest.param("exec no-such-program", Behaviour.UNKNOWN, id="is not there"),
    ],
)
def test_an_entrypoint_that_does_not_end(
    text: str,
    behaviour: Behaviour,
    podman_storage: Podman,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(entrypoint, "_LIMIT_S", 5)
    # What users have set does not change what is found out.
    settings = tmp_path / "containers.conf"
    settings.write_text('[containers]\npidns = "host"\ninit = true\n')
    monkeypatch.setenv("CONTAINERS_CONF", str(settings))
    layer = Layer().busybox()
    for applet in ("sleep", "yes", "head"):
        layer.symlink(f"bin/{applet}", "busybox")
    config = {"Env": ["PATH=/bin"], "Entrypoint": ["/bin/sh", "-c", text, "entrypoint"]}
    for name in ("dev", "proc", "sys", "etc", "tmp", "run", "var"):
        layer.directory(name)
    image_id = load(podman_storage, tmp_path / "layout", config, layer)
    engine = replace(podman_storage, runtime=working_runtime(podman_storage, tmp_path / "rootfs"))
    assert entrypoint.tried(engine, engine.inspect(image_id)) is behaviour
    assert containers(engine) == ""
