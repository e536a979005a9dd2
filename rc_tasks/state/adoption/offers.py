"""Official images that a clone is about to adopt, and why it does not adopt the others."""

from collections.abc import Callable, Mapping

from msgspec.structs import replace

from rc_tasks.errors import RcError
from rc_tasks.model.graph import smoke
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.model.graph.pin import Pin
from rc_tasks.model.graph.project import EDF
from rc_tasks.state.adoption.official import Offer, Official
from rc_tasks.state.checkout import Checkout
from rc_tasks.state.disk.trust import NotOfferedError
from rc_tasks.state.edf.values import edf_inputs
from rc_tasks.state.records.records import Facts, Step
from rc_tasks.state.records.status import StepStatus, first_line


class Offers:
    """The official images that a clone needs not build; looked up once until `forget`."""

    def __init__(
        self,
        checkout: Checkout,
        official: Official,
        status: Callable[[Step, str], StepStatus],
        inputs: Callable[[ImageNode], dict[str, str]],
        pins: Callable[[ImageNode], Mapping[str, Pin]],
    ) -> None:
        """Take `status`, `inputs` and `pins` from the judge."""
        self.official = official
        self._checkout = checkout
        self._status = status
        self._inputs = inputs
        self._pins = pins
        self._found: dict[str, Offer | NotOfferedError] = {}

    def get(self, name: str) -> Offer | None:
        """Return the official image of the same inputs, or None."""
        offer = self._look_up(name)
        return offer if isinstance(offer, Offer) else None

    def refusal(self, name: str) -> NotOfferedError | None:
        """Return why an image is not offered, or None when it is."""
        offer = self._look_up(name)
        return offer if isinstance(offer, NotOfferedError) else None

    def forget(self) -> None:
        """Forget all results, to look up everything again."""
        self._found.clear()

    def covers(self, step: Step, name: str) -> bool:
        """Return whether the adoption of the image settles a stale step."""
        offer = self.get(name)
        if offer is None or step not in offer.records:
            return False
        if step is Step.PODMAN or not self._status(Step.PODMAN, name).fresh:
            return True
        # An image that was built here, and may be a base of others, is not replaced by another one.
        record = self._checkout.records.get(Step.PODMAN, name)
        return record is not None and record.facts == offer.facts

    def facts(self, name: str) -> Facts | None:
        """Return the facts of an image that is about to be adopted, None for the others."""
        # A fresh image needs no access to the official checkout.
        if name in self._checkout.graph.broken or not self._status(Step.PODMAN, name).adoptable:
            return None
        offer = self.get(name)
        return offer.facts if offer is not None else None

    def gone(self, node: ImageNode, image_id: str) -> str | None:
        """Return why an adopted image is no longer the official one, or None."""
        published = self._checkout.records.get(Step.ENROOT, node.project.name)
        artifact = published.artifact if published is not None and published.adopted_from else None
        return self.official.gone(node.project, image_id, artifact, self._checkout.output_digests)

    def _look_up(self, name: str) -> Offer | NotOfferedError:
        offer = self._found.get(name)
        if offer is None:
            try:
                offer = self._offer(self._checkout.graph.resolve(name))
            except NotOfferedError as error:
                offer = error
            except RcError as error:
                offer = NotOfferedError(first_line(error))
            self._found[name] = offer
        return offer

    def _offer(self, node: ImageNode) -> Offer:
        frozen = node.options.frozen
        for base in () if frozen else node.bases:
            if base in self._checkout.graph.broken or not self._status(Step.PODMAN, base).settled:
                raise NotOfferedError(f"its base {base} has to be built here")
        offer = self.official.offer(
            node.project,
            self._inputs(node),
            self._pins(node),
            self._checkout.output_digests,
            frozen=frozen,
        )
        passed = {test.argv for test in offer.records[Step.ENROOT].smoke}
        if not frozen and smoke.lacking(smoke.smoke_tests(self._checkout.graph, node), passed):
            # Adopt the build only: a published image must have passed the smoke tests of this checkout.
            return replace(offer, records={Step.PODMAN: offer.records[Step.PODMAN]})
        environment = offer.records.get(Step.ENV)
        if environment is None:
            return offer
        now = edf_inputs(self._checkout, node, offer.facts)
        try:
            now[EDF] = self._checkout.output_digests.content(f"{node.project.base}/{EDF}")
        except OSError:
            now.clear()
        if environment.inputs == now:
            return offer
        return replace(offer, records={step: offer.records[step] for step in (Step.PODMAN, Step.ENROOT)})
