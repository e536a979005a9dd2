"""Builds on nodes where bases are mounted from the store instead of loaded."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rc_tasks.tools import command
from rc_tasks.tools.command import Command
from tests.integration.test_sources import Site
from tests.support.checkouts import write_checkout
from tests.support.doit import DOIT
from tests.support.images import BUSYBOX
from tests.support.registry import serving
from tests.support.storage import remove_storage
from tests.support.tools import require_tools
from tests.support.user_jobs import Jobs, jobs_of_a_user

pytestmark = pytest.mark.podman

# How long a build may take to come to its RUN, and what was killed to be gone, on a busy machine.
PATIENCE_S = 60.0
# What RUN does when it is killed.
LONG_S = "321.9"
BASE = """\
FROM scratch
COPY rootfs/ /
ENV PATH=/bin
RUN mkdir -p /data/old /gone /kept; seq 1 200000 > /data/old/numbers; echo a > /gone/a; echo k > /kept/k
RUN rm -r /data /gone; mkdir /data; echo new > /data/new
ONBUILD RUN echo triggered > /triggered
"""
CHILD = """\
FROM base
RUN ls /data /kept > /seen; echo child > /child
COPY --from=base /data/new /copied
RUN --mount=type=bind,from=base,target=/m cat /m/kept/k > /from-mount
"""
# As many as podman itself can mount, with the two that `more` adds.
MOST_LAYERS = 124
MANY = {
    "many": "FROM FAR\nRUN echo many > /many\n",
    "more": """\
FROM many
RUN cat /layer-9 > /seen
RUN --mount=type=bind,from=many,target=/m cat /m/many > /from-mount
""",
}


def write_programs(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "busybox").write_bytes(BUSYBOX.read_bytes())
    (directory / "busybox").chmod(0o755)
    for applet in ("sh", "cat", "ls", "mkdir", "rm", "seq", "sleep"):
        (directory / applet).symlink_to("busybox")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A checkout with a base and a child; every node mounts."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts layers")
    require_tools("podman", "skopeo", "mksquashfs", "unsquashfs", "busybox", "mount", "runc")
    files = {"projects/base/Dockerfile": BASE, "projects/child/Dockerfile": CHILD}
    root = write_checkout(tmp_path / "imgs", files)
    write_programs(root / "projects/base/rootfs/bin")
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as storages:
        environ = {
            "RC_RUNNER": "local",
            "RC_PODMAN_DRIVER": "overlay",
            "RC_PODMAN_RUNTIME": "runc",
            "RC_STORE_MOUNT": "always",
        }
        yield Site(root, Path(storages), environ)
        for storage in Path(storages).iterdir():
            remove_storage(storage)


def listing(site: Site, name: str) -> list[str]:
    image = site.root / "projects" / name / "image.sqsh"
    argv = ("unsquashfs", "-ll", str(image))
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line.split()[0] + line.partition("squashfs-root")[2] for line in text.splitlines()]


def mounted(site: Site) -> list[str]:
    """What is mounted of this checkout's store."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in mounts if "squashfs" in line and str(site.root) in line]


def attached(root: Path) -> list[str]:
    """The loop devices of this checkout's files."""
    argv = ("losetup", "--list", "--output", "BACK-FILE")
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in text.splitlines() if str(root) in line]


def processes_below(pid: int) -> dict[int, str]:
    """A process and all that descend from it, with their command lines."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(entry.name))
    found, generation = {}, [pid]
    while generation:
        for each in generation:
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{each}/cmdline").read_bytes().decode(errors="replace")
                found[each] = argv.replace("\0", " ")
        generation = [child for each in generation for child in children.get(each, ())]
    return found


def wait_until(holds: Callable[[], bool], said: Callable[[], object]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s, said()
        time.sleep(0.1)


def held_bytes(storage: Path) -> int:
    """What podman's own storage holds; mounted layers are beside it."""
    return sum(path.lstat().st_size for path in (storage / "root/overlay").rglob("*"))


def test_a_child_is_built_on_a_mounted_base(site: Site) -> None:
    assert "mounted" not in site.doit("build:base", node="a")
    site.doit("build:child", node="b")
    log = site.log("child")
    assert "mounted " in log and "loading" not in log
    assert not mounted(site)
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"
    assert site.read("child", "copied") == "new\n" and site.read("child", "from-mount") == "k\n"
    assert site.read("child", "triggered") == "triggered\n"
    assert held_bytes(site.storages / "b") < BUSYBOX.stat().st_size
    built = listing(site, "child")
    site.doit("forget", "podman:child", "enroot:child")
    (site.root / ".rc/store/cache/child.json").unlink()
    site.doit("build:child", node="c", RC_STORE_MOUNT="never")
    assert "loading base" in site.log("child")
    assert listing(site, "child") == built


def test_the_layer_cache_is_mounted_too(site: Site) -> None:
    site.doit(node="a")
    recipe = site.root / "projects/base/Dockerfile"
    recipe.write_text(recipe.read_text() + "RUN echo last > /last\n")
    site.doit("build:base", node="b")
    log = site.log("base")
    assert log.count("Using cache") >= 4, log
    assert "mounted " in log and site.read("base", "last") == "last\n"
    assert site.read("base", "data/new") == "new\n" and site.read("base", "gone/a") is None


def test_what_was_built_on_a_mounted_base_can_be_used_again(site: Site) -> None:
    """By later steps on the node, which mount what it was built on once more."""
    site.doit(node="a")
    for text in ("one", "two"):
        recipe = site.root / "projects/child/Dockerfile"
        recipe.write_text(recipe.read_text() + f"RUN cat /data/new > /{text}\n")
        site.doit("build:child", node="b")
        assert site.read("child", text) == "new\n"
    assert site.log("child").count("Using cache") >= 3
    (site.root / "projects/child/image.sqsh").unlink()
    site.doit("enroot:child", node="b", RC_STORE_MOUNT="always")
    assert site.read("child", "two") == "new\n"
    assert not mounted(site)


def test_a_base_of_many_layers_is_mounted(site: Site, tmp_path: Path) -> None:
    """More than fit into the options of a mount by their absolute paths."""
    with serving(tmp_path / "registry") as registry:
        far = f"{registry}/many@{registry.image('many', '1', 'x', layers=MOST_LAYERS)}"
        environ = registry.environ(tmp_path)
        for name, text in MANY.items():
            site.write(f"projects/{name}/Dockerfile", text.replace("FAR", far))
        site.doit("build:many", node="a", **environ)
        site.doit("build:more", node="b", **environ)
    log = site.log("more")
    assert f": {MOST_LAYERS + 1} layers" in log and "loading" not in log
    assert site.read("more", "seen") == "x" and site.read("more", "from-mount") == "many\n"


def test_a_damaged_layer_is_made_again(site: Site) -> None:
    site.doit(node="a")
    for layer in site.root.glob(".rc/store/layers/*/layer.sqsh"):
        os.truncate(layer, 100)
    site.doit("forget", "podman:child")
    ran = site.doit("build:child", node="b")
    assert "nor whole in the store" in ran, ran
    assert " 0 damaged" in site.doit("verify", "--all")
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"


def test_nothing_stays_mounted_when_everything_is_killed(site: Site) -> None:
    """Nor is anything mounted where other processes of the host see it."""
    site.doit(node="a")
    recipe = site.root / "projects/child/Dockerfile"
    recipe.write_text(recipe.read_text() + f"RUN sleep {LONG_S}\n")
    storage = site.storages / "b"
    environ = {**os.environ, **site.environ, "RC_PODMAN_STORAGE": str(storage)}
    argv = (str(Path(DOIT).with_name("python")), "-m", "rc_tasks.steps", "podman", "child")
    output = subprocess.DEVNULL
    with subprocess.Popen(argv, cwd=site.root, env=environ, stdout=output, stderr=output) as step:
        wait_until(
            lambda: any(LONG_S in each for each in processes_below(step.pid).values()),
            lambda: processes_below(step.pid),
        )
        assert attached(site.root) and not mounted(site)
        for pid in processes_below(step.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not attached(site.root), lambda: attached(site.root))
    assert not mounted(site)
    recipe.write_text(recipe.read_text().replace(f"sleep {LONG_S}", "echo again > /again"))
    site.doit("build:child", node="b")
    assert site.read("child", "again") == "again\n"
    # podman 5 has no such file once there is no container.
    for path in storage.glob("root/overlay-containers/*containers.json"):
        assert json.loads(path.read_text()) == []


def test_publishing_and_starting_on_another_node_load_nothing(site: Site) -> None:
    site.write("projects/child/project.toml", 'smoke = [["cat", "/child"]]\n')
    site.doit("build:child", node="a", RC_LAUNCHER="podman")
    (site.root / "projects/child/image.sqsh").unlink()
    site.doit("enroot:child", node="b", RC_LAUNCHER="podman")
    log = max((site.root / ".rc/logs/child/enroot").iterdir()).read_text()
    assert "merged " in log and "loading" not in log and "smoke test 1 of 1 (podman)" in log
    started = site.doit(
        "local", "child", "--", "cat", "/seen", "/from-mount", node="c", RC_LAUNCHER="podman"
    )
    assert "mounted " in started and "unpacking" not in started
    assert "/kept:\nk\nk\n" in started
    for node in ("b", "c"):
        assert held_bytes(site.storages / node) < BUSYBOX.stat().st_size
    assert not mounted(site) and not attached(site.root)


def test_two_steps_mount_the_same_layers_at_once(site: Site) -> None:
    """podman counts mounts for all its processes, which do not see those of one another."""
    recipe = "FROM base\nRUN --mount=from=base,target=/m sleep 2; cat /m/kept/k > /{name}\n"
    recipe += "RUN --mount=from=base,target=/m sleep 1; cat /m/kept/k > /again\n"
    for name in ("one", "two"):
        site.write(f"projects/{name}/Dockerfile", recipe.format(name=name))
    site.doit("build:base", node="a")
    with ThreadPoolExecutor() as runs:
        list(runs.map(lambda name: site.doit(f"build:{name}", node="b"), ("one", "two")))
    for name in ("one", "two"):
        assert "loading" not in site.log(name)
        assert site.read(name, name) == "k\n" and site.read(name, "again") == "k\n"
    assert not mounted(site) and not attached(site.root)


@contextlib.contextmanager
def with_base(child: str) -> Iterator[Jobs]:
    """An ordinary user's checkout of a base and a child, which has a smoke test."""
    if os.geteuid() != 0:
        pytest.skip("only root can make an ordinary user")
    with jobs_of_a_user() as made:
        files = {
            "base/Dockerfile": BASE,
            "projects/child/Dockerfile": child,
            "projects/child/project.toml": 'smoke = [["cat", "/child"]]\n',
        }
        write_checkout(made.root, files)
        write_programs(made.root / "base/rootfs/bin")
        made.own()
        yield made


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    with with_base(CHILD) as made:
        yield made


def test_an_ordinary_user_mounts_with_squashfuse(jobs: Jobs) -> None:
    for step in ("podman", "enroot"):
        assert "mounted " not in jobs.run("11", step, "base")
    built = jobs.run("12", "podman", "child")
    assert "mounted " in built and "loading" not in built
    published = jobs.run("12", "enroot", "child")
    assert "merged " in published and "loading" not in published
    assert "smoke test 1 of 1 (podman)" in published
    assert not jobs.serving()
    image = jobs.root / "projects/child/image.sqsh"
    for name, text in (("seen", "/data:\nnew\n\n/kept:\nk\n"), ("from-mount", "k\n")):
        argv = ("unsquashfs", "-cat", str(image), name)
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == text
    storage = Path("/dev/shm", jobs.user.name, "rc_tasks/12")
    assert held_bytes(storage) < BUSYBOX.stat().st_size


def test_an_ordinary_user_without_fuse_unpacks(jobs: Jobs) -> None:
    """Once for all steps of a job."""
    jobs.fuse.chmod(0o600)
    for step in ("podman", "enroot"):
        jobs.run("13", step, "base")
    built = jobs.run("14", "podman", "child")
    assert "layers are unpacked, as they cannot be mounted here: /dev/fuse cannot be used" in built
    assert "unpacked " in built and "loading" not in built
    again = jobs.run("14", "podman", "child")
    assert "\nunpacked " not in again and "Using cache" in again and "loading" not in again
    jobs.run("14", "enroot", "child")
    image = jobs.root / "projects/child/image.sqsh"
    for name, text in (("seen", "/data:\nnew\n\n/kept:\nk\n"), ("from-mount", "k\n")):
        argv = ("unsquashfs", "-cat", str(image), name)
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == text
    # The next job clears it.
    jobs.run("15", "enroot", "base")
    assert not Path("/dev/shm", jobs.user.name, "rc_tasks/14").exists()


def test_an_ordinary_user_mounts_a_base_of_many_layers(jobs: Jobs, tmp_path: Path) -> None:
    with serving(tmp_path / "registry") as registry:
        far = f"{registry}/many@{registry.image('many', '1', 'x', layers=MOST_LAYERS)}"
        environ = registry.environ(jobs.root)
        for name, text in MANY.items():
            project = jobs.root / "projects" / name
            project.mkdir()
            (project / "Dockerfile").write_text(text.replace("FAR", far))
            shutil.chown(project, jobs.user.name)
        for name in ("podman", "enroot"):
            jobs.run("31", name, "many", **environ)
        built = jobs.run("32", "podman", "more", **environ)
    assert f": {MOST_LAYERS + 1} layers" in built and "loading" not in built
    jobs.run("32", "enroot", "more")
    image = jobs.root / "projects/more/image.sqsh"
    for name, text in (("seen", "x"), ("from-mount", "many\n")):
        argv = ("unsquashfs", "-cat", str(image), name)
        assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == text


KILLED = """
import os, subprocess
from rc_tasks.steps.node.node import _scratch
scratch = _scratch()
place = scratch.__enter__()
script = 'mkdir "$1/copied"; touch "$1/copied/file"; chown -R 5:5 "$1/copied"; chmod 700 "$1/copied"'
subprocess.run(("podman", "unshare", "sh", "-c", script, "sh", str(place)), check=True)
print(place, flush=True)
os._exit(9)
"""


def test_what_a_killed_step_of_an_ordinary_user_left_is_removed(jobs: Jobs) -> None:
    place = str(jobs.user.home)
    argv = (*jobs.user.argv, "env", f"TMPDIR={place}", *jobs.python, "-c", KILLED)
    killed = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    left = killed.stdout.split()[-1]
    assert Path(left, "copied").exists()
    jobs.run("41", "podman", "base", TMPDIR=place)
    assert not Path(left).exists()


def test_a_second_layer_that_squashfuse_refuses(jobs: Jobs) -> None:
    """The first is unmounted again, and the image is loaded."""
    for name in ("podman", "enroot"):
        jobs.run("41", name, "base")
    program = jobs.user.home / "bin/squashfuse_ll"
    count = jobs.user.home / "count"
    program.write_text(f"""\
#!/bin/sh
echo x >> {count}
[ "$(wc -l < {count})" != 2 ] || {{ echo "no such layer" >&2; exit 1; }}
exec {shutil.which("squashfuse_ll")} "$@"
""")
    program.chmod(0o755)
    recipe = jobs.root / "projects/child/Dockerfile"
    recipe.write_text(f"{recipe.read_text()}RUN cat /proc/self/mountinfo > /mounts\n")
    built = jobs.run("42", "podman", "child")
    assert "cannot be mounted, so it is loaded: no such layer" in built and "loading base" in built
    assert count.read_text() == "x\nx\n"
    jobs.run("42", "enroot", "child")
    image = jobs.root / "projects/child/image.sqsh"
    for name, expected in (("seen", True), ("mounts", False)):
        argv = ("unsquashfs", "-cat", str(image), name)
        text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert ("squashfuse" in text) is False and ("/kept" in text) is expected
    assert not jobs.serving()


def test_squashfuse_ends_with_an_ordinary_users_step(jobs: Jobs) -> None:
    """Even if nobody is left who would end it."""
    for name in ("podman", "enroot"):
        jobs.run("21", name, "base")
    recipe = jobs.root / "projects/child/Dockerfile"
    recipe.write_text(recipe.read_text() + f"RUN sleep {LONG_S}\n")
    with jobs.started("22", "podman", "child") as step:
        wait_until(
            lambda: any(LONG_S in each for each in processes_below(step.pid).values()),
            lambda: processes_below(step.pid),
        )
        assert jobs.serving()
        for pid, argv in processes_below(step.pid).items():
            # The first is runuser, which waits for the step.
            if pid != step.pid and "squashfuse" not in argv:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not jobs.serving(), jobs.serving)
    recipe.write_text(recipe.read_text().replace(f"sleep {LONG_S}", "echo again > /again"))
    assert "loading" not in jobs.run("22", "podman", "child")


def test_a_layer_that_is_damaged_after_a_build_on_it_is_told(site: Site) -> None:
    """podman would look for it in the mounted store, and fail in words of its own."""
    site.doit(node="a")
    recipe = site.root / "projects/child/Dockerfile"
    recipe.write_text(recipe.read_text() + "RUN echo 1 > /one\n")
    site.doit("build:child", node="b")
    for layer in site.root.glob(".rc/store/layers/*/layer.sqsh"):
        os.truncate(layer, 100)
    recipe.write_text(recipe.read_text() + "RUN echo 2 > /two\n")
    said = site.doit("build:child", node="b", status=1)
    assert "on which this node has built before, cannot be mounted again: not a whole SquashFS" in said
    assert "`doit verify --all` names what is damaged" in said
    site.doit("build:child", node="c", RC_STORE_MOUNT="never")
    assert site.read("child", "two") == "2\n"


def numbers_of(site: Site) -> Path:
    """Build the base with another file, /numbers; return the layer with this file."""
    recipe = site.root / "projects/base/Dockerfile"
    recipe.write_text(f"{recipe.read_text()}RUN seq 1 300000 > /numbers\n")
    return layer_of(site, "numbers")


def layer_of(site: Site, name: str) -> Path:
    """Build the base; return the layer with a file."""
    site.doit("build:base", node="a")
    for path in site.root.glob(".rc/store/layers/*/layer.sqsh"):
        if f"squashfs-root/{name}" in command.capture(Command(("unsquashfs", "-l", str(path)))).stdout:
            return path
    raise AssertionError


# The data of its files alone.
OVERWRITE = "dd if=/dev/zero of={} bs=1k seek=20 count=20 conv=notrunc"


@pytest.mark.parametrize("harm", [OVERWRITE, "truncate --size 8192 {}"], ids=("overwrite", "truncate"))
def test_a_mounted_layer_that_cannot_be_read_is_named(site: Site, tmp_path: Path, harm: str) -> None:
    layer = numbers_of(site)
    harming = tmp_path / "bin/mount"
    harming.parent.mkdir()
    harming.write_text(f"""\
#!/bin/sh
{shutil.which("mount")} "$@" || exit
[ "$5" != "{layer}" ] || {harm.format(layer)}
""")
    harming.chmod(0o755)
    site.write("projects/child/Dockerfile", "FROM base\nRUN cat /numbers > /dev/null\n")
    path = f"{harming.parent}:{os.environ['PATH']}"
    said = site.doit("build:child", node="b", status=1, PATH=path)
    shown = layer.relative_to(site.root)
    assert f"a layer of base could not be read: {shown} (has other content" in said, said
    assert "next: `doit verify --all` names what is damaged" in said


def test_a_layer_that_is_removed_during_a_build_is_not_made_of_its_mount(
    site: Site, tmp_path: Path
) -> None:
    """Damage that the mount shows would get a record that says that it is right."""
    layer = numbers_of(site)
    removing = tmp_path / "bin/mount"
    removing.parent.mkdir()
    removing.write_text(f"""\
#!/bin/sh
{shutil.which("mount")} "$@" || exit
[ "$5" != "{layer}" ] || rm -r {layer.parent}
""")
    removing.chmod(0o755)
    site.write("projects/child/Dockerfile", "FROM base\nRUN echo child > /child\n")
    path = f"{removing.parent}:{os.environ['PATH']}"
    said = site.doit("build:child", node="b", status=1, PATH=path)
    assert f"{layer.relative_to(site.root)}: a layer that is mounted here was removed" in said, said
    assert not layer.parent.exists()
    site.doit(node="c")
    assert site.read("child", "child") == "child\n"
    assert " 0 damaged" in site.doit("verify", "--all")


# What is not compressed has no checksum of its own: the kernel does not notice the damage.
@pytest.mark.parametrize("method", ["merge", "direct"])
def test_a_mounted_layer_that_is_damaged_is_not_published(site: Site, method: str) -> None:
    (site.root / "projects/base/random").write_bytes(os.urandom(200_000))
    recipe = site.root / "projects/base/Dockerfile"
    recipe.write_text(f"{recipe.read_text()}COPY random /numbers\n")
    layer = layer_of(site, "numbers")
    text = layer.read_bytes()
    layer.write_bytes(text[:1000] + bytes(byte ^ 1 for byte in text[1000:1100]) + text[1100:])
    said = site.doit("build:child", node="b", status=1, RC_SQUASH_METHOD=method)
    shown = layer.relative_to(site.root)
    assert f"{shown}: a layer that is mounted here is damaged: it has other content, with " in said
    assert not (site.root / "projects/child/image.sqsh").exists()
    assert "next: `doit verify --all` names what is damaged" in said


@pytest.mark.parametrize("fails", [False, True], ids=("whole", "failed"))
def test_nothing_stays_of_a_build_that_has_read_a_damaged_layer(site: Site, *, fails: bool) -> None:
    """A RUN has copied the wrong bytes to a new layer, which no digest would show."""
    (site.root / "projects/base/random").write_bytes(os.urandom(200_000))
    recipe = site.root / "projects/base/Dockerfile"
    recipe.write_text(f"{recipe.read_text()}COPY random /numbers\n")
    layer = layer_of(site, "numbers")
    text = layer.read_bytes()
    with layer.open("r+b") as file:
        file.seek(1000)
        file.write(bytes(byte ^ 1 for byte in text[1000:1100]))
    stored = sorted(os.listdir(site.root / ".rc/store/images"))
    child = "FROM base\nRUN cat /numbers > /copy\n"
    site.write("projects/child/Dockerfile", child + "RUN cat /nowhere\n" * fails)
    said = site.doit("build:child", node="b", status=1)
    assert "FAILED  podman:child" in said
    assert f"{layer.relative_to(site.root)}: a layer that is mounted here is damaged: it has " in said
    assert sorted(os.listdir(site.root / ".rc/store/images")) == stored
    # The same file again, as from a node whose podman still has the base.
    layer.write_bytes(text)
    site.write("projects/child/Dockerfile", child)
    for node in "ab":
        site.doit("forget", "podman:child")
        site.doit("build:child", node=node)
        published = site.root / "projects/child/image.sqsh"
        argv = ("unsquashfs", "-cat", str(published), "copy")
        copied = subprocess.run(argv, capture_output=True, check=True).stdout
        assert copied == (site.root / "projects/base/random").read_bytes()


def test_a_layer_without_its_recipe_is_made_again(site: Site) -> None:
    """podman would write another archive of a mounted layer, and fail with its own words."""
    site.doit(node="a")
    for recipe in site.root.glob(".rc/store/layers/*/tar-split.gz"):
        recipe.unlink()
    said = site.doit("verify", "child", status=1)
    assert "/layer.sqsh has no tar-split.gz beside it any more" in said, said
    site.write("projects/child/Dockerfile", CHILD + "RUN echo more > /more\n")
    assert "nor whole in the store" in site.doit("build:child", node="b")
    assert site.read("child", "more") == "more\n"
    assert " 0 damaged" in site.doit("verify", "--all")


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        pytest.param("*", "layers are unpacked, as they cannot be mounted here: ", id="every mount"),
        # The first has been mounted then.
        pytest.param("squashfs:2", "cannot be mounted, so it is loaded: ", id="the second layer"),
    ],
)
def test_a_node_that_cannot_mount(site: Site, tmp_path: Path, refused: str, said: str) -> None:
    site.doit(node="a")
    site.doit("forget", "podman:child")
    refusing, count = tmp_path / "bin/mount", tmp_path / "count"
    refusing.parent.mkdir()
    refusing.write_text(f"""\
#!/bin/sh
touch {count}; [ "$2" != squashfs ] || echo x >> {count}
case "$2:$(wc -l < {count})" in {refused}) echo refused >&2; exit 32 ;; esac
exec {shutil.which("mount")} "$@"
""")
    refusing.chmod(0o755)
    site.doit("build:child", node="b", PATH=f"{refusing.parent}:{os.environ['PATH']}")
    log = site.log("child")
    assert said in log and ("loading base" in log) == (refused != "*") != ("unpacked " in log)
    assert not mounted(site) and not attached(site.root)
    assert site.read("child", "seen") == "/data:\nnew\n\n/kept:\nk\n"
