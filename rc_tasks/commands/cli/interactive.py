"""Interactive jobs of `doit remote` and `doit local`: find the project, write its EDF, start the job."""

import grp
import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path, PurePosixPath

from msgspec import Struct
from msgspec.structs import replace

from rc_tasks.commands.cli.command import images_in, split_task
from rc_tasks.commands.cli.confirm import at_terminal
from rc_tasks.commands.cli.parser import add_flag, add_names
from rc_tasks.engine.runner import runner
from rc_tasks.errors import ProjectError, RcError, SlurmError
from rc_tasks.model.config.settings import Launcher, Runner
from rc_tasks.model.edf import chain
from rc_tasks.model.edf.chain import ResolvedEdf
from rc_tasks.model.graph.project import EDF, Project, dockerfile_name
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.edf.user_edf import UserEdf, workdir
from rc_tasks.steps.container import launch
from rc_tasks.tools import command, podman, sacctmgr, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

# Enroot and srun exit with it when they cannot start a container; so do many programs in one.
_LAUNCHER_FAILED = 1


def add_job_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments of a command that starts a job, with CMD after `--`."""
    parser.set_defaults(command=())
    add_names(parser, "NAME [-- CMD ...]")
    add_flag(
        parser,
        "--force",
        help="also change a ~/.edf/NAME.toml, or values in it, that doit did not write",
    )
    add_print(parser)


def add_print(parser: ArgumentParser) -> None:
    """Declare --print."""
    add_flag(
        parser, "--print", help="print the command that would start the job; start and write nothing"
    )


class InteractiveJob(Struct, frozen=True):
    """A job and the user's EDF for it, checked before anything is changed.

    `argv` is the command to run, or empty for a shell. `printed`: print the job's command line in place
    of starting the job.
    """

    edf: UserEdf
    workdir: str
    root: Path
    launcher: Launcher
    request: StepRequest | None
    argv: tuple[str, ...]
    printed: bool

    def write(self, project: Project, image: Path | None, first_edf: str = "") -> ResolvedEdf:
        """Write the user's EDF; return it as a launcher gets it. No `image`: the official one.

        `first_edf` is written to a project that has no env.toml. With --print, both are written to a
        private directory, which is removed.
        """
        if not self.printed:
            if first_edf:
                write_atomically(project.edf, first_edf)
                tell(f"{project.shown(EDF)} written: it extends the base's until the image is built")
            if self.edf.write(self._text(project.edf, image)):
                tell(f"{self.edf.shown} written")
            return resolve_edf(self.edf.path)
        with tempfile.TemporaryDirectory(prefix="rc_tasks.edf.") as directory:
            base, edf = project.edf, Path(directory, self.edf.path.name)
            if first_edf:
                base = Path(directory, project.name, EDF)
                base.parent.mkdir()
                base.write_text(first_edf, encoding="utf-8")
            edf.write_text(self._text(base, image), encoding="utf-8")
            return replace(resolve_edf(edf), path=self.edf.path)

    def _text(self, base: Path, image: Path | None) -> str:
        values: dict[str, object] = {"base_environment": str(base)}
        if image is not None:
            values["image"] = str(image)
        values["workdir"] = self.workdir
        if not _is_mounted(self.workdir, resolve_edf(base)):
            values["mounts"] = [f"{self.workdir}:{self.workdir}"]
        return self.edf.filled(values)

    def start(self, edf: ResolvedEdf) -> int:
        """Start the job, wait for its end and return its exit status; or print its command.

        Raise SlurmError when Slurm refuses or ends the job.
        """
        # If the user has set EDF_PATH, the bare name may mean another file, or nothing.
        searched = chain.search_path(os.environ)
        reference = self.edf.path.stem if searched[0] == self.edf.path.parent else str(self.edf.path)
        argv = self.argv or launch.SHELL
        terminal = at_terminal() or (self.printed and not self.argv)
        if self.launcher is Launcher.PODMAN:
            shell = (
                sys.executable,
                "-m",
                "rc_tasks.steps.container.shell",
                str(self.root),
                str(self.edf.path),
            )
            job = Command((*shell, *argv))
            if self.request is not None:
                job = slurm.attached(job, self.request, terminal=terminal)
        else:
            job = launch.command(self.launcher, reference, edf, argv, self.request, interactive=terminal)
        if self.launcher is Launcher.ENROOT and self.request is None and not self.printed:
            launch.require_mounts(edf)
        return run_job(job, self.request, printed=self.printed)

    def tell_next(self, status: int, words: str) -> None:
        """Suggest what to do after the job, unless its exit status may mean that it never began."""
        if self.launcher is Launcher.PODMAN:
            # A program can exit with these too; `container/shell.py` reports those of podman.
            if status not in podman.NOT_STARTED:
                tell(f"next{words}")
        elif status == _LAUNCHER_FAILED:
            tell(
                "next: if no container started, the lines above say why; `doit doctor` checks this host"
            )
        else:
            tell(f"next{words}")


def run_job(job: Command, request: StepRequest | None, *, printed: bool) -> int:
    """Start a job's command, wait for its end and return its exit status; or print it.

    Raise SlurmError when Slurm refuses or ends the job.
    """
    if printed:
        print(job)
        return 0
    # Values of variables may be tokens, which must not appear on the screen.
    tell(f"$ {replace(job, env=dict.fromkeys(job.env, '…'))}")
    if request is None:
        return command.interact(job)
    return slurm.patiently(lambda: _attach(job, request), tell)


def _attach(job: Command, request: StepRequest) -> int:
    """Start the job through Slurm. Raise UnreachableError when its controller does not answer."""
    lines: list[str] = []
    status = command.interact(job, lines.append)
    error = slurm_words.explain(status, lines, request)
    if error is not None:
        # Slurm's own lines are already on the terminal.
        raise error.with_quote(())
    if status != 0 and launch.refused_entrypoint(lines):
        raise SlurmError(
            "the container could not be started: the image's ENTRYPOINT does not run the command",
            hint=launch.ENTRYPOINT_HINT,
        )
    return status


def prepare(checkout: Checkout, name: str, args: Namespace, kind: str) -> InteractiveJob:
    """Return the job to start for a project. Raise RcError when no job can be started.

    `kind` is the name of the command. Changes nothing.
    """
    argv, printed = args.command, args.print
    require_terminal(name, args, kind)
    home = Path.home()
    edf = UserEdf.read(home, chain.search_name(name), project=name, force=args.force)
    through_slurm = runner(checkout.settings.runner) is Runner.SLURM
    launcher, why = launch.choose(checkout.settings.launcher, through_slurm=through_slurm)
    request = job_request(checkout, name, kind) if through_slurm else None
    setting = checkout.settings.debug.workdir
    directory = workdir(setting, home, os.environ)
    if not setting and directory != os.path.realpath(home / "scratch"):
        tell(f"the job begins in {directory}, as there is no directory ~/scratch")
    tell(f"launcher {launcher}: {why}")
    return InteractiveJob(edf, directory, checkout.root, launcher, request, argv, printed)


def find_project(checkout: Checkout, argument: str) -> Project | None:
    """Return the project that an argument names, or None when there is no such project.

    The argument is the name of an image, an alias, a task, a directory, or a group with one version.
    For a project whose Dockerfile is broken, print a warning. Raise ProjectError for a group with
    several versions.
    """
    graph = checkout.graph
    _, name = split_task(checkout, argument)
    target = graph.aliases.get(name, name)
    images = (*graph.images, *graph.broken)
    versions = [image for image in images if image.partition(":")[0] == target]
    versions = versions or images_in(checkout, name) or []
    if target not in graph.names() and len(versions) > 1:
        raise ProjectError(
            f"{name} has several versions: {', '.join(versions)}", hint="name one of them"
        )
    if target not in graph.names() and versions:
        (target,) = versions
    if target != name:
        tell(f"{name} is {target}")
    if target in graph.broken:
        # A user who fixes a Dockerfile tries commands in the image that was built before.
        path = checkout.directory(target)
        project = Project(target, checkout.root, path, dockerfile_name(checkout.root / path))
        if not project.dockerfile.is_file():
            raise graph.broken[target]
        tell(f"warning: {graph.broken[target]}")
        return project
    return graph.images[target].project if target in graph.images else None


def require_terminal(name: str, args: Namespace, kind: str) -> None:
    """Raise RcError when a command would start a shell without a terminal."""
    if not (args.command or args.print or at_terminal()):
        raise RcError(
            "a shell needs a terminal, and there is none here",
            hint=f"name a command to run: doit {kind} {name} -- CMD",
        )


def resolve_edf(path: Path) -> ResolvedEdf:
    """Read an EDF, with all that it extends, as a launcher does. Raise EdfError."""
    return launch.resolve(str(path), environ=os.environ, cwd=Path.cwd())


def tell(line: str) -> None:
    """Print a line for the user on standard error, because standard output belongs to the job."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def job_request(checkout: Checkout, name: str, kind: str) -> StepRequest:
    """Return the request of an interactive job. Raise SlurmError when it needs an account.

    `kind` is the name of the command.
    """
    debug, builds = checkout.settings.debug, checkout.settings.slurm
    account = debug.account or builds.account
    if not (account or os.environ.get("SLURM_ACCOUNT") or slurm.job_id()):
        _require_one_account()
    return StepRequest(
        f"{kind}:{name}",
        account=account,
        partition=debug.partition or builds.partition,
        time_limit_min=debug.time_limit_min,
        extra=debug.extra,
        settings_table="debug",
        again="run the same command again",
    )


def _require_one_account() -> None:
    """Raise SlurmError when the user has several accounts, or groups if Slurm lists no account."""
    accounts = sacctmgr.accounts()
    words = "accounts"
    if not accounts:
        accounts = tuple(_group_name(gid) for gid in dict.fromkeys((os.getgid(), *os.getgroups())))
        words = "groups, after which a site may name its accounts,"
    if len(accounts) > 1:
        raise SlurmError(
            "the job needs an account, and several are possible",
            quote=(f"your {words} are: {', '.join(accounts)}",),
            hint='choose one for all jobs: account = "NAME" below [slurm] in ~/.config/rc_tasks.toml\n'
            "or for this shell: export RC_SLURM_ACCOUNT=NAME",
        )


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _is_mounted(path: str, edf: ResolvedEdf) -> bool:
    """Return whether a directory of the host has the same path in the container."""
    return any(
        mount.source == mount.destination and PurePosixPath(path).is_relative_to(mount.destination)
        for mount in edf.mounts
    )
