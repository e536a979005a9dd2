"""The night: its script under bash, lines for cron under a shell, and the summary of what was done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from rc_tasks.commands import nightly
from rc_tasks.engine.nightly import job
from rc_tasks.engine.nightly.summary import (
    FailedStep,
    JobStart,
    NightlyEnding,
    RemainingImage,
    Summary,
    as_json,
    gather,
)
from rc_tasks.engine.session import Session
from rc_tasks.errors import RcError, UnreachableError
from rc_tasks.state import logs
from rc_tasks.state.checkout import Checkout, open_checkout
from rc_tasks.state.history import HistoryEntry, Outcome, RunHistory
from rc_tasks.state.judge import Judge
from rc_tasks.state.records.records import Step
from rc_tasks.state.records.status import State
from rc_tasks.steps.error_report import ErrorKind, ErrorReport
from rc_tasks.tools import sbatch
from rc_tasks.views import nightly_text
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import doit

GOLDEN = Path(__file__).parents[2] / "golden/nightly"
HOSTILE = 'night\'s "imgs" $HOME `id` 5% #x *ü'
SETTINGS = """
[tool.rc_tasks.nightly]
account = "a demo#1"
partition = "normal"
nodes = 2
time_limit_min = "08:00:00"
extra = ["--comment=it's \\"5%\\" $HOME \\\\ #x", "--qos=night"]
mail_type = "END,FAIL"
mail_user = "team@example.org"
"""
FILES = {
    "base/Dockerfile": "FROM debian\n",
    "projects/a:1/Dockerfile": "FROM base\n",
    "projects/b:1/Dockerfile": "FROM base\n",
    "projects/c:1/Dockerfile": "FROM b:1\n",
    "projects/d:1/Dockerfile": "FROM c:1\n",
    "projects/e:1/Dockerfile": "FROM base\n",
    "projects/wrong:1/Dockerfile": "FROM base\nNOSUCH thing\n",
}
# In place of doit: writes down how it is called, and waits like it for a signal where it is told to.
DOIT = """#!/bin/sh
printf '%s|' "$PWD" "$@" >> "$CALLS"; echo >> "$CALLS"
case "$*" in
*--begin*) exit "${BEGIN:-0}" ;;
--continue)
    trap 'sleep 0.5; echo ended >> "$CALLS"; exit 130' TERM
    [ -z "$WAIT" ] || { echo begun >> "$CALLS"; while :; do sleep 0.05; done; }
    exit "${STATUS:-0}" ;;
esac
exit 5
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout under a name that every quoting stumbles over, built but for `a:1` and below `b:1`."""
    root = write_checkout(tmp_path / HOSTILE, FILES, SETTINGS)
    return open_checkout(root, {})


@pytest.fixture
def fake_doit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in doit's place; its path has a space."""
    path = tmp_path / "a venv" / "doit"
    path.parent.mkdir()
    path.write_text(DOIT)
    path.chmod(0o755)
    monkeypatch.setattr(job, "program", lambda: str(path))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return path


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().splitlines() if path.exists() else []


def batch(checkout: Checkout, **variables: str) -> "subprocess.Popen[bytes]":
    """The script as Slurm starts it: a copy somewhere else, by its own first line."""
    copy = checkout.root.parent / "slurm_script"
    copy.write_text(job.script(checkout))
    copy.chmod(0o755)
    return subprocess.Popen((copy,), cwd="/", env={**os.environ, **variables})


def test_the_script_is_what_it_was(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "program", lambda: "/venv/bin/doit")
    before = os.umask(0o002)
    try:
        found = job.script(checkout, checkout.nightly_logs / "TIME", after="17")
    finally:
        os.umask(before)
    name = job.job_name(checkout.root)
    found = found.replace(str(checkout.root.parent), "/tmp").replace(name.rpartition(".")[2], "HASH")
    path = GOLDEN / "script.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text()


def test_the_script_is_good_bash(checkout: Checkout) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ("shellcheck", "--severity=warning", "-"),
        input=job.script(checkout),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("variables", "finish"),
    [
        ({}, "0|--ending|none|"),
        ({"STATUS": "2"}, "2|--ending|none|"),
        ({"BEGIN": "3"}, "3|--ending|none|"),
    ],
    ids=["good", "failed", "refused"],
)
def test_the_script_begins_runs_and_finishes(
    checkout: Checkout, fake_doit: Path, tmp_path: Path, variables: dict[str, str], finish: str
) -> None:
    assert batch(checkout, **variables).wait(30) == 5, "the exit status of the job is that of --finish"
    root = str(checkout.root)
    expected = [f"{root}|nightly|--begin|", f"{root}|--continue|", f"{root}|nightly|--finish|{finish}"]
    if "BEGIN" in variables:
        del expected[1]
    assert calls(tmp_path) == expected


@pytest.mark.parametrize(
    ("number", "ending"),
    [(signal.SIGUSR1, "time"), (signal.SIGTERM, "cancelled")],
    ids=["time", "cancel"],
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_ends_the_run_in_order(
    checkout: Checkout, fake_doit: Path, tmp_path: Path, number: int, ending: str, times: int
) -> None:
    process = batch(checkout, WAIT="1")
    deadline = time.monotonic() + 30
    while "begun" not in calls(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(number)
        # The next one comes while doit ends its steps.
        time.sleep(0.1)
    assert process.wait(30) == 5
    *_, ended, last = calls(tmp_path)
    assert ended == "ended"
    assert last.endswith(f"|nightly|--finish|130|--ending|{ending}|")


def test_cron_and_scrontab_run_it_in_the_checkout(
    checkout: Checkout, fake_doit: Path, tmp_path: Path
) -> None:
    line = nightly_text.command_line(
        checkout.root, str(fake_doit), 0o027, ["/opt/a b/bin", "/bin"], "/c 5%"
    )
    cron = nightly_text.crontab("2:05", line)
    assert cron.startswith("5 2 * * * ")
    assert "PATH='/opt/a b/bin:/usr/bin:/bin'" in cron
    # What cron does with a line (crontab(5)).
    command = cron.split(maxsplit=5)[5].replace("\\%", "\0")
    assert "%" not in command
    scron = nightly_text.scrontab("2:05", line, "#SBATCH --ntasks=1\n")
    assert scron.splitlines()[0] == "#SCRON --ntasks=1"
    for each in (command.replace("\0", "%"), scron.splitlines()[1].split(maxsplit=5)[5]):
        subprocess.run(("/bin/sh", "-c", each), cwd="/", check=False, timeout=30)
    assert calls(tmp_path) == [f"{checkout.root}|nightly|"] * 2


def test_scrontab_is_shown_where_the_site_has_it(checkout: Checkout, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, says in (("scrontab", ""), ("scontrol", "ScronParameters         = enable,explicit")):
        (programs / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (programs / name).chmod(0o755)
    path = os.environ["PATH"]
    assert "#SCRON" not in doit(checkout.root, "nightly", "--cron").text
    ran = doit(
        checkout.root, "nightly", "--cron", environ={"PATH": f"{programs}:{path}", "RC_SOURCE": "x"}
    )
    assert ran.status == 0
    told = ran.text.splitlines()
    assert [line.partition(" ")[0] for line in told if line.startswith(("0", "#SCRON"))] == [
        "0",
        *["#SCRON"] * 9,
        "0",
    ]
    assert '#SCRON "--account=a demo#1"' in told
    assert "5%%" in next(line for line in told if "--output=" in line)
    assert "warning: cron does not set RC_SOURCE" in ran.text


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (("sleep", "1000"), "the hook failed: no answer within 0.2 s from: sleep 1000"),
        (("nosuch",), "the hook failed: "),
        (("sh", "-c", "echo why >&2; exit 3"), "the hook failed with exit status 3: sh -c "),
    ],
    ids=["hangs", "missing", "fails"],
)
def test_a_hook_that_does_not_work_is_told(
    checkout: Checkout,
    hook: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nightly, "_HOOK_TIMEOUT_S", 0.2)
    changed = replace(checkout.settings, nightly=replace(checkout.settings.nightly, hook=hook))
    nightly._call_hook(replace(checkout, settings=changed), "{}")
    assert f"warning: {words}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('[tool.rc_tasks.nightly]\nextra = ["--comment=a\\nb"]', "take out the line break"),
        ("[tool.rc_tasks.nightly]\ntime_limit_min = 5", "make nightly.signal_s much less than that"),
        ('[tool.rc_tasks.nightly]\nat = "24:00"', 'expected a time of day such as "02:00"'),
        ("[tool.rc_tasks.nightly]\nsignal_s = 0", "nightly.signal_s"),
        ("[tool.rc_tasks.nightly]\nmail = 1", "nightly.mail"),
    ],
    ids=["line-break", "signal-before-the-beginning", "no-time", "no-signal", "unknown"],
)
def test_bad_settings(tmp_path: Path, settings: str, words: str) -> None:
    root = write_checkout(tmp_path / "imgs", FILES, settings)
    ran = doit(root, "nightly", "--print")
    assert ran.status == 3
    assert words in ran.text
    assert "Traceback" not in ran.text


@pytest.mark.parametrize("name", ["back\\slash", "line\nbreak"])
def test_a_path_that_slurm_cannot_log_to_is_refused(tmp_path: Path, name: str) -> None:
    root = write_checkout(tmp_path / name, {"a/Dockerfile": "FROM debian\n"})
    with pytest.raises(RcError, match="in the path of this checkout"):
        job.script(open_checkout(root, {}))


def test_without_slurm_cron_is_named(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", FILES)
    ran = doit(root, "nightly", environ={"RC_RUNNER": "local"})
    assert ran.status == 3
    assert "next: without Slurm, `doit --continue` in cron does the same" in ran.text
    begin = doit(root, "nightly", "--begin")
    assert "only the script of the nightly job may use this option" in begin.text
    assert "doit nightly takes no 'a:1'" in doit(root, "nightly", "a:1").text


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--nodes=1", "#SBATCH --nodes=1"),
        ("--a=b c", '#SBATCH "--a=b c"'),
        ('--a=\\"', '#SBATCH "--a=\\\\\\""'),
        ("--a=#$'", '#SBATCH "--a=#$\'"'),
        ("--a=ü", '#SBATCH "--a=ü"'),
    ],
)
def test_directives(option: str, line: str) -> None:
    assert sbatch.directives([option]) == f"{line}\n"


BEGAN = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


def entry(image: str, step: Step, outcome: Outcome, **changes: object) -> HistoryEntry:
    found = HistoryEntry(
        "run", image, step, outcome, BEGAN.isoformat(), 60.0, 1.0, node="n1", job_id="18"
    )
    return replace(found, **changes)


def gathered(checkout: Checkout, entries: list[HistoryEntry], **changes: object) -> Summary:
    for number, each in enumerate(entries):
        began = BEGAN + timedelta(seconds=number)
        RunHistory(checkout.history, "run").append(replace(each, started_at=began.isoformat()))
    begun = JobStart("18", BEGAN.isoformat(), "17", "a" * 40, "b" * 40)
    first = JobStart("17", (BEGAN - timedelta(hours=4)).isoformat())
    values: dict[str, object] = {"ending": "none", "status": 0, "ended_at": "2026-11-22T03:12:00+00:00"}
    opened = Session(checkout, Judge(checkout))
    return gather(opened, begun, first, nodes=["n2"], **{**values, **changes})


def night_of(checkout: Checkout) -> Summary:
    pretend_built(checkout.root, ["base", "a:1"])
    log = checkout.root / ".rc/logs/b:1/podman/x.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "$ python\nSTEP 1/2: FROM base\nSTEP 2/2: RUN make\nmake: \x1b[31m*** no rule\n"
        "podman build failed with exit status 2\n"
    )
    failed = ErrorReport(ErrorKind.FAILED, "podman build failed with exit status 2", after_tool=True)
    failed.write(logs.error_report(log))
    error = f"{checkout.root}/projects/b:1/Dockerfile: RUN make failed"
    return gathered(
        checkout,
        [
            entry("base", Step.ENV, Outcome.DONE),
            entry("a:1", Step.PODMAN, Outcome.RETRIED, node="n3", error="n3 failed"),
            entry("a:1", Step.PODMAN, Outcome.DONE, job_id="17", size_bytes=9),
            entry("a:1", Step.ENROOT, Outcome.DONE, size_bytes=323_000_000),
            entry("b:1", Step.PODMAN, Outcome.FAILED, log=".rc/logs/b:1/podman/x.log", error=error),
            entry("e:1", Step.PODMAN, Outcome.FAILED, node="", error="e:1 was not started: too late"),
            entry("d:1", Step.PODMAN, Outcome.FAILED, job_id="99", error="somebody else's run"),
        ],
        status=1,
    )


def test_the_summary_says_what_became_of_each_image(checkout: Checkout) -> None:
    found = night_of(checkout)
    assert [(each.name, each.duration_s, each.size_bytes) for each in found.built] == [
        ("a:1", 120.0, 323_000_000)
    ]
    assert found.env_only == ("base",)
    bad, broken = found.failed
    assert (bad.name, bad.step, bad.error) == (
        "b:1",
        "podman",
        "projects/b:1/Dockerfile: RUN make failed",
    )
    assert bad.last_lines == ("STEP 2/2: RUN make", "make: *** no rule")
    assert (broken.name, broken.step) == ("wrong:1", "")
    assert [(each.name, each.because_of) for each in found.not_tried] == [("c:1", "b:1"), ("d:1", "b:1")]
    assert found.left == (
        RemainingImage("e:1", State.MISSING, ("e:1 was not started: too late", "never built")),
    )
    assert found.ending is NightlyEnding.TIME, "too little time was left to start a step"
    assert found.nodes == ("n1", "n3", "n2")
    assert (found.images, found.fresh) == (7, 2)
    assert not found.is_good


def test_the_summary_for_people_and_for_programs(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    found = replace(
        night_of(checkout), root="/imgs ü", resubmitted_as="19", log=".rc/logs/nightly/x.log"
    )
    subject, text = nightly_text.subject(found), nightly_text.text(found)
    assert subject == "imgs ü: time ran out, 1 built, 1 env.toml only, 2 failed, 2 not tried, 1 left"
    told = json.dumps(as_json(found, subject, "TEXT"), indent=1, ensure_ascii=False)
    for name, now in (("summary.txt", text), ("summary.json", f"{told}\n")):
        path = GOLDEN / name
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(now)
        assert now == path.read_text()


@pytest.mark.parametrize(
    ("seen", "status", "outcome", "expected"),
    [
        ("none", 0, Outcome.DONE, NightlyEnding.FINISHED),
        ("none", 2, Outcome.FAILED, NightlyEnding.FINISHED),
        ("time", 130, Outcome.INTERRUPTED, NightlyEnding.TIME),
        ("cancelled", 130, Outcome.INTERRUPTED, NightlyEnding.CANCELLED),
    ],
)
def test_how_it_ended(
    checkout: Checkout, seen: str, status: int, outcome: Outcome, expected: NightlyEnding
) -> None:
    found = gathered(checkout, [entry("a:1", Step.PODMAN, outcome)], ending=seen, status=status)
    assert found.ending is expected
    if expected is NightlyEnding.TIME:
        assert ("a:1", "interrupted") in [(each.name, each.reasons[0]) for each in found.left]


def test_a_signal_that_comes_when_all_is_done_changes_nothing(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", {"a/Dockerfile": "FROM debian\n"})
    pretend_built(root)
    found = gathered(open_checkout(root, {}), [], ending="time", status=0)
    assert (found.ending, found.is_good, found.left) == (NightlyEnding.FINISHED, True, ())
    assert nightly_text.subject(found) == "imgs: nothing to do"


def test_a_refused_night_says_why(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", {"a/Dockerfile": "FROM debian\n"})
    checkout = open_checkout(root, {})
    begun = JobStart("18", BEGAN.isoformat(), error="imgs: 1 file differs\n  next: commit it")
    opened = Session(checkout, Judge(checkout))
    found = gather(
        opened, begun, begun, ending="none", status=3, ended_at=BEGAN.isoformat(), nodes=["n1"]
    )
    assert found.ending is NightlyEnding.REFUSED
    assert not found.is_good
    assert nightly_text.subject(found) == "imgs: not run"
    assert "1 file differs\n  next: commit it\n" in nightly_text.text(found)
    assert as_json(found, "", "")["error"] == begun.error


def test_no_summary_breaks_lines_or_terminals() -> None:
    failed = FailedStep("a\x1b[2J", "podman", "one\x07\n  next: two", ("\x1b[31m\r", "tab\t"), "log\n")
    begun = JobStart("18", BEGAN.isoformat())
    empty: dict[str, object] = dict.fromkeys(
        ("nodes", "built", "env_only", "adopted", "not_tried", "left"), ()
    )
    found = Summary(
        "/r",
        begun,
        BEGAN.isoformat(),
        NightlyEnding.FINISHED,
        1,
        images=1,
        fresh=0,
        failed=(failed,),
        **empty,
    )
    text = nightly_text.text(found)
    assert text.replace("\n", "").isprintable()
    assert "  next: two\n" in text
    assert to_builtins(found)["failed"][0]["log"] == "log\n"


def test_the_program_is_the_one_of_this_python() -> None:
    assert Path(job.program()).parent == Path(sys.executable).parent


def test_a_night_that_was_taken_without_an_answer_is_not_submitted_twice(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def submit(*_: object) -> str:
        asked.append("submit")
        raise UnreachableError("Slurm cannot be reached for the nightly job")

    monkeypatch.setattr("rc_tasks.tools.slurm.POLL_S", 0.01)
    monkeypatch.setattr("rc_tasks.tools.slurm.answers", lambda: True)
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    monkeypatch.setattr(sbatch, "submit", submit)
    queue = [sbatch.Job("6", "RUNNING", "ada"), sbatch.Job("7", "PENDING", "ada")]
    monkeypatch.setattr(sbatch, "jobs", lambda _name: queue)
    assert job.resubmit(checkout, "6").job_id == "7"
    assert asked == ["submit"]
