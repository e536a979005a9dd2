"""project.toml, and how it is laid over the settings."""

from pathlib import Path

import pytest

from rc_tasks.errors import SettingsError
from rc_tasks.model.config import project_toml
from rc_tasks.model.config.project_toml import ProjectOptions, Secret, SshAccess
from rc_tasks.model.config.settings import EdfSettings, Entrypoint, Slurm

WHERE = "projects/a:1/project.toml"


def load(tmp_path: Path, text: str) -> ProjectOptions:
    (tmp_path / "project.toml").write_text(text)
    return project_toml.load(tmp_path / "project.toml", WHERE)


def test_missing_file_is_the_default(tmp_path: Path) -> None:
    found = project_toml.load(tmp_path / "project.toml", WHERE)
    assert found == ProjectOptions()
    assert found.slurm.apply(Slurm(account="a")) == Slurm(account="a")


def test_everything(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        """
        target = "runtime"
        secrets = ["id=hf,src=/home/me/.token", "id=wandb,env=WANDB_API_KEY"]
        smoke = [["python3", "-c", "import torch"], ["it's", "", "-x", "é\\n"]]
        smoke_timeout_s = 30
        frozen = true
        [build_args]
        TORCH = "2.6"
        JOBS = 8
        DEBUG = false
        EMPTY = ""
        [slurm]
        time_limit_min = "4:00:00"
        [edf]
        entrypoint = true
        mounts = ["/data"]
        annotations.com.hooks.cxi.enabled = "false"
        """,
    )
    assert found.build_args == {"TORCH": "2.6", "JOBS": "8", "DEBUG": "false", "EMPTY": ""}
    assert found.target == "runtime"
    assert found.secrets == (
        Secret("hf", file="/home/me/.token"),
        Secret("wandb", variable="WANDB_API_KEY"),
    )
    assert found.smoke == (("python3", "-c", "import torch"), ("it's", "", "-x", "é\n"))
    assert found.smoke_timeout_s == 30
    assert found.frozen

    slurm = found.slurm.apply(Slurm(partition="debug", time_limit_min=30))
    assert slurm == Slurm(partition="debug", time_limit_min=240)
    edf = found.edf.apply(
        EdfSettings(mounts=("/a:/a",), annotations={"x": "1", "com.hooks.cxi.enabled": "true"})
    )
    assert edf == EdfSettings(
        mounts=("/data:/data",),
        entrypoint=Entrypoint.TRUE,
        annotations={"x": "1", "com.hooks.cxi.enabled": "false"},
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("build_arg = {}", f"{WHERE}:2: build_arg is not a known key\n  next: did you mean build_args?"),
        (
            "slurm.partion = 'x'",
            "slurm.partion is not a known key\n  next: did you mean slurm.partition?",
        ),
        ("build_args.V = 1.10", "build_args: V: expected a string, found 1.1"),
        ("build_args = {'A B' = 1}", '"A B" cannot be the name of a build argument'),
        ("build_args = ['A=1']", 'expected a table of build arguments, found ["A=1"]'),
        ("target = ''", "target: expected the name of a build stage"),
        ("edf.entrypoint = 'maybe'", 'edf.entrypoint: expected "auto", "true" or "false"'),
        (
            "smoke = 'true'",
            'smoke: expected a list of commands, each a list of words: [["python3", "-c"',
        ),
        ("smoke = ['python3', '-c', 'import torch']", "smoke: expected a list of commands, each a list"),
        ("smoke = [[]]", "smoke: expected a list of commands, each a list of words"),
        ("smoke = [['true'], ['sleep', 1]]", "smoke: expected a string, found 1"),
        ("smoke = [['']]", 'smoke: "" cannot be the name of a program'),
        ("smoke = [['--help']]", 'smoke: "--help" cannot be the name of a program'),
        ("smoke = [['true', \"a\\u0000\"]]", "smoke: expected a string of UTF-8 without NUL"),
        ("smoke_timeout_s = 0", "smoke_timeout_s: expected a whole number of at least 1, found 0"),
        ("smoke_timeout = 1", "smoke_timeout is not a known key\n  next: did you mean smoke_timeout_s?"),
        ("= 1", f"{WHERE}:2: not valid TOML"),
    ],
)
def test_mistake(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, f"# a comment\n{line}\n")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "secret",
    [
        "hf_S3CR3T",
        "id=hf",
        "id=hf,value=hf_S3CR3T",
        "id=hf,src=",
        "src=/x",
        "HF_TOKEN=hf_S3CR3T",
        "id=hf,env=S3CR3T,src=/x",
        "id=hf,env=S3CR3T,env=OTHER",
        "id=../S3CR3T,env=TOKEN",
        "id=hf,type=S3CR3T,src=/x",
    ],
)
def test_secret_that_stands_in_the_file_is_refused_and_not_shown(tmp_path: Path, secret: str) -> None:
    with pytest.raises(SettingsError, match="must not stand in this file") as caught:
        load(tmp_path, f"secrets = ['{secret}']\n")
    assert "S3CR3T" not in str(caught.value)


def test_secret_as_podman_also_takes_it(tmp_path: Path) -> None:
    found = load(tmp_path, 'secrets = ["type=env,src=TOKEN,id=a", "id=b,type=file,source=~/b c=d"]\n')
    assert found.secrets == (Secret("a", variable="TOKEN"), Secret("b", file="~/b c=d"))


def test_secret_given_twice(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='secrets: "a" is given twice'):
        load(tmp_path, 'secrets = ["id=a,env=ONE", "id=a,env=TWO"]\n')


def test_ssh(tmp_path: Path) -> None:
    assert load(tmp_path, "").ssh == ()
    found = load(tmp_path, 'ssh = ["default", "git.hub=~/.ssh/a b=c,/keys/d", "work=agent.sock"]\n')
    assert found.ssh == (
        SshAccess("default"),
        SshAccess("git.hub", ("~/.ssh/a b=c", "/keys/d")),
        SshAccess("work", ("agent.sock",)),
    )


@pytest.mark.parametrize(
    "value",
    [
        '"default"',
        "[1]",
        '["S3CR3T AAAA"]',
        '["default="]',
        '["default=a,,S3CR3T"]',
        '["=S3CR3T"]',
        '["../S3CR3T=a/b"]',
        '["default=-----BEGIN\\nS3CR3T"]',
    ],
)
def test_a_key_that_stands_in_the_file_is_refused_and_not_shown(tmp_path: Path, value: str) -> None:
    expected = "ssh: expected (default, ID or ID=PATH|a list such as)"
    with pytest.raises(SettingsError, match=expected) as caught:
        load(tmp_path, f"ssh = {value}\n")
    assert "S3CR3T" not in str(caught.value)
    assert f"{WHERE}:1: " in str(caught.value)


def test_ssh_given_twice(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match='ssh: "default" is given twice'):
        load(tmp_path, 'ssh = ["default", "default=~/.ssh/id"]\n')


def test_all_problems_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, "secrets = 1\ntarget = 2\n")
    assert str(caught.value).splitlines()[0] == f"2 problems in {WHERE}"
    assert f"{WHERE}:2: target" in str(caught.value)
