"""Freshness of images and their steps, with the causes; `doit list` and the build both use it."""

import contextlib
import os
from collections.abc import Callable, Mapping

from msgspec import DecodeError
from msgspec.structs import replace

from rc_tasks.errors import EdfError, RcError
from rc_tasks.model.graph import smoke
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.graph.project import (
    ARTIFACT,
    DOCKERFILES,
    EDF,
    IMAGE_JSON,
)
from rc_tasks.state import logs
from rc_tasks.state.adoption.offers import Offers
from rc_tasks.state.adoption.official import official_of
from rc_tasks.state.bases.pins import comparable
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk import locks, reading
from rc_tasks.state.edf.values import COMMON, edf_inputs
from rc_tasks.state.listings import Listings
from rc_tasks.state.records.digests import text_digest
from rc_tasks.state.records.inputs import (
    CHANGED_MEANWHILE,
    CONTEXT,
    PIN,
    is_file,
    is_whole,
    other_inputs,
    with_files,
)
from rc_tasks.state.records.miswritten import CONTENT, SETTINGS, doubtful, miswritten, squash_inputs
from rc_tasks.state.records.records import Facts, Failure, Record, Step
from rc_tasks.state.records.rollback import rolled_back_from
from rc_tasks.state.records.status import (
    GONE,
    NEVER,
    OFFICIAL,
    SMOKE,
    STORE,
    Cause,
    ImageStatus,
    State,
    StepStatus,
    changed,
    first_line,
    leading_causes,
)
from rc_tasks.state.rights import closed_files, is_official
from rc_tasks.util.json_decode import load
from rc_tasks.util.safe_read import unreadable
from rc_tasks.util.text import local_time

# Causes that rebuild a frozen image too: the published image itself is missing or damaged.
_DAMAGED_OUTPUT = frozenset({GONE, ARTIFACT, IMAGE_JSON, Step.PODMAN})

# What each step without a record is called: if it never ran, and if something shows that it has run,
# such as one of these files.
_UNRECORDED = {
    Step.PODMAN: ("never built", "no record of a build", (ARTIFACT, IMAGE_JSON)),
    Step.ENROOT: ("never published", "no record that image.sqsh was published", (ARTIFACT, IMAGE_JSON)),
    Step.ENV: ("env.toml was never written", "no record that env.toml was written", (EDF,)),
}


class Judge:
    """Judges the steps and images of one checkout, and rereads the records after each run of a step."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._steps: dict[tuple[Step, str], StepStatus] = {}
        self.listings = Listings(checkout.digests)
        official = official_of(checkout)
        # None in the official checkout itself.
        self.offers = (
            Offers(checkout, official, self.step, self._inputs_after_adoption, self._pinned)
            if official
            else None
        )
        self._pins: dict[str, Pin] | None = None
        # The input values of each image's files when they were last read; None if they are as recorded.
        # Images may share a Dockerfile, and a directory of which each takes other files.
        self._read: dict[str, Mapping[str, str] | None] = {}

    def step(self, step: Step, name: str) -> StepStatus:
        """Return whether and why a step of an image has to run. Raise the error of a broken project."""
        key = (step, name)
        status = self._steps.get(key)
        if status is None:
            graph = self._checkout.graph
            node = graph.resolve(name)
            if step is Step.PODMAN and any((step, base) not in self._steps for base in node.bases):
                # Judge the bases first: recursion along a long chain would exceed Python's limit.
                for base in graph.with_bases(node.bases):
                    self.step(step, base)
            find_causes = {Step.PODMAN: self._podman, Step.ENROOT: self._enroot, Step.ENV: self._env}[
                step
            ]
            causes, ignored = find_causes(node), list[Cause]()
            if node.options.frozen and step is not Step.ENV:
                causes, ignored = _split_for_frozen(causes)
            if causes and self.offers is not None and self.offers.covers(step, name):
                words = f"can be adopted from {self.offers.official.root}: doit build:{name}"
                causes = [Cause(OFFICIAL, words)]
            # Under `-n` another thread may forget everything at any moment: see `step_has_run`.
            status = self._steps[key] = StepStatus(step, tuple(causes), tuple(ignored))
        return status

    def remembered(self, step: Step, name: str) -> Record | None:
        """Return a step's record as doit sees it: the inputs of a frozen image are the current ones."""
        record, node = self._checkout.records.get(step, name), self._checkout.graph.images.get(name)
        if record is not None and node is not None and node.options.frozen:
            with contextlib.suppress(RcError):  # the step itself will report the error
                if self.step(step, name).ignored:
                    return replace(record, inputs=self.inputs(step, name))
        return record

    def step_has_run(self, step: Step, name: str) -> None:
        """Forget all judgements, as a step has run, perhaps in another process."""
        self._checkout.records.reread(step, name)
        self._steps.clear()
        node = self._checkout.graph.images.get(name)
        if step is Step.PODMAN and node is not None:
            self.listings.forget_all_of(node.project)
        self._pins = None
        if self.offers is not None:
            self.offers.forget()

    def forget(self, name: str) -> None:
        """Forget the judgement of an image; the images built on it were not judged since it changed."""
        for step in Step:
            self._steps.pop((step, name), None)
        self.listings.forget(name)

    def image(self, name: str) -> ImageStatus:
        """Return an image's state with its reasons."""
        graph = self._checkout.graph
        if name in graph.broken:
            return ImageStatus(name, State.FAILED, (first_line(graph.broken[name]),), ())
        try:
            steps = tuple(self.step(step, name) for step in Step)
        except RcError as error:
            return ImageStatus(name, State.FAILED, (first_line(error),), ())
        reasons = tuple(dict.fromkeys(cause.words for cause in leading_causes(steps)))
        failures = (self._failure(status, name) for status in steps)
        failure = next(filter(None, failures), None)
        if locks.holder(self._checkout.lock(name)) is not None:
            state = State.BUILDING
        elif failure is not None:
            state, reasons = State.FAILED, (failure.message, *reasons)
        elif not os.path.exists(f"{self._checkout.graph.images[name].project.base}/{ARTIFACT}"):
            state = State.MISSING
        elif reasons:
            state = State.STALE
        else:
            state = State.FRESH
            reasons = self._remarks(name, steps)
        return ImageStatus(name, state, reasons, steps, failure)

    def _remarks(self, name: str, steps: tuple[StepStatus, ...]) -> tuple[str, ...]:
        """Return remarks on a fresh image, and what else changed if it is frozen."""
        published = self._checkout.records.get(Step.ENROOT, name)
        words, ignored = list[str](), list[str]()
        if published is not None and published.adopted_from:
            words.append(f"adopted from {published.adopted_from}")
        elif self.rolled_back(name) and published is not None:
            words.append(f"rolled back to the image published {local_time(published.ended_at)}")
        if self._checkout.graph.images[name].options.frozen:
            ignored += dict.fromkeys(cause.words for status in steps for cause in status.ignored)
            words.append(f"frozen, though {ignored[0]}" if ignored else "frozen")
        closed = closed_files(self._checkout, name) if is_official(self._checkout) else []
        if closed:
            words.append(f"only the owner may read {', '.join(path.name for path in closed)}")
        return (", ".join(words), *ignored[1:]) if words else ()

    def rolled_back(self, name: str) -> bool:
        """Return whether an older image is published in place of the newest."""
        published, built = (
            self._checkout.records.get(step, name) for step in (Step.ENROOT, Step.PODMAN)
        )
        return bool(rolled_back_from(published, built))

    def inputs(self, step: Step, name: str) -> dict[str, str]:
        """Return the inputs of a step as they are now. Raise RcError when they cannot be read."""
        node = self._checkout.graph.resolve(name)
        record = self._checkout.records.get(Step.PODMAN, name)
        match step:
            case Step.PODMAN:
                return self.build_inputs(node)
            case Step.ENROOT:
                image_id = record.facts.image_id if record and record.facts else ""
                inputs = squash_inputs(image_id)
                tests = smoke.smoke_tests(self._checkout.graph, node)
                launcher = self._checkout.settings.launcher
                return inputs | ({SMOKE: text_digest(repr((tests, launcher)))} if tests else {})
            case Step.ENV:
                return edf_inputs(self._checkout, node, record.facts) if record and record.facts else {}

    def _miswritten(self, image_id: str) -> Mapping[str, str]:
        """Return what earlier versions wrote wrongly of an image; empty when the store lacks it."""
        comparisons = self._checkout.comparisons
        if not image_id or comparisons.settings_are_right(image_id):
            return {}
        try:
            config = self._checkout.store.config(image_id)
        except (OSError, RcError):
            # One unreadable file would end the listing; the step that needs the file reports it.
            return {}
        wrong = miswritten(config) if config is not None else {}
        if config is not None and not wrong:
            comparisons.remember_settings_are_right(image_id)
        return wrong

    def build_inputs(self, node: ImageNode) -> dict[str, str]:
        """Return the inputs of the podman step, with the local bases as they are recorded now."""
        return self._file_inputs(node) | self._other_inputs(node, self._recorded)

    def _inputs_after_adoption(self, node: ImageNode) -> dict[str, str]:
        return self._file_inputs(node) | self._other_inputs(node, self._facts)

    def _file_inputs(self, node: ImageNode) -> dict[str, str]:
        inputs = self.listings.inputs(node.project)
        self._read[node.project.name] = inputs
        return inputs

    def _other_inputs(self, node: ImageNode, facts_of: Callable[[str], Facts | None]) -> dict[str, str]:
        checkout = self._checkout
        ids = {base: facts.image_id for base in node.bases if (facts := facts_of(base)) is not None}
        inputs = other_inputs(node, ids, checkout.machine(node.project))
        pins = self._pinned(node)
        inputs |= {PIN + base: pins[base].digest for base in node.pinned if base in pins}
        if checkout.settings.source:
            inputs["source"] = checkout.settings.source  # it becomes a label of the image
        return inputs

    def _pinned(self, node: ImageNode) -> Mapping[str, Pin]:
        """Return all pins, or none for an image without pinned bases. Raise PinError."""
        if not node.pinned:
            return {}
        # Another thread may set them to None at any moment.
        pins = self._pins
        if pins is None:
            pins = self._pins = self._checkout.pins.read()
        return pins

    def modified(self, name: str, part: str, recorded: str) -> bool:
        """Return whether an input file of an image differed from `recorded` when it was last read."""
        values = self._read.get(name, {})
        return values is not None and values.get(part) != recorded

    def _podman(self, node: ImageNode) -> list[Cause]:
        name = node.project.name
        causes = [
            Cause(f"base/{base}", f"base image {base} is stale", upstream=True)
            for base in node.bases
            if base in self._checkout.graph.broken or not self.step(Step.PODMAN, base).settled
        ]
        record = self._checkout.records.get(Step.PODMAN, name)
        if record is None or record.facts is None:
            return [Cause(NEVER, self._unrecorded(Step.PODMAN, node)), *causes]
        files = self.listings.of(node.project)
        version = self._checkout.records.version_read(Step.PODMAN, name)
        now, recorded = self._other_inputs(node, self._facts), record.inputs
        unchanged = self._checkout.comparisons.is_unchanged(name, files, version)
        if unchanged:
            recorded = {part: value for part, value in recorded.items() if not is_file(part)}
            self._read[name] = None
        else:
            now = self._file_inputs(node) | now
        recorded, now = self._file_by_file(node, recorded, now)
        recorded = comparable(recorded, now, self._pinned(node))
        # A stale base is a cause already: its digest would be a second one.
        stale_bases = {cause.part for cause in causes}
        parts = [part for part in {**recorded, **now} if part not in stale_bases]
        differing = [
            Cause(part, changed(part, recorded.get(part), now.get(part)), old, new)
            for part in parts
            if (old := recorded.get(part, "")) != (new := now.get(part, ""))
        ]
        differing = _with_one_dockerfile(differing, recorded, node.project.dockerfile_name)
        if not unchanged and not any(is_file(cause.part) for cause in differing):
            self._checkout.comparisons.remember(name, files, version)
        causes = differing + causes
        store = self._checkout.settings.store
        if record.adopted_from:
            mismatch = self._not_official(node, record, record.facts.image_id)
            causes += [Cause(GONE, mismatch)] if mismatch is not None else []
        elif store.enabled and not self._checkout.store.has(record.facts.image_id):
            causes.append(Cause(STORE, "the image is no longer in the store"))
        return causes

    def _file_by_file(
        self, node: ImageNode, recorded: Mapping[str, str], now: dict[str, str]
    ) -> tuple[Mapping[str, str], dict[str, str]]:
        """Return recorded and present inputs; those of a changed context file by file."""
        before: dict[str, Mapping[str, str]] = {}
        after: dict[str, Mapping[str, str]] = {}
        for part in filter(is_whole, {**recorded, **now}):
            old, new = recorded.get(part), now.get(part)
            if old == new or CHANGED_MEANWHILE in (old, new):
                continue
            # The record may be from before or after the project got a context of its own.
            values = self._checkout.contexts.get(old) if old is not None else {}
            if values is not None:
                before[part] = values
                present = self.listings.shared(node.project)
                after[part] = present[part].values if part in present else {}
        return with_files(recorded, before), with_files(now, after)

    def _enroot(self, node: ImageNode) -> list[Cause]:
        name = node.project.name
        causes = self._after(Step.PODMAN, name)
        record = self._checkout.records.get(Step.ENROOT, name)
        if record is None or record.artifact is None:
            return [Cause(ARTIFACT, self._unrecorded(Step.ENROOT, node)), *causes]
        facts = self._facts(name)
        old, new = record.inputs.get("image", ""), facts.image_id if facts is not None else ""
        # A rollback stays until a build gives another image than the one that it replaced.
        rolled_back = self.rolled_back(name)
        if new and new != old and not rolled_back:
            causes.append(Cause("image", "the image was rebuilt", old, new))
        built_here = not record.adopted_from and not rolled_back
        if built_here and new == old and SETTINGS not in record.inputs:
            causes += [Cause(part, words) for part, words in self._miswritten(old).items()]
        if built_here and new == old and (words := doubtful(record.inputs, record.tools)):
            causes.append(Cause(CONTENT, words))
        # The file may be the official one although the image has been built here since.
        mismatch = self._not_official(node, record, old) if record.adopted_from else None
        damage = mismatch or self._damage(node, record)
        if damage is not None:
            causes.append(Cause(ARTIFACT, damage))
        elif (damage := self._public_damage(node)) is not None:
            causes.append(Cause(IMAGE_JSON, damage))
        tests = smoke.smoke_tests(self._checkout.graph, node)
        if tests:
            # A test that was removed from project.toml is no cause: the image still passes the others.
            launcher = self._checkout.settings.launcher
            for test in smoke.lacking(tests, record.passed(launcher)):
                others = ", ".join(run.launcher for run in record.smoke if run.argv == test.argv)
                words = f"passed with {others}, not with {launcher}" if others else "changed"
                causes.append(Cause(SMOKE, f"smoke tests {words}", new=str(test)))
        return causes

    def _unrecorded(self, step: Step, node: ImageNode) -> str:
        """Describe a step without a record; `doit forget` may have removed that of an earlier run."""
        project, checkout = node.project, self._checkout
        never, forgotten, outputs = _UNRECORDED[step]
        if any(os.path.lexists(f"{project.base}/{output}") for output in outputs):
            return forgotten
        has_run = os.path.lexists(checkout.logs(step, project.name) / logs.LATEST)
        failed = has_run and checkout.records.failure(step, project.name) is not None
        runs = has_run and locks.holder(checkout.lock(project.name)) is not None
        return forgotten if has_run and not failed and not runs else never

    def _damage(self, node: ImageNode, record: Record) -> str | None:
        published = record.artifact
        path = f"{node.project.base}/{ARTIFACT}"
        try:
            status = os.stat(path)
        except OSError as error:
            if os.path.islink(path):
                return f"image.sqsh is a broken symlink: {os.readlink(path)}: {error.strerror}"
            if not isinstance(error, FileNotFoundError):
                raise
            return "image.sqsh is missing"
        if published is None or status.st_size != published.size_bytes:
            return f"image.sqsh is damaged: it has {status.st_size} bytes"
        if status.st_mtime_ns == published.mtime_ns:
            return None
        # A sample distinguishes a touched or copied file from a changed one without reading it whole.
        if self._checkout.output_digests.sample(path, status) != published.sample:
            return "image.sqsh was changed after its publication"
        return None

    def _public_damage(self, node: ImageNode) -> str | None:
        path, name = f"{node.project.base}/{IMAGE_JSON}", node.project.name
        status = reading.status(path)
        if status is None:
            return "image.json is missing"
        written_ns = status.st_mtime_ns
        records = self._checkout.records
        versions = (records.version_read(step, name) for step in (Step.PODMAN, Step.ENROOT))
        # A step writes its record after image.json, so an older file need not be read.
        if written_ns <= max((version[1] for version in versions if version is not None), default=0):
            return None
        try:
            load(reading.content(path))
        except DecodeError:
            return "image.json is damaged"
        return None

    def _env(self, node: ImageNode) -> list[Cause]:
        name = node.project.name
        causes = self._after(Step.ENROOT, name)
        record = self._checkout.records.get(Step.ENV, name)
        if record is None:
            return [Cause(EDF, self._unrecorded(Step.ENV, node)), *causes]
        facts = self._facts(name)
        if facts is None:
            return causes
        now = edf_inputs(self._checkout, node, facts)
        try:
            now[EDF] = self._checkout.output_digests.content(f"{node.project.base}/{EDF}")
        except FileNotFoundError:
            return [Cause(EDF, "env.toml is missing"), *causes]
        except OSError as error:
            raise unreadable(
                EdfError,
                error,
                node.project.shown(EDF),
                "correct its permissions, or move it away and run the command again",
            ) from None
        common = node.project.shown_common_edf if node.project.machine else ""
        if common and not os.path.exists(self._checkout.root / common):
            return [Cause(EDF, f"{common} is missing"), *causes]
        words = {
            "template": "templates/env.toml.j2 changed",
            "values": "EDF settings changed",
            COMMON: f"{common} names other machines",
        }
        for part, new in now.items():
            old = record.inputs.get(part, "")
            if old != new:
                causes.append(Cause(part, words.get(part, f"{part} changed"), old, new))
        return causes

    def _not_official(self, node: ImageNode, record: Record, image_id: str) -> str | None:
        """Return why an adopted image is not the official one any more, or None when it is."""
        if self.offers is None or self.offers.official.root != record.adopted_from:
            return f"adopted from {record.adopted_from}, which is no longer images_root"
        return self.offers.gone(node, image_id)

    def _facts(self, name: str) -> Facts | None:
        """Return the facts of an image as they are recorded, or will be after its adoption."""
        offered = self.offers.facts(name) if self.offers is not None else None
        return offered or self._recorded(name)

    def _recorded(self, name: str) -> Facts | None:
        record = self._checkout.records.get(Step.PODMAN, name)
        return record.facts if record is not None else None

    def _after(self, step: Step, name: str) -> list[Cause]:
        settled = self.step(step, name).settled
        return [] if settled else [Cause(step, f"{step}:{name} runs before it", upstream=True)]

    def _failure(self, status: StepStatus, name: str) -> Failure | None:
        if status.settled:
            return None
        failure = self._checkout.records.failure(status.step, name)
        try:
            now = self.inputs(status.step, name)
        except RcError:
            now = {}  # a step that fails for this reason records no inputs
        if failure is None:
            return None
        # A step may have pinned its bases before it failed.
        pins = self._pins or {}
        return failure if comparable(failure.inputs, now, pins) == now else None


def _split_for_frozen(causes: list[Cause]) -> tuple[list[Cause], list[Cause]]:
    """Return the causes that rebuild a frozen image, and those that do not count."""
    if any(cause.part == NEVER for cause in causes):
        return causes, []
    ignored = [cause for cause in causes if cause.part not in _DAMAGED_OUTPUT]
    return [cause for cause in causes if cause.part in _DAMAGED_OUTPUT], ignored


def _with_one_dockerfile(causes: list[Cause], recorded: Mapping[str, str], name: str) -> list[Cause]:
    """Merge the causes of a Containerfile that replaced a Dockerfile, or the reverse, into one."""
    before = next((file for file in DOCKERFILES if file in recorded), name)
    if before == name:
        return causes
    parts = {before, name, CONTEXT + before, CONTEXT + name}
    words = f"{name} replaces {before}"
    new = next((cause.new for cause in causes if cause.part == name), "")
    others = [cause for cause in causes if cause.part not in parts]
    return [Cause(name, words, recorded[before], new), *others]
