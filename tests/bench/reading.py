"""How fast a merged image is read, beside the same image squashed whole.

    python -m tests.bench.reading [ROUNDS]                  (default: 5), as root

The image holds this Python with the packages of its environment, in a dozen layers. It is published
twice, with `squash.method` `merge` and `direct`. Each file is mounted in turn, with nothing of it in
memory: the machine's page cache is dropped. Then Python starts in a chroot there and imports what it
finds. Prints the medians of the mount and of the import, and the ratio.
"""

import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from tests.support.tools import which
from tests.support.versions import HERE, Version, empty_node

DIRECT = Version("direct", environ={**HERE.environ, "RC_SQUASH_METHOD": "direct"})
LAYERS = 10
MOST_OF_DIRECT = 1.1
# The packages of an environment, and modules that import many others.
IMPORT = """
import contextlib, importlib, importlib.metadata, sys
more = ["mypy.build", "rich.console", "rich.markdown", "hypothesis.strategies", "pip._internal.cli.main"]
for name in sorted(importlib.metadata.packages_distributions()) + more:
    if not name.startswith("rc_tasks"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
print(len(sys.modules))
"""


def main(rounds: int) -> None:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/var/tmp") as scratch:
        context = Path(scratch, "context")
        write_context(context)
        images = {version.name: published(version, Path(scratch), context) for version in (HERE, DIRECT)}
        times_s: dict[str, list[tuple[float, float]]] = {name: [] for name in images}
        modules = ""
        for _ in range(rounds):
            for name, image in images.items():
                mount_s, import_s, modules = read(image, Path(scratch))
                times_s[name].append((mount_s, import_s))
    print(f"a cold import of {modules} modules")
    whole_s = {}
    for name, times in times_s.items():
        mount_s, import_s = (statistics.median(column) for column in zip(*times, strict=True))
        whole_s[name] = mount_s + import_s
        print(f"  {name:6} {whole_s[name]:.2f} s: mount {mount_s:.2f} s, import {import_s:.2f} s")
    ratio = whole_s[HERE.name] / whole_s[DIRECT.name]
    print(f"  the merged image takes {ratio:.2f} of the direct one (at most {MOST_OF_DIRECT})")


def write_context(context: Path) -> None:
    """Copy this Python, what it links to, and its packages in several parts."""
    system = context / "system"
    library = Path(sysconfig.get_path("stdlib"))
    binary = Path(sys.executable).resolve()
    shutil.copytree(
        library,
        system / library.relative_to("/"),
        symlinks=True,
        ignore=shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*"),
    )
    for path in (binary, *linked([binary, *library.glob("lib-dynload/*.so")])):
        target = system / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    for number, path in enumerate(sorted(Path(sysconfig.get_path("purelib")).iterdir())):
        target = context / f"packages{number % LAYERS}" / path.name
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    copies = (f"COPY packages{number} /packages\n" for number in range(LAYERS))
    (context / "Dockerfile").write_text(
        "".join(("FROM scratch\nCOPY system /\n", *copies, "COPY Dockerfile /\n"))
    )


def linked(binaries: list[Path]) -> set[Path]:
    """Return the shared libraries of programs, by the names under which they are opened."""
    done = subprocess.run(("ldd", *binaries), capture_output=True, text=True, check=False)
    words = done.stdout.replace(":", " ").split()
    return {Path(word) for word in words if word.startswith("/") and ".so" in word} - set(binaries)


def published(version: Version, scratch: Path, context: Path) -> Path:
    """Publish the image."""
    root = version.write_checkout(scratch / version.name, {})
    shutil.copytree(context, root / "projects/python", symlinks=True)
    with empty_node() as node:
        version.run(root, node)
    return root / "projects/python/image.sqsh"


def read(image: Path, scratch: Path) -> tuple[float, float, str]:
    """Return the seconds of the mount and of the import, and how many modules were imported."""
    mounted = scratch / "mounted"
    mounted.mkdir(exist_ok=True)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    started = time.monotonic()
    subprocess.run(("mount", "-t", "squashfs", "-o", "loop,ro", image, mounted), check=True)
    try:
        python = Path(sys.executable).resolve()
        argv = (str(which("chroot")), mounted, python, "-c", IMPORT)
        ready = time.monotonic()
        done = subprocess.run(
            argv, env={"PYTHONPATH": "/packages"}, capture_output=True, text=True, check=False
        )
        took_s = time.monotonic() - ready
        if done.returncode != 0:
            raise SystemExit(done.stderr)
    finally:
        subprocess.run(("umount", mounted), check=True)
    return ready - started, took_s, done.stdout.split()[-1]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
