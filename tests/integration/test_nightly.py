"""`doit nightly` on a real Slurm cluster: a whole night with its end by time, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rc_tasks.engine.nightly import job as night
from rc_tasks.state import history
from rc_tasks.state.history import Outcome
from rc_tasks.state.records.records import Step
from tests.support.checkouts import pretend_built, write_checkout
from tests.support.cluster import ACCOUNT, Cluster
from tests.support.doit import DOIT, doit
from tests.support.runs import PATIENCE_S, Site, until
from tests.support.storage import remove_storage

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

FILES = {
    "base/Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\n"
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]\nENV PATH=/bin\n',
    "projects/bad:1/Dockerfile": "FROM base\nRUN echo oh no; exit 3\n",
    "projects/child:1/Dockerfile": "FROM bad:1\nRUN true\n",
    ".gitignore": ".rc/\n*.sqsh\nimage.json\n__pycache__/\n",
}
# Whoever waits for the file must not read half of it.
HOOK = """\
#!/bin/sh
cat > "$SIGNS/new" && mv "$SIGNS/new" "$SIGNS/hook.$SLURM_JOB_ID.json"
"""


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    """A checkout in which nothing is built; its path has a space, a percent sign and a quote."""
    root = write_checkout(tmp_path / "it's imgs ä 5%", FILES)
    shutil.copy("/bin/busybox", root / "base/busybox")
    signs = tmp_path / "signs"
    signs.mkdir()
    hook = tmp_path / "hook"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    # /dev/shm as on diskless nodes, and a short name: podman's paths may be 50 characters long.
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/dev/shm") as storage:
        environ = {
            **cluster.environment,
            "SIGNS": str(signs),
            "RC_SLURM_ACCOUNT": ACCOUNT,
            "RC_PODMAN_STORAGE": f"{storage}/${{SLURMD_NODENAME}}",
            "RC_PODMAN_ISOLATION": "chroot",
            "RC_PODMAN_VOLUMES": f"{signs}:/signs",
            "RC_NIGHTLY_HOOK": str(hook),
        }
        yield Site(root, signs, environ)
        cluster.end_jobs()
        for node in Path(storage).iterdir():
            remove_storage(node)


def git(directory: Path, *argv: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    argv = ("git", *who, "-C", str(directory), *argv)
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def commit(root: Path) -> str:
    """Commit all that there is; the commit."""
    if not (root / ".git").exists():
        git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=more")
    return git(root, "rev-parse", "HEAD")


def with_origin(root: Path) -> Path:
    """Give a checkout an upstream; a second clone of that."""
    origin, other = root.parent / "origin.git", root.parent / "other"
    git(root, "clone", "--quiet", "--bare", ".", str(origin))
    git(root, "remote", "add", "origin", str(origin))
    git(root, "fetch", "--quiet", "origin")
    git(root, "branch", "--quiet", "--set-upstream-to=origin/main")
    git(root, "clone", "--quiet", str(origin), str(other))
    return other


def submit(site: Site, **variables: str) -> str:
    """The job that `doit nightly` submits."""
    first, *_ = site.run("nightly", **variables).splitlines()
    assert first.startswith("submitted job "), first
    return first.split()[2].rstrip(":")


def jobs(cluster: Cluster, site: Site) -> dict[str, str]:
    """The jobs of this checkout that have not ended, with their states."""
    name = f"--name={night.job_name(site.root)}"
    told = cluster.client("squeue", "--noheader", name, "--format=%A %T").stdout
    return dict(line.split() for line in told.splitlines())


def ended(cluster: Cluster, job: str) -> str:
    """Wait for the end of a job; its state."""

    def state() -> str:
        told = cluster.client("scontrol", "show", "job", job).stdout
        return told.partition("JobState=")[2].split()[0]

    until(lambda: state() not in {"PENDING", "RUNNING", "COMPLETING"}, state)
    return state()


def log(site: Site, job: str) -> str:
    (path,) = (site.root / ".rc/logs/nightly").glob(f"*.{job}.log")
    return path.read_text()


def summary(site: Site, job: str) -> dict[str, Any]:
    """What the hook was given at a job's end, waited for."""
    path = site.signs / f"hook.{job}.json"
    until(path.exists, lambda: log(site, job))
    found = json.loads(path.read_text())
    assert json.loads((site.root / f".rc/nightly/{job}.json").read_text()) == found
    assert isinstance(found, dict)
    return found


@pytest.mark.podman
def test_a_night_that_runs_out_of_time_goes_on_in_one_more_job(site: Site, cluster: Cluster) -> None:
    site.waiting("slow:1")
    before = commit(site.root)
    # Slurm looks at time limits every half minute: the signal comes after 15 s to 45 s.
    limits = {"RC_NIGHTLY_TIME_LIMIT_MIN": "1", "RC_NIGHTLY_SIGNAL_S": "45"}
    job = submit(site, RC_NIGHTLY_MAIL_TYPE="END,FAIL", RC_NIGHTLY_MAIL_USER="team@site", **limits)
    until(lambda: jobs(cluster, site).get(job) == "RUNNING")
    refused = site.run("nightly", status=3)
    assert f"a nightly run of this checkout is running: job {job} of " in refused
    assert f"next: wait for it, or end it: scancel {job}" in refused

    until(lambda: len(jobs(cluster, site)) > 1, lambda: log(site, job))
    first = summary(site, job)
    assert first["ending"] == "time", log(site, job)
    assert (first["after"], first["commit"]) == (None, before)
    assert "slow:1" in [left["name"] for left in first["left"]]
    following = first["resubmitted_as"]
    assert f"goes on as job {following}\n" in first["text"]

    # It begins though env.toml files of the first one lie about.
    site.go()
    until(lambda: site.logs("slow:1", Step.ENROOT), lambda: log(site, following))
    second = summary(site, following)
    assert ended(cluster, following) == "FAILED", "mail_type=FAIL is to tell of images that failed"
    assert (second["ending"], second["after"], second["resubmitted_as"]) == ("finished", job, None)
    assert [built["name"] for built in second["built"]] == ["base", "slow:1"]
    assert [(failed["name"], failed["step"]) for failed in second["failed"]] == [("bad:1", "podman")]
    assert "oh no" in second["failed"][0]["last_lines"]
    assert second["not_tried"] == [{"name": "child:1", "because_of": "bad:1"}]
    assert (second["left"], second["images"], second["fresh"]) == ([], 4, 2)
    assert log(site, following).endswith(second["text"])
    assert (site.root / ".rc/report.html").read_text().startswith("<!DOCTYPE html>")
    assert jobs(cluster, site) == {}

    mail = cluster.directory / "mail.log"
    until(lambda: mail.exists() and f"Job_id={following} " in mail.read_text())
    (line,) = (each for each in mail.read_text().splitlines() if f"Job_id={following} " in each)
    assert "FAILED" in line
    assert line.endswith(" team@site")

    entries = list(history.entries(site.root / ".rc/history"))
    assert {entry.job_id for entry in entries} == {job, following}
    assert {entry.node for entry in entries} <= set(cluster.node_names)
    stopped = [each for each in entries if each.outcome is Outcome.INTERRUPTED]
    # Which steps the clock stopped depends on how fast the machine is.
    assert {each.job_id for each in stopped} <= {job}
    plain_doit_in_a_batch_job(site)


def plain_doit_in_a_batch_job(site: Site) -> None:
    """What docs/how-to/nightly.md shows for who wants no more than cron and doit."""
    site.image("slow:1", "echo again > /made")
    out = site.signs / "wrapped.out"
    argv = ("sbatch", "--wait", "--nodes=1", "--exclusive", f"--account={ACCOUNT}", f"--output={out}")
    subprocess.run(
        (*argv, f"--wrap='{DOIT}' --continue"),
        cwd=site.root,
        env={**os.environ, **site.environ},
        check=False,
        timeout=3 * PATIENCE_S,
    )
    assert re.search(r"done +enroot:slow:1 .* on node", out.read_text()), out.read_text()
    assert not re.search("granted|queue", out.read_text()), "it takes no allocation of its own"


def test_scancel_is_the_end(site: Site, cluster: Cluster) -> None:
    wait = "RUN echo > /signs/base; until [ -e /signs/go ]; do sleep 0.1; done\n"
    site.root.joinpath("base/Dockerfile").write_text(FILES["base/Dockerfile"] + wait)
    commit(site.root)
    job = submit(site)
    until(lambda: site.begun("base"), lambda: log(site, job))
    cluster.client("scancel", job)
    assert ended(cluster, job) == "CANCELLED"
    assert jobs(cluster, site) == {}


def test_it_pulls_when_it_begins_and_a_hook_that_fails_loses_nothing(
    site: Site, cluster: Cluster
) -> None:
    shutil.rmtree(site.root / "projects")
    pretend_built(site.root)
    before = commit(site.root)
    other = with_origin(site.root)
    (other / "new.txt").write_text("new")
    now = commit(other)
    git(other, "push", "--quiet")
    hook = site.signs / "failing"
    hook.write_text("#!/bin/sh\necho no mail today >&2\nexit 7\n")
    hook.chmod(0o755)
    job = submit(site, RC_NIGHTLY_PULL="true", RC_NIGHTLY_HOOK=str(hook))
    assert ended(cluster, job) == "COMPLETED", log(site, job)
    assert git(site.root, "rev-parse", "HEAD") == now
    text = log(site, job)
    assert f"pulled from {before} to {now}\n" in text
    assert f"warning: the hook failed with exit status 7: {hook}\n  | no mail today\n" in text
    assert ": nothing to do\n" in text
    found = json.loads((site.root / f".rc/nightly/{job}.json").read_text())
    assert (found["commit_before"], found["commit"]) == (before, now)
    assert (site.root / ".rc/report.html").exists()


def test_a_checkout_that_is_dirty_or_has_diverged_is_refused(site: Site, cluster: Cluster) -> None:
    commit(site.root)
    (site.root / "new ä.txt").touch()
    told = site.run("nightly", status=3)
    assert "1 file differs from what is committed" in told
    assert "  | ?? " in told
    assert "`nightly.allow_dirty = true` allows the nightly run all the same" in told

    other = with_origin(site.root)
    commit(site.root)
    (other / "theirs").touch()
    commit(other)
    git(other, "push", "--quiet")
    told = site.run("nightly", status=3, RC_NIGHTLY_PULL="true")
    assert "have diverged: 1 commit(s) here alone, 1 there alone" in told
    assert jobs(cluster, site) == {}

    # What became of it while the job waited counts as well.
    git(site.root, "reset", "--quiet", "--hard", "origin/main")
    job = submit(site, RC_NIGHTLY_EXTRA="--hold")
    (site.root / "new ä.txt").touch()
    cluster.client("scontrol", "release", job)
    found = summary(site, job)
    assert ended(cluster, job) == "FAILED"
    assert found["ending"] == "refused"
    assert "1 file differs" in found["error"]
    assert "start " not in log(site, job)


def test_two_at_once_make_one_job(site: Site, cluster: Cluster) -> None:
    commit(site.root)
    environ = {**site.environ, "RC_NIGHTLY_EXTRA": "--hold"}
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda _: doit(site.root, "nightly", environ=environ), range(2)))
    assert sorted(each.status for each in ran) == [0, 3], "\n".join(each.text for each in ran)
    (job,) = jobs(cluster, site)
    assert any(f"a nightly run of this checkout is pending: job {job} of " in each.text for each in ran)


def test_what_slurm_refuses_is_told_with_the_nights_own_settings(site: Site) -> None:
    commit(site.root)
    told = site.run("nightly", status=3, RC_NIGHTLY_PARTITION="nosuch")
    assert "`nightly.partition`" in told
    told = site.run("nightly", status=3, RC_NIGHTLY_ACCOUNT="nosuch")
    assert "`nightly.account`" in told
