"""What all commands share: arguments, help, manual pages, completion, and what is imported."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from rc_tasks.commands.cli import man
from rc_tasks.commands.cli.help import overview
from rc_tasks.commands.cli.names import completions
from rc_tasks.commands.cli.parser import UsageError, option_strings, parsed, parser_of
from rc_tasks.commands.cli.table import COMMANDS
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.doit import DOIT, Ran, doit
from tests.support.tools import require_tools

PLAN = "`doit plan NAME` shows what a run would do; -n N runs at most N steps at a time"
OURS = [entry.name for entry in COMMANDS.values() if not entry.by_doit]
FILES = {
    "base/Dockerfile": "FROM scratch\n",
    "projects/app:1/Dockerfile": "FROM base\n",
    "projects/app:latest": "-> app:1",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkout(tmp_path_factory.mktemp("checkout") / "imgs", FILES, 'runner = "local"')


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(
    name: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rc_tasks.commands.main import main

    monkeypatch.setattr(sys, "argv", ["doit", name, option])
    monkeypatch.setattr("rc_tasks.state.disk.files.with_careful_umask", lambda: None)
    try:
        status = main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 0
    told = capsys.readouterr().out
    assert f"example: {COMMANDS[name].example}" in told
    # Of doit's database, which is not ours.
    assert "--db-file" not in told and "--backend" not in told


@pytest.mark.parametrize("argv", [("help",), ("--help",), ("-h",)])
def test_help_shows_all_commands_by_purpose(root: Path, argv: tuple[str, ...]) -> None:
    ran = doit(root, *argv)
    assert ran == Ran(0, overview())
    assert re.findall(r"^(\w+):$", ran.text, re.MULTILINE) == ["build", "look", "share", "maintain"]
    for entry in COMMANDS.values():
        assert f"  {entry.name:14} {entry.purpose}\n" in ran.text and entry.example in ran.text


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ("help", "lsit"),
            "ERROR: there is no command named 'lsit'\n  next: did you mean list?\n",
        ),
        (
            ("list", "--jsn"),
            "ERROR: option --jsn not recognized\n  next: did you mean --json? `doit help list` lists the"
            " options\n",
        ),
        (
            ("--contniue",),
            "ERROR: option --contniue not recognized\n  next: did you mean --continue? `doit help run`"
            " lists the options\n",
        ),
        (("store", "x"), "ERROR: doit store takes no 'x'\n  next: `doit help store`\n"),
        (("settings", "--", "x"), "ERROR: doit settings takes no 'x'\n  next: `doit help settings`\n"),
        (
            ("history", "-n", "many"),
            "ERROR: -n: must be a whole number, not 'many'\n  next: `doit help history`\n",
        ),
        (
            ("history", "--limit=many"),
            "ERROR: --limit: must be a whole number, not 'many'\n  next: `doit help history`\n",
        ),
        (("history", "--since"), "ERROR: --since needs a value\n  next: `doit help history`\n"),
        (("-n", "app:1"), f"ERROR: -n: must be a whole number, not 'app:1'\n  next: {PLAN}\n"),
        (("-n",), f"ERROR: -n needs a value\n  next: {PLAN}\n"),
        (("--dry-run", "build"), f"ERROR: option --dry-run not recognized\n  next: {PLAN}\n"),
        (("-jx", "build"), "ERROR: -j: must be a whole number, not 'x'\n  next: `doit help run`\n"),
        (
            ("--process=x",),
            "ERROR: --process: must be a whole number, not 'x'\n  next: `doit help run`\n",
        ),
        (
            ("clean", "app:1", "--dry-run"),
            "ERROR: --dry-run comes after a name, so it is taken for one\n"
            "  next: write options before names: doit COMMAND --dry-run NAME\n",
        ),
        (("why", "ap"), "ERROR: there is no image named 'ap'"),
        (
            ("base",),
            "ERROR: there is no task or command named 'base'\n  next: did you mean build:base?\n",
        ),
    ],
)
def test_wrong_arguments_are_told(root: Path, argv: tuple[str, ...], text: str) -> None:
    ran = doit(root, *argv)
    assert ran.status == 3 and ran.text.startswith(text), ran.text


def test_words_behind_two_dashes_are_names_or_another_programs() -> None:
    assert parsed("why", ["a", "--", "-b"]).names == ["a", "-b"]
    entered = parsed("local", ["a", "--print", "--", "ls", "-h", "--force"])
    assert (entered.names, entered.command) == (["a"], ("ls", "-h", "--force"))
    assert entered.print and not entered.force
    with pytest.raises(UsageError, match="takes no 'x'"):
        parsed("store", ["--", "x"])


def test_options_may_stand_anywhere() -> None:
    args = parsed("history", ["a", "-n3", "b", "--json"])
    assert (args.names, args.limit, args.json) == (["a", "b"], 3, True)
    # No option: the build before.
    assert parsed("diff", ["a", "-1", "--json"]).names == ["a", "-1"]


@pytest.mark.parametrize("name", ["run", "info", "forget", "ignore", "clean"])
def test_help_shows_options_that_doit_takes(name: str) -> None:
    from doit.cmd_base import DodoTaskLoader

    from rc_tasks.commands import at_root, run

    command = run.Run if name == "run" else getattr(at_root, name.capitalize())
    known = command(task_loader=DodoTaskLoader(), config={}, bin_name="doit").cmdparser
    for option in option_strings(parser_of(name)):
        assert option in {"-h", "--help"} or known.get_option(option)[0] is not None, option


@pytest.mark.parametrize("name", OURS)
def test_commands_of_ours_do_not_import_doit(name: str) -> None:
    program = (
        "import sys; import rc_tasks.commands.main, rc_tasks.commands.cli.command;"
        f" from rc_tasks.commands.cli.table import COMMANDS; COMMANDS[{name!r}].load();"
        " print('doit' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version_is_ours(root: Path, word: str) -> None:
    ran = doit(root, word)
    assert ran.status == 0
    assert re.fullmatch(
        rf"rc_tasks {version('rc-tasks')}(, commit [0-9a-f]{{12}}( with changes)?)?\n", ran.text
    )


def test_options_of_doits_loader_may_stand_before_a_command(root: Path) -> None:
    plain = doit(root, "list", "--json")
    assert doit(root, "-f", "dodo.py", "list", "--json") == plain
    quiet = doit(root, "list", "-q", "--all", "build:app")
    assert doit(root, "-k", "list", "build:app", "-q", "--all") == quiet
    assert "podman:app:1" not in quiet.text and "build:app:1" in quiet.text


def test_manual_pages_are_written_for_every_command(tmp_path: Path) -> None:
    man.write(tmp_path)
    pages = {path.name for path in (tmp_path / "man1").iterdir()}
    assert pages == {"doit.1", *(f"doit-{name}.1" for name in COMMANDS)}
    history = (tmp_path / "man1/doit-history.1").read_text()
    assert "\\fB\\-n, \\-\\-limit N\\fR" in history and "doit history \\-\\-since 2d" in history
    require_tools("groff")
    for page in sorted((tmp_path / "man1").iterdir()):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-K", "utf8", "-ww", page],
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stderr, page


@pytest.mark.parametrize(
    ("word", "tasks", "expected"),
    [
        ("ap", False, ["app", "app:1", "app:latest"]),
        ("b", True, ["build", "build:app", "build:app:1", "build:app:latest", "build:base"]),
        ("podman:a", True, ["podman:app", "podman:app:1", "podman:app:latest"]),
        ("", False, ["app", "app:1", "app:latest", "base"]),
        ("x", True, []),
    ],
)
def test_names_for_completion(
    root: Path, monkeypatch: pytest.MonkeyPatch, word: str, tasks: bool, expected: list[str]
) -> None:
    monkeypatch.chdir(root / "projects")
    assert list(completions(word, tasks=tasks)) == expected


ASK = """
source "$1"; shift
COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_doit
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("doit graph --format ", ["tree", "mermaid", "dot", "svg", "json"]),
        ("doit graph --format=s", ["svg"]),
        ("doit log app:1 --f", ["--follow", "--failed"]),
        ("doit help pl", ["plan"]),
        ("doit why app:l", ["latest"]),
        ("doit new app:2 --from ba", ["base"]),
        ("doit import dod", ["dodo.py"]),
        ("doit import --dry", ["--dry-run"]),
        ("doit --cont", ["--continue"]),
    ],
)
def test_bash_completes_without_bash_completion(
    root: Path, tmp_path: Path, line: str, expected: list[str]
) -> None:
    script = tmp_path / "completion"
    script.write_text(doit(root, "tabcompletion").text)
    path = f"{Path(DOIT).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", script, line],
        cwd=root,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected and not done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_completion_can_be_read_by_their_shell(
    root: Path, tmp_path: Path, shell: str
) -> None:
    script = tmp_path / "completion"
    script.write_text(doit(root, "tabcompletion", "--shell", shell).text)
    for name in COMMANDS:
        assert name in script.read_text()
    require_tools(shell)
    subprocess.run([shell, "-n", script], check=True)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (
            ("-n", "2", "list"),
            "ERROR: `list` is a command, so it must come before any option or task\n"
            "  next: doit help list; if nothing precedes it, run ./bootstrap.sh setup\n",
        ),
        (
            ("list", "--template", "{foo}"),
            "ERROR: --template: '{foo}' cannot be filled in: 'foo'\n"
            "  next: doit list --template '{status} {name} {doc}'\n",
        ),
        (
            ("ignore",),
            "ERROR: TASK is missing\n  next: doit ignore build:NAME, or podman:, enroot: or env:NAME\n",
        ),
        (
            ("ignore", "--undo"),
            "ERROR: TASK is missing\n"
            "  next: doit ignore --undo build:NAME, or podman:, enroot: or env:NAME\n",
        ),
        (
            ("report", "-o", "site/"),
            "ERROR: site/: is a directory, not a file\n  next: name a file in it with -o\n",
        ),
        (
            ("report", "-o", "/proc/page.html"),
            "ERROR: /proc/page.html: cannot be written: No such file or directory\n"
            "  next: name another file with -o\n",
        ),
    ],
)
def test_a_mistake_is_an_error_without_a_traceback(root: Path, argv: tuple[str, ...], text: str) -> None:
    assert doit(root, *argv) == Ran(3, text)


def test_report_makes_the_directory_of_its_file(root: Path) -> None:
    ran = doit(root, "report", "-o", "site/today/index.html")
    assert ran.status == 0 and ran.text.startswith(f"{root}/site/today/index.html  ")
    assert (root / "site/today/index.html").read_text().startswith("<!")


@pytest.mark.parametrize("name", ["list", "help", "why"])
def test_a_closed_output_is_no_error(root: Path, name: str) -> None:
    words = ["why", "app:1"] if name == "why" else [name]
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", DOIT, *words],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_group_is_ignored_with_its_versions(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", FILES, 'runner = "local"')
    ran = doit(root, "ignore", "build:app")
    assert ran.status == 0
    for step in ("podman", "enroot", "env"):
        assert f"ignoring {step}:app:1\n" in ran.text


def test_options_of_make_do_what_they_do_in_make(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from rc_tasks.commands.doit_main import doit as run_doit
    from rc_tasks.commands.run import Run

    taken = {}

    def execute(_self: Run, *_args: object, **kwargs: object) -> int:
        taken.update(kwargs)
        return 0

    monkeypatch.chdir(root)
    monkeypatch.setattr(Run, "_run", execute)
    assert run_doit(["-j", "3", "--keep-going", "build:base"]) == 0
    assert (taken["num_process"], taken["continue_"]) == (3, True)
    assert run_doit(["-k", "build:base"]) == 0
    assert (taken["num_process"], taken["continue_"]) == (0, False)
    assert capfd.readouterr().err == (
        "warning: -k is not make's: it has no effect, and the run stops at the first failure\n"
        "  next: doit --continue\n"
    )


def test_an_ignored_image_is_shown_as_such_and_taken_up_again_with_its_record(tmp_path: Path) -> None:
    files = {"projects/app:1/Dockerfile": "FROM scratch\n", "projects/on:1/Dockerfile": "FROM app:1\n"}
    root = write_checkout(tmp_path / "imgs", files, 'runner = "local"')
    pretend_built(root)
    doit(root, "ignore", "build:app:1")
    for name in files:
        (root / name).write_text((root / name).read_text() + "ENV X=1\n")
    ending = "no run takes podman:app:1: `doit ignore --undo app:1` ends that"
    shown = doit(root, "list").text
    assert "ignored; Dockerfile changed" in shown
    assert "ignored, as podman:app:1 is; Dockerfile changed" in shown
    assert ending in shown
    plan = doit(root, "plan").text
    assert plan.count("ignored  ") == 6
    assert "0 steps; 6 ignored\n" in plan and ending in plan
    assert (
        "podman:on:1 is ignored, as podman:app:1 is: `doit ignore --undo"
        in doit(root, "why", "on:1").text
    )
    ran = doit(root)
    assert ran.status == 0
    assert "ignored podman:app:1  `doit ignore --undo app:1` ends that\n" in ran.text
    assert "podman:on:1  because podman:app:1 is; `doit ignore --undo app:1`" in ran.text
    assert ran.text.endswith("2 images: 2 ignored\n")
    undone = doit(root, "ignore", "--undo", "build:app:1").text
    assert "no longer ignored: podman:app:1\n" in undone
    assert "ignored" not in (text := doit(root, "list").text) and text.count("Dockerfile changed") == 2
    assert "is not ignored" in doit(root, "ignore", "--undo", "podman:app:1").text


def test_a_rolled_back_image_that_is_stale_is_shown_as_both(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", {"projects/app:1/Dockerfile": "FROM scratch\n"})
    pretend_built(root)
    record = root / ".rc/state/enroot:app:1.json"
    document = json.loads(record.read_text())
    document["instead_of"] = document["inputs"]["image"]
    record.write_text(json.dumps(document))
    (root / "projects/app:1/Dockerfile").write_text("FROM scratch\nENV X=1\n")
    assert "  rolled back; Dockerfile changed" in doit(root, "list").text


def test_after_forget_nothing_is_called_never_built(tmp_path: Path) -> None:
    root = write_checkout(tmp_path / "imgs", {"projects/app:1/Dockerfile": "FROM scratch\n"})
    pretend_built(root)
    doit(root, "forget", "build:app:1")
    plan = doit(root, "plan").text
    assert "never" not in plan.replace("never ran before", "")
    for words in ("no record of a build", "no record that image.sqsh", "no record that env.toml was"):
        assert words in plan


@pytest.mark.parametrize("name", ["build", "podman", "enroot", "env"])
def test_help_of_what_a_task_begins_with_is_that_of_a_run(root: Path, name: str) -> None:
    assert doit(root, "help", name) == doit(root, "help", "run")


# `doit` with a Ctrl-C at the moment when it imports a module, or at its end.
INTERRUPTED_AT = """
import atexit, os, signal, sys

moment = sys.argv.pop(1)

class Interrupts:
    def find_spec(self, name, *_):
        if name == moment:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from rc_tasks.commands.start import main
if moment == "the end":
    atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("moment", "status", "text"),
    [
        pytest.param("rc_tasks.commands.main", -signal.SIGINT, "", id="begins to import"),
        pytest.param("rc_tasks.errors", -signal.SIGINT, "", id="imports"),
        pytest.param("rc_tasks.commands.cli.table", 130, "interrupted\n", id="looks for the command"),
        pytest.param("rc_tasks.commands.cli.help", 130, "interrupted\n", id="imports the command"),
        pytest.param("the end", -signal.SIGINT, "", id="ends"),
    ],
)
def test_an_early_or_late_ctrl_c_is_no_traceback(moment: str, status: int, text: str) -> None:
    argv = [sys.executable, "-c", INTERRUPTED_AT, moment, "help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (status, text)


# A program that gets a signal when Python ends it.
ENDED_AT_THE_END = """
import atexit, os, runpy, signal, sys
atexit.register(lambda: os.kill(os.getpid(), signal.Signals[sys.argv.pop()]))
sys.argv = sys.argv[1:]
if sys.argv[0] == "doit":
    from rc_tasks.commands.start import main
    sys.exit(main())
runpy.run_module(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("argv", "signal_name", "status"),
    [
        # A run handles TERM from the beginning, before it looks for the tasks.
        (("doit", "build:nope"), "SIGTERM", -signal.SIGTERM),
        (("rc_tasks.steps", "podman", "nope"), "SIGTERM", 1),
        (("rc_tasks.steps", "podman", "nope"), "SIGINT", 1),
        (("rc_tasks.steps.podman.debug", "ROOT", "nope"), "SIGHUP", 125),
    ],
)
def test_a_signal_at_the_end_is_no_traceback(
    root: Path, argv: tuple[str, ...], signal_name: str, status: int
) -> None:
    words = (str(root) if word == "ROOT" else word for word in argv)
    done = subprocess.run(
        [sys.executable, "-c", ENDED_AT_THE_END, *words, signal_name],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "nope" in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_stays_ignored_where_it_was() -> None:
    # As a shell starts what runs in its background.
    argv = [sys.executable, "-c", INTERRUPTED_AT, "rc_tasks.errors", "help"]
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, overview(), "")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (("help",), 0),
        (("help", "list"), 0),
        (("--version",), 141),
        (("help", "lsit"), 3),
        (("lsit",), 141),
    ],
)
def test_a_closed_pipe_is_no_traceback(root: Path, argv: tuple[str, ...], status: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        both = subprocess.run((DOIT, *argv), cwd=root, stdout=writer, stderr=writer, check=False)
        said = subprocess.run(
            (DOIT, *argv), cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert both.returncode == status
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize("argv", [("help",), ("help", "list")])
def test_help_is_ours_when_doits_own_script_prints_it(root: Path, argv: tuple[str, ...]) -> None:
    own_script = (sys.executable, "-m", "doit", *argv)
    said = subprocess.run(own_script, cwd=root, capture_output=True, text=True, check=True)
    assert said.stdout == doit(root, *argv).text
    reader, writer = os.pipe()
    os.close(reader)
    try:
        closed = subprocess.run(
            own_script, cwd=root, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(writer)
    assert (closed.returncode, closed.stderr) == (141, "")
