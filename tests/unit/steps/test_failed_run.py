"""How a failed instruction runs again: what is typed, what is mounted, and what is said of the rest."""

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from rc_tasks.state.store.catalogue import FailedInstruction
from rc_tasks.steps.podman.failed_run import DEFAULT_SHELL, FailedRun, ImageConfig
from rc_tasks.steps.podman.run_mounts import MountedContext, RunMounts, run_mounts, secret_ids

BASH = ("/bin/bash", "-o", "pipefail", "-c")
SCRIPT = "/run/doit/heredoc"


def failed_run(instruction: str, *, trigger: str = "", podman: str = "5.8.6") -> FailedRun:
    text = f"FROM scratch\nARG A=a\n{instruction}\nRUN after\n"
    failed = FailedInstruction(1 if trigger else 3, text, "", {}, podman, trigger)
    return FailedRun.parse(failed, "Dockerfile", "x86_64", {})


@pytest.mark.parametrize(
    ("instruction", "shell", "typed"),
    [
        ("RUN pip install x", DEFAULT_SHELL, ("pip install x", "/bin/sh -c 'pip install x'")),
        (
            "RUN --mount=type=cache,target=/c a \\\n  # no\n\n  && b | c",
            BASH,
            ("a   && b | c", "/bin/bash -o pipefail -c 'a   && b | c'"),
        ),
        ('RUN ["a b", "$c"]', DEFAULT_SHELL, ("'a b' '$c'",)),
        ("RUN <<EOF\na\nEOF", BASH, (f"/bin/bash -o pipefail {SCRIPT}",)),
        ("RUN <<EOF\na\nEOF", ("/bin/bash", "-euc"), (f"/bin/bash -eu {SCRIPT}",)),
        ("RUN <<EOF\n#!/usr/bin/python3\nEOF", BASH, (SCRIPT,)),
        ("COPY a b", DEFAULT_SHELL, ()),
        ("WORKDIR /x", DEFAULT_SHELL, ()),
    ],
)
def test_what_a_person_types(instruction: str, shell: tuple[str, ...], typed: tuple[str, ...]) -> None:
    assert failed_run(instruction).commands(shell, SCRIPT) == typed


@pytest.mark.parametrize(
    ("instruction", "script"),
    [
        ("RUN <<EOF\n  a $x\n\n# b\nEOF", "  a $x\n\n# b\n"),
        ("RUN <<-'EOF'\n\ta\n\tEOF", "a\n"),
        ("RUN cat <<EOF | b\nx\nEOF", "cat <<EOF | b\nx\nEOF\n"),
        ("RUN cat <<A <<B\nx\nA\ny\nB", "cat <<A <<B\nx\nA\ny\nB\n"),
        ("RUN echo '<<EOF'", ""),
    ],
)
def test_a_command_with_heredocs_becomes_a_script(instruction: str, script: str) -> None:
    parsed = failed_run(instruction)
    assert parsed.script_text == script
    assert parsed.lines == tuple(instruction.split("\n"))


def test_what_is_typed_runs_as_it_was_written(tmp_path: Path) -> None:
    text = """a='it'"'"'s' && printf '%s|' "$a" \\$HOME "\\"" "*" | tr a-z A-Z"""
    (tmp_path / "again").write_text(
        f"exec {failed_run(f'RUN {text}').commands(DEFAULT_SHELL, '')[-1]}\n"
    )
    run = [
        subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        for argv in (("sh", "-c", text), ("sh", str(tmp_path / "again")))
    ]
    assert run == ["IT'S|$HOME|\"|*|"] * 2


def test_a_trigger_of_the_base_stands_for_its_instruction() -> None:
    parsed = failed_run("RUN x", trigger="RUN --mount=type=tmpfs,target=/t make all")
    assert parsed.lines == ("RUN --mount=type=tmpfs,target=/t make all",)
    assert parsed.commands(DEFAULT_SHELL, SCRIPT)[0] == "make all"
    assert parsed.flags == ("--mount=type=tmpfs,target=/t",)
    assert parsed.arguments == {}


def test_the_image_says_what_the_instruction_has() -> None:
    config = {"Env": ["A=b=c", "E="], "User": "u", "WorkingDir": "/w", "Shell": list(BASH)}
    parsed = ImageConfig.parse(json.dumps({"config": config}).encode())
    assert parsed == ImageConfig({"A": "b=c", "E": ""}, "u", "/w", BASH)
    assert ImageConfig.parse(b"{}") == ImageConfig({}, "", "/", DEFAULT_SHELL)


@pytest.fixture
def context(tmp_path: Path) -> MountedContext:
    """A context with a secret in it, and a link that leads out of it."""
    directory = tmp_path / "a, b"
    (directory / "sub").mkdir(parents=True)
    for name in ("sub/token", "file"):
        (directory / name).touch()
    (directory / "out").symlink_to("/etc")
    return MountedContext(directory, ("sub/token",), tmp_path / "empty")


def replaced(context: MountedContext, *flags: str, secrets: dict[str, Path] | None = None) -> RunMounts:
    return run_mounts(flags, context, "/srv", secrets)


@pytest.mark.parametrize(
    ("mount", "value"),
    [
        (
            "type=cache,target=/root/.cache,sharing=locked",
            "type=tmpfs,destination=/root/.cache,notmpcopyup",
        ),
        ("type=tmpfs,target=t", "type=tmpfs,destination=/srv/t,notmpcopyup"),
        ("source=file,target=/x/", 'type=bind,"source={}/file",destination=/x,ro'),
        ("type=bind,src=/file,dst=y", 'type=bind,"source={}/file",destination=/srv/y,ro'),
    ],
)
def test_mounts_of_a_run(context: MountedContext, mount: str, value: str) -> None:
    (first,) = replaced(context, f"--mount={mount}").values
    assert first.startswith(value.format(context.directory))


def test_a_mount_of_a_named_directory(context: MountedContext, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    named = {"data": MountedContext(tmp_path / "data", (), tmp_path / "empty")}
    mounts = run_mounts(("--mount=from=data,target=/d",), context, "/srv", None, named)
    assert mounts == RunMounts([f"type=bind,source={tmp_path}/data,destination=/d,ro"], {}, [])


def test_a_secret_in_the_context_is_hidden_wherever_that_is_mounted(context: MountedContext) -> None:
    for flag, place in (("target=/c", "/c/sub/token"), ("source=sub,target=/s", "/s/token")):
        _, hidden = replaced(context, f"--mount=type=bind,{flag}").values
        assert hidden == f"type=bind,source={context.empty},destination={place},ro"
    assert len(replaced(context, "--mount=source=file,target=/f").values) == 1


@pytest.mark.parametrize(
    ("mount", "note"),
    [
        ("type=bind,from=tools,target=/t", "not mounted here, as it is of another image or stage"),
        ("type=bind,source=nosuch,target=/t", "not mounted here, as the build context has no such file"),
        ("type=bind,source=out,target=/t", "not mounted here, as the build context has no such file"),
        ("type=bind,source=../..,target=/t", "not mounted here, as the build context has no such file"),
        ("type=bind,source=$A,target=/t", "not mounted here, as it holds a variable"),
        ("type=ssh", "not mounted here"),
        ("type=secret,id=token", "not mounted here without --secrets"),
    ],
)
def test_what_is_missing_is_said(context: MountedContext, mount: str, note: str) -> None:
    mounts = replaced(context, f"--mount={mount}")
    assert mounts == RunMounts([], {}, [f"--mount={mount}: {note}"])


def test_secrets_that_are_asked_for(context: MountedContext, tmp_path: Path) -> None:
    flags = (
        *("--mount=type=secret,id=a", "--mount=type=secret,id=b,target=/b,mode=0440"),
        *("--mount=type=secret,id=c,env=TOKEN", "--mount=type=secret,target=/x/d,uid=7"),
        "--mount=type=secret,id=nosuch",
    )
    assert secret_ids(flags) == {"a", "b", "c", "d", "nosuch"}
    files = {name: tmp_path / name for name in "abcd"}
    for name, path in files.items():
        path.write_text(f"value of {name}")
    mounts = replaced(context, *flags, secrets=files)
    assert [shlex.split(value.replace(",", " "))[2] for value in mounts.values] == [
        *("destination=/run/secrets/a", "destination=/b", "destination=/x/d")
    ]
    assert mounts.env == {"TOKEN": "value of c"}
    assert mounts.notes == [f"{flags[-1]}: not mounted here, as project.toml names no such secret"]
    assert [oct(files[name].stat().st_mode & 0o777) for name in "abd"] == ["0o400", "0o440", "0o444"]
