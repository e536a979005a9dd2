"""The trial of a RUN and of a container: whole texts, with a made-up podman."""

import os
from pathlib import Path

import pytest

from rc_tasks.errors import RcError
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.steps.container import failure
from rc_tasks.steps.doctor import check, trial
from rc_tasks.steps.doctor.trial import StaticProgram
from tests.support.checkouts import write_checkout

# podman whose crun works nowhere; RUNC, CHROOT and START say what works besides.
PODMAN = """#!/bin/sh
says() { echo "$1" >&2; exit 125; }
case " $* " in
    *" --version "*) echo podman version 4.3.1;;
    *" info "*) echo '{"host": {}, "store": {"graphDriverName": "overlay"}}';;
    *" build "*)
        case " $* " in
            *" --runtime runc "*) [ "$RUNC" ];;
            *" --isolation chroot "*) [ "$CHROOT" ];;
            *) false;;
        esac || {
            echo "STEP 3/3: RUN [...]"
            crun="error running container: from /usr/bin/crun creating container for"
            echo "$crun [/busybox true]: no cgroups" >&2
            echo ": exit status 1" >&2
            says 'Error: building at STEP "RUN /busybox true": while running runtime: exit status 1'
        }
        while [ "$1" != --iidfile ]; do shift; done; echo 0123 > "$2";;
    *" run "*)
        case " $* " in *" --runtime runc "*) [ "$RUNC" ];; *) false;; esac ||
            says 'Error: OCI runtime error: crun: no cgroups';;
esac
"""
RUN = (
    "problem no RUN works: error running container: from /usr/bin/crun creating container: no cgroups\n"
)
START = "warning no container starts with podman: Error: OCI runtime error: crun: no cgroups\n"
CURE = """\
    it works with podman.{}: write that below [tool.rc_tasks] in pyproject.toml
    for every clone, or into rc_tasks.toml for this one (`./bootstrap.sh setup` does)
"""
SITE = "    show this to the site, with `podman info`\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, script in {"podman": PODMAN, "crun": "#!/bin/sh\n", "runc": "#!/bin/sh\n"}.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(trial, "static_program", lambda: StaticProgram(Path("/bin/true"), "true"))
    return open_checkout(write_checkout(tmp_path / "imgs", {}, 'runner = "local"'), {})


def told(checkout: Checkout) -> str:
    """What `doit doctor` shows of the trial."""
    return "".join(
        f"{finding.level} {finding.what}\n"
        + "".join(f"    {line}\n" for line in finding.hint.splitlines())
        for finding in check.findings(checkout)
        if finding.what.startswith(("a RUN", "no RUN", "a container", "no container"))
    )


@pytest.mark.parametrize(
    ("works", "expected"),
    [
        pytest.param(
            {"RUNC": "1", "CHROOT": "1"},
            RUN + CURE.format('runtime = "runc"') + START + CURE.format('runtime = "runc"'),
            id="another runtime",
        ),
        pytest.param(
            {"CHROOT": "1"}, RUN + CURE.format('isolation = "chroot"') + START + SITE, id="chroot alone"
        ),
        pytest.param({}, RUN + SITE + START + SITE, id="nothing"),
    ],
)
def test_where_no_run_works_the_settings_with_which_it_does_are_told(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, works: dict[str, str], expected: str
) -> None:
    for name, value in works.items():
        monkeypatch.setenv(name, value)
    assert told(checkout) == expected


def test_those_settings_are_written_for_this_clone_and_then_it_works(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUNC", "1")
    file = checkout.root / "rc_tasks.toml"
    file.write_text("# mine\n[slurm]\ncpus = 2\n")
    trial.write_settings(checkout)
    assert (
        capsys.readouterr().out
        == f'podman works here with podman.runtime = "runc": written into {file}\n'
    )
    assert file.read_text().startswith("# mine\n[slurm]\ncpus = 2\n")
    again = open_checkout(checkout.root, {})
    assert again.settings.slurm.cpus == 2
    assert told(again) == "ok a RUN works\nok a container starts with podman\n"
    trial.write_settings(again)
    assert capsys.readouterr().out == ""


def test_where_only_chroot_works_no_container_starts(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHROOT", "1")
    trial.write_settings(checkout)
    assert open_checkout(checkout.root, {}).settings.podman.isolation == "chroot"
    assert capsys.readouterr().out.endswith(
        "podman starts no containers here: Error: OCI runtime error: crun: no cgroups\n"
    )


def test_nothing_is_written_where_nothing_works(checkout: Checkout) -> None:
    with pytest.raises(RcError, match=r"^podman cannot carry out a RUN here: error running container"):
        trial.write_settings(checkout)
    assert not (checkout.root / "rc_tasks.toml").exists()


def test_without_a_static_program_nothing_can_be_tried(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "static_program", lambda: None)
    assert told(checkout) == f"warning {trial.NOT_TRIED}\n    install busybox-static, and run it again\n"


def test_a_program_that_needs_its_libraries_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_PLACES", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "busybox").symlink_to("/bin/ls")
    (tmp_path / "ldconfig").write_text("#!/bin/sh\n")
    (tmp_path / "ldconfig").chmod(0o755)
    assert trial.static_program() is None


@pytest.mark.skipif(not os.access("/bin/busybox", os.X_OK), reason="needs busybox-static")
def test_a_static_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = trial.static_program()
    assert program is not None
    assert program.argv == ("/busybox", "true")


@pytest.mark.parametrize(
    ("status", "line", "at_fault"),
    [
        (126, "Error: OCI runtime error: crun: cgroups in hybrid mode not supported", True),
        (
            126,
            "Error: crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted: OCI permission denied",
            True,
        ),
        (
            127,
            'Error: runc: runc create failed: unable to start container process: exec: "nosuch":'
            " executable file not found in $PATH: OCI runtime attempted to invoke a command that was not"
            " found",
            False,
        ),
        (
            126,
            'Error: runc: runc create failed: unable to start container process: exec: "/etc/x":'
            " permission denied: OCI permission denied",
            False,
        ),
        (1, "Error: OCI runtime error: a program may print this", False),
        (127, "Error: no such command", False),
    ],
)
def test_a_runtime_that_starts_nothing_leads_to_doctor(status: int, line: str, at_fault: bool) -> None:
    error = failure.runtime_error(status, (line,))
    assert (error is not None) is at_fault
    if error is not None:
        assert str(error) == (
            f"{os.uname().nodename}: podman starts no containers here\n"
            "  next: `doit doctor` tries it, and names the settings that work"
        )
