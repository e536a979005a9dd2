"""SSH agents and keys for `RUN --mount=type=ssh`: checked before podman starts, passed to it by path.

podman serves keys from an agent of its own, so that a RUN can use them but not read them.
"""

import base64
import binascii
import os
import stat
from pathlib import Path

from rc_tasks.errors import ProjectError
from rc_tasks.model.config.project_toml import SshAccess
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.disk.trust import user
from rc_tasks.steps.podman.secrets import require_outside
from rc_tasks.tools import slurm, ssh_agent
from rc_tasks.tools.failures import node_name
from rc_tasks.util.safe_read import open_regular

_SOCKET = "SSH_AUTH_SOCK"
# podman reads no more of a key (buildah's pkg/sshagent).
_MOST_BYTES = 100 * 1024
_PRIVATE = b"PRIVATE KEY-----"
# The first lines of encrypted keys: PKCS #8 (RFC 7468), and traditional PEM (RFC 1421).
_ENCRYPTED = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
# OpenSSH's PROTOCOL.key: this word, then the length and the name of the cipher.
_OPENSSH = b"openssh-key-v1\0"
_NO_CIPHER = b"\0\0\0\4none"
_BUILD_KEY = "ssh-keygen -t ed25519 -N '' -f ~/.ssh/build"


class _Access:
    """Finds the files of one entry of `ssh`; `node` is the image that has it."""

    def __init__(self, node: ImageNode, access: SshAccess) -> None:
        self.node = node
        self.id = access.id
        self.paths = access.paths

    def files(self) -> tuple[Path, ...]:
        """Return the files of the keys, or the socket. Raise ProjectError if podman cannot use them."""
        if not self.paths:
            return (self.agent_of_environment(),)
        files = tuple(self.file(path) for path in self.paths)
        sockets = [path for path in files if path.is_socket()]
        if sockets and len(files) > 1:
            raise self.error(
                f"{self.paths[files.index(sockets[0])]} is a socket, which has to be the only path",
                "name keys or one agent; a second ID can have the others",
            )
        for path in sockets:
            self.require_keys(path, self.paths[0], self.key_hint())
        return files

    def agent_of_environment(self) -> Path:
        path = os.environ.get(_SOCKET, "")
        if not path:
            hint = f'start one where you call doit: eval "$(ssh-agent)" && ssh-add\nor {self.key_hint()}'
            raise self.error(f"{_SOCKET} is not set on {node_name()}", hint)
        hint = f"`ssh-add -l` shows what it holds, and `ssh-add` adds keys\nor {self.key_hint()}"
        if slurm.job_id() is not None:
            hint = f"an agent serves only the host on which it was started: {self.key_hint()}"
        self.require_keys(Path(path), f"{path} ({_SOCKET})", hint)
        return Path(os.path.realpath(path))

    def require_keys(self, socket: Path, shown: str, hint: str) -> None:
        try:
            count = ssh_agent.key_count(str(socket))
        except OSError as error:
            reason = error.strerror or error
            raise self.error(
                f"no agent can be reached at {shown} on {node_name()}: {reason}", hint
            ) from None
        if count == 0:
            raise self.error(f"the agent at {shown} holds no key, or is locked", "ssh-add")

    def file(self, written: str) -> Path:
        """Return a file without symlinks; `~` is expanded, other paths are relative to the project."""
        path = Path(os.path.realpath(self.node.project.source / os.path.expanduser(written)))
        try:
            if path.is_socket():
                return path
            with open_regular(path) as file:
                status, text = os.fstat(file.fileno()), file.read(_MOST_BYTES)
        except OSError as error:
            raise self.error(
                f"{written} cannot be read on {node_name()}: {error.strerror}",
                "nodes have to see the file, or the socket; a relative path begins at the project",
            ) from None
        if status.st_uid != os.getuid():
            raise self.error(
                f"{written} belongs to {user(status.st_uid)}, not to {user(os.getuid())}",
                f"use a key of your own: {_BUILD_KEY}",
            )
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise self.error(
                f"{written} is open to other users (mode {mode:04o})", f"chmod 600 {written}"
            )
        if _PRIVATE not in text:
            raise self.error(
                f"{written} is not a private key",
                f"name the file without .pub, or make one: {_BUILD_KEY}",
            )
        if _has_passphrase(text):
            raise self.error(
                f"{written} has a passphrase, which nobody can type in a build",
                f"make a key for builds, which may only read what they need: {_BUILD_KEY}",
            )
        require_outside(self.node, path, f"a key of ssh {self.id}")
        return path

    def key_hint(self) -> str:
        return (
            f'name a key without a passphrase, which nodes see: ssh = ["{self.id}=~/.ssh/build"];\n'
            f"{_BUILD_KEY} makes one"
        )

    def error(self, what: str, hint: str) -> ProjectError:
        where = self.node.project.shown_options
        return ProjectError(f"ssh {self.id}: {what}", where=where, hint=hint)


def find(node: ImageNode) -> dict[str, tuple[Path, ...]]:
    """Return the keys, or the socket, of each ID that an image's project.toml names under `ssh`.

    Raise ProjectError for an agent that cannot be reached from this node or holds no key, and for a file
    that is not a private key of this user without a passphrase, or that others or COPY could read.
    """
    return {access.id: _Access(node, access).files() for access in node.options.ssh}


def sources(files: dict[str, tuple[Path, ...]], scratch: Path) -> dict[str, str]:
    """Return what podman gets by ID: links to the files, whose own paths may have commas."""
    linked = {}
    for number, (ssh_id, paths) in enumerate(files.items()):
        links = [scratch / f"ssh.{number}.{index}" for index in range(len(paths))]
        for link, path in zip(links, paths, strict=True):
            link.symlink_to(path)
        linked[ssh_id] = ",".join(map(str, links))
    return linked


def _has_passphrase(text: bytes) -> bool:
    if any(mark in text for mark in _ENCRYPTED):
        return True
    try:
        body = base64.b64decode(b"".join(text.strip().splitlines()[1:-1]))
    except binascii.Error:
        return False
    return body.startswith(_OPENSSH) and not body.startswith(_OPENSSH + _NO_CIPHER)
