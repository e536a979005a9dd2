"""What `doit remote` and `doit local` share: from the name of a project to a shell in its image."""

import grp
import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from rc_tasks.commands.cli.parser import add_flag, add_names
from rc_tasks.engine.run.step_command import runner
from rc_tasks.engine.session import TASK_KINDS
from rc_tasks.errors import ProjectError, RcError, SlurmError
from rc_tasks.model.config.settings import Launcher, Runner
from rc_tasks.model.edf import chain
from rc_tasks.model.edf.chain import ResolvedEdf
from rc_tasks.model.graph.project import EDF, PROJECTS, Project, dockerfile_name
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.files import write_atomically
from rc_tasks.state.edf.user_edf import UserEdf, workdir
from rc_tasks.steps.container import launch
from rc_tasks.tools import command, podman, sacctmgr, slurm, slurm_words
from rc_tasks.tools.command import Command
from rc_tasks.tools.slurm_request import StepRequest

# What the hints on `slurm` settings say of the job here, which has settings of its own.


def add_entry(parser: ArgumentParser) -> None:
    """Declare the arguments of a command that starts a job, with CMD behind `--`."""
    parser.set_defaults(command=())
    add_names(parser, "NAME [-- CMD ...]")
    add_flag(
        parser,
        "--force",
        help="also change a ~/.edf/NAME.toml that is not ours, or values in it that are not",
    )
    add_flag(
        parser, "--print", help="print the command that would start the job; start and write nothing"
    )


@dataclass(frozen=True, slots=True)
class InteractiveJob:
    """What a job needs, known before anything is changed."""

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
            return resolved(self.edf.path)
        with tempfile.TemporaryDirectory(prefix="rc_tasks.edf.") as directory:
            base, edf = project.edf, Path(directory, self.edf.path.name)
            if first_edf:
                base = Path(directory, project.name, EDF)
                base.parent.mkdir()
                base.write_text(first_edf, encoding="utf-8")
            edf.write_text(self._text(base, image), encoding="utf-8")
            return replace(resolved(edf), path=self.edf.path)

    def _text(self, base: Path, image: Path | None) -> str:
        values: dict[str, object] = {"base_environment": str(base)}
        if image is not None:
            values["image"] = str(image)
        values["workdir"] = self.workdir
        if not _is_mounted(self.workdir, resolved(base)):
            values["mounts"] = [f"{self.workdir}:{self.workdir}"]
        return self.edf.filled(values)

    def start(self, found: ResolvedEdf) -> int:
        """Start the job and wait for its end, or print its command; returns its exit status.

        Raises SlurmError when Slurm refuses or ends it.
        """
        # With an EDF_PATH of the user's own, another file may have this name, or none.
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
            wanted = Command((*shell, *argv))
            if self.request is not None:
                wanted = slurm.attached(wanted, self.request, terminal=terminal)
        else:
            wanted = launch.command(
                self.launcher, reference, found, argv, self.request, interactive=terminal
            )
        if self.printed:
            print(wanted)
            return 0
        if self.launcher is Launcher.ENROOT and self.request is None:
            launch.require_mounts(found)
        # Tokens, perhaps, and somebody looks over the shoulder.
        tell(f"$ {replace(wanted, env=dict.fromkeys(wanted.env, '…'))}")
        if self.request is None:
            return command.interact(wanted)
        return slurm.patiently(lambda: self._attach(wanted), tell)

    def _attach(self, wanted: Command) -> int:
        """Start the job through Slurm. Raises UnreachableError when its controller does not answer."""
        assert self.request is not None  # noqa: S101 - for mypy
        lines: list[str] = []
        status = command.interact(wanted, lines.append)
        refused = slurm_words.explain(status, lines, self.request)
        if refused is not None:
            # The terminal has shown Slurm's own lines.
            raise refused.with_quote(())
        if status != 0 and launch.refused_entrypoint(lines):
            raise SlurmError(
                "the container could not be started: the image's ENTRYPOINT does not run the command",
                hint=launch.ENTRYPOINT_HINT,
            )
        return status


def prepare(checkout: Checkout, name: str, args: Namespace, kind: str) -> InteractiveJob:
    """Find out whether a job can be started, and with what; raises what would go wrong."""
    argv, printed = args.command, args.print
    if not (argv or printed or at_terminal()):
        raise RcError(
            "there is no terminal here for a shell",
            hint=f"name a command to run: doit {kind} {name} -- CMD",
        )
    home = Path.home()
    edf = UserEdf.read(home, chain.search_name(name), project=name, force=args.force)
    through_slurm = runner(checkout.settings.runner) is Runner.SLURM
    launcher, why = launch.choose(checkout.settings.launcher, through_slurm=through_slurm)
    request = _request(checkout, name, kind) if through_slurm else None
    setting = checkout.settings.debug.workdir
    begins = workdir(setting, home, os.environ)
    if not setting and begins != os.path.realpath(home / "scratch"):
        tell(f"the job begins in {begins}, as there is no directory ~/scratch")
    tell(f"launcher {launcher}: {why}")
    return InteractiveJob(edf, begins, checkout.root, launcher, request, argv, printed)


def find_project(checkout: Checkout, argument: str) -> Project | None:
    """The project that a word means: a name, an alias, the name of a task, or a group of one version."""
    graph = checkout.graph
    kind, _, rest = argument.partition(":")
    name = rest if kind in TASK_KINDS and argument not in graph.names() else argument
    target = graph.aliases.get(name, name)
    versions = [each for each in (*graph.images, *graph.broken) if each.partition(":")[0] == target]
    if target not in graph.names() and len(versions) > 1:
        raise ProjectError(
            f"{name} has several versions: {', '.join(versions)}", hint="name one of them"
        )
    if target not in graph.names() and versions:
        (target,) = versions
    if target != name:
        tell(f"{name} is {target}")
    if target in graph.broken:
        # Whoever mends a Dockerfile wants to try things in the image as it was.
        path = f"{PROJECTS}/{target}" if (checkout.root / PROJECTS / target).is_dir() else target
        project = Project(target, checkout.root, path, dockerfile_name(checkout.root / path))
        if not project.dockerfile.is_file():
            raise graph.broken[target]
        tell(f"warning: {graph.broken[target]}")
        return project
    return graph.images[target].project if target in graph.images else None


def resolved(path: Path) -> ResolvedEdf:
    """An EDF as a launcher gets it. Raises EdfError."""
    return launch.resolve(str(path), environ=os.environ, cwd=Path.cwd())


def at_terminal() -> bool:
    """Whether a person can type into what we start."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def tell_next(status: int, words: str) -> None:
    """Suggest what to do after a job that ended with `status`, or where to look if it never began."""
    if status in podman.NOT_STARTED:
        tell("next: the lines above name what could not be started; `doit doctor` checks this host")
    else:
        tell(f"next{words}")


def tell(line: str) -> None:
    """A line for the person; standard output is the job's."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _request(checkout: Checkout, name: str, kind: str) -> StepRequest:
    debug, usual = checkout.settings.debug, checkout.settings.slurm
    account = debug.account or usual.account
    if not (account or os.environ.get("SLURM_ACCOUNT") or slurm.job_id()):
        _require_one_account()
    return StepRequest(
        f"{kind}:{name}",
        account=account,
        partition=debug.partition or usual.partition,
        time_limit_min=debug.time_limit_min,
        extra=debug.extra,
        settings_table="debug",
        again="run the same command again",
    )


def _require_one_account() -> None:
    found = sacctmgr.accounts()
    words = "accounts"
    if not found:
        found = tuple(_group(gid) for gid in dict.fromkeys((os.getgid(), *os.getgroups())))
        words = "groups, by which a site may name its accounts,"
    if len(found) > 1:
        raise SlurmError(
            "it is not clear which account the job is for",
            quote=(f"your {words} are: {', '.join(found)}",),
            hint='choose one for good: account = "NAME" below [slurm] in ~/.config/rc_tasks.toml\n'
            "or for now: export RC_SLURM_ACCOUNT=NAME",
        )


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _is_mounted(path: str, edf: ResolvedEdf) -> bool:
    """Whether a directory of the host has the same name in the container."""
    return any(
        mount.source == mount.destination and PurePosixPath(path).is_relative_to(mount.destination)
        for mount in edf.mounts
    )
