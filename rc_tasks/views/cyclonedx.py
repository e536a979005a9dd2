"""A manifest as a CycloneDX bill of materials."""

import contextlib
import uuid
from collections import Counter
from datetime import datetime

from rc_tasks.errors import RcError
from rc_tasks.model.manifest.diff import canonical
from rc_tasks.model.manifest.manifest import Distribution, Manifest, Package, PackageKind

# The namespace of our manifests for UUIDs that are made of a name (RFC 9562).
_NAMESPACE = uuid.UUID("6b9d7b6a-5a2f-4c0e-9f64-0d5c5a1f7f35")
# The purl type of each kind, and the namespace for an image without os-release.
_TYPES = {
    PackageKind.DPKG: ("deb", "debian"),
    PackageKind.APK: ("apk", "alpine"),
    PackageKind.RPM: ("rpm", "redhat"),
    PackageKind.CONDA: ("conda", ""),
    PackageKind.PYTHON: ("pypi", ""),
}


def bill(manifest: Manifest) -> str:
    """Return the bill of materials as JSON, the same for the same manifest. Raise RcError."""
    try:
        from cyclonedx.model import Property
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.bom_ref import BomRef
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output import make_outputter
        from cyclonedx.schema import OutputFormat, SchemaVersion
        from packageurl import PackageURL
    except ImportError as error:
        raise RcError(
            f"the Python package cyclonedx-python-lib is not installed here ({error})",
            hint="./bootstrap.sh setup",
        ) from None

    def component(package: Package, number: int) -> Component:
        kind, namespace = _TYPES[package.kind]
        system = manifest.contents.distribution
        version, qualifiers = _qualified(package, system)
        # The name of a broken package may have no valid purl.
        purl, text = None, f"{kind}/{_clean(package.name)}@{version}"
        with contextlib.suppress(ValueError, TypeError):
            package_url = PackageURL(
                type=kind,
                namespace=(_clean(system.id) or namespace) if namespace else None,
                name=_clean(canonical(package)),
                version=version,
                qualifiers=qualifiers,
            )
            purl, text = package_url, package_url.to_string()
        # The same package may lie in several places, even twice in one.
        place = _clean(package.place) + (f"#{number}" if number else "")
        reference = f"{text}#{place}"
        return Component(
            type=ComponentType.LIBRARY,
            name=_clean(package.name),
            version=_clean(package.version),
            purl=purl,
            bom_ref=BomRef(reference),
            properties=[
                Property(name="rc_tasks:kind", value=package.kind),
                Property(name="rc_tasks:place", value=_clean(package.place)),
            ],
        )

    occurrences: Counter[Package] = Counter()
    components = []
    for package in manifest.contents.packages:
        components.append(component(package, occurrences[package]))
        occurrences[package] += 1
    distribution = manifest.contents.distribution
    if distribution.id:
        components.append(
            Component(
                type=ComponentType.OPERATING_SYSTEM,
                name=_clean(distribution.id),
                version=_clean(distribution.version) or None,
                description=_clean(distribution.title) or None,
                bom_ref=BomRef("operating-system"),
            )
        )
    name, _, tag = manifest.name.partition(":")
    image = Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=tag or "latest",
        bom_ref=BomRef(f"sha256:{manifest.image_id}"),
        properties=[
            Property(name="rc_tasks:image_id", value=manifest.image_id),
            Property(name="rc_tasks:architecture", value=manifest.architecture),
        ],
    )
    bom = Bom(
        components=components,
        serial_number=uuid.uuid5(_NAMESPACE, f"{manifest.name} {manifest.image_id}"),
    )
    bom.metadata.timestamp = datetime.fromisoformat(manifest.published_at)
    bom.metadata.component = image
    bom.register_dependency(image, components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)


def _qualified(package: Package, system: Distribution) -> tuple[str, dict[str, str]]:
    """Return the version and the qualifiers of a package as purl-spec defines them for its type."""
    if package.kind is PackageKind.PYTHON:
        return _clean(package.version), {}
    if package.kind is PackageKind.CONDA:
        qualifiers = {"build": package.build, "channel": package.channel, "subdir": package.architecture}
        return _clean(package.version), {
            key: _clean(value) for key, value in qualifiers.items() if value
        }
    version, epoch = package.version, ""
    if package.kind is PackageKind.RPM and ":" in version:
        epoch, _, version = version.partition(":")
    distro = f"{system.id}-{system.version}" if system.id and system.version else system.id
    qualifiers = {"arch": package.architecture, "epoch": epoch, "distro": distro}
    return _clean(version), {key: _clean(value) for key, value in qualifiers.items() if value}


def _clean(text: str) -> str:
    """Replace surrogates and control characters, which some JSON readers refuse."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
