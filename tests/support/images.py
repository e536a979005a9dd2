"""Small test images, written as OCI layouts by hand: every odd file, mode and setting is possible.

No Dockerfile, no RUN and no registry is involved; podman only reads the result.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rc_tasks.tools import command
from rc_tasks.tools.podman import Podman

# A fixed time, so that the same layer has the same digest: 2024-01-02 03:04:05 UTC.
MTIME = 1704164645
BUSYBOX = Path("/bin/busybox")


@dataclass
class Layer:
    """The entries of one layer; names are relative to the image's root."""

    entries: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    def add(
        self, name: str, kind: bytes, *, mode: int, data: bytes = b"", **attributes: object
    ) -> "Layer":
        info = tarfile.TarInfo(name)
        info.type = kind
        info.mode = mode
        info.mtime = MTIME
        info.size = len(data)
        for key, value in attributes.items():
            setattr(info, key, value)
        self.entries.append((info, data))
        return self

    def directory(self, name: str, mode: int = 0o755) -> "Layer":
        return self.add(name, tarfile.DIRTYPE, mode=mode)

    def file(
        self, name: str, data: bytes = b"", mode: int = 0o644, *, xattrs: Mapping[str, str] | None = None
    ) -> "Layer":
        headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
        return self.add(name, tarfile.REGTYPE, mode=mode, data=data, pax_headers=headers)

    def symlink(self, name: str, target: str) -> "Layer":
        return self.add(name, tarfile.SYMTYPE, mode=0o777, linkname=target)

    def hardlink(self, name: str, target: str, mode: int = 0o644) -> "Layer":
        """`mode` is set on what both names stand for."""
        return self.add(name, tarfile.LNKTYPE, mode=mode, linkname=target)

    def fifo(self, name: str) -> "Layer":
        return self.add(name, tarfile.FIFOTYPE, mode=0o644)

    def device(self, name: str, major: int, minor: int) -> "Layer":
        return self.add(name, tarfile.CHRTYPE, mode=0o666, devmajor=major, devminor=minor)

    def busybox(self) -> "Layer":
        """A static busybox as /bin/sh and a few others, enough to run a script in a chroot."""
        self.directory("bin").file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in ("sh", "mkdir", "cat", "env", "printf", "ls"):
            self.symlink(f"bin/{applet}", "busybox")
        return self

    def tar(self) -> bytes:
        buffer = io.BytesIO()
        # PAX for the attributes; a name that is not UTF-8 goes through as the bytes it is.
        pax = any(info.pax_headers for info, _ in self.entries)
        form = tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT
        with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
            for info, data in self.entries:
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()


def write_layout(directory: Path, config: Mapping[str, object], layers: list[bytes]) -> None:
    """An OCI layout of one image; `config` is the image configuration's `config` object."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    described = [blob(layer, "layer.v1.tar") for layer in layers]
    image = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
            os.uname().machine, os.uname().machine
        ),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in described]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(image).encode(), "config.v1+json"),
        "layers": described,
    }
    index = {"schemaVersion": 2, "manifests": [blob(json.dumps(manifest).encode(), "manifest.v1+json")]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def load(podman: Podman, directory: Path, config: Mapping[str, object], *layers: Layer) -> str:
    """Bring an image into a storage; `directory` must not exist yet. Returns the image ID."""
    write_layout(directory, config, [layer.tar() for layer in layers])
    pull = podman.command("pull", "--quiet", f"oci:{directory}")
    return command.capture(pull).stdout.strip().removeprefix("sha256:")
