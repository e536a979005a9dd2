"""What a registry refused, in words, whichever program asked it."""

import re
from enum import StrEnum

from rc_tasks.errors import CommandError, RcError
from rc_tasks.tools import command
from rc_tasks.tools.command import Command, Completed


class Refusal(StrEnum):
    """Why there is no answer."""

    UNAUTHORISED = "unauthorised"
    LIMITED = "limited"
    UNKNOWN = "unknown"
    UNTRUSTED = "untrusted"
    UNREACHABLE = "unreachable"
    OTHER = "other"


class RegistryError(RcError):
    """A registry did not answer, or would not."""

    def __init__(self, refusal: Refusal, reference: str, quote: tuple[str, ...]) -> None:
        what, hint = _WORDS[refusal]
        super().__init__(what, where=reference, quote=quote, hint=hint.format(host=host(reference)))
        self.refusal = refusal


def host(reference: str) -> str:
    """The registry that a reference names, by Docker's rule: Docker's own one when it names none."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


_WORDS = {
    Refusal.UNAUTHORISED: (
        "the registry wants other credentials, or hides what is not there",
        "`podman login {host}`; and check the name",
    ),
    Refusal.LIMITED: (
        "the registry takes no more requests for now",
        "try again later; with `podman login {host}` the limit is often higher",
    ),
    Refusal.UNKNOWN: (
        "the registry has no such image",
        "it may have been removed or renamed: name another one in the Dockerfile",
    ),
    Refusal.UNTRUSTED: (
        "the certificate of the registry is not trusted here",
        "ask the site for its CA (containers-certs.d(5)), or mark the registry as insecure in\n"
        "~/.config/containers/registries.conf (containers-registries.conf(5))",
    ),
    Refusal.UNREACHABLE: (
        "the registry cannot be reached from this host",
        "check the host's name and the network (`curl -I https://{host}/v2/`), then try again",
    ),
    Refusal.OTHER: ("the registry gave no answer that can be used", "read its words above"),
}
# What containers/image, the library in podman and skopeo, prints; the order matters, as the words of a
# refused login name the reference too.
_SIGNS = (
    (Refusal.LIMITED, r"toomanyrequests|too many requests|rate limit|status code 429"),
    (Refusal.UNAUTHORISED, r"unauthorized|authentication required|access .*denied|denied:|forbidden"),
    (Refusal.UNTRUSTED, r"x509:|HTTP response to HTTPS client|certificate"),
    (Refusal.UNKNOWN, r"manifest unknown|name unknown|repository name not known|not found"),
    (
        Refusal.UNREACHABLE,
        r"dial tcp|no such host|connection re(?:fused|set)|i/o timeout|network is unreachable|\bEOF\b"
        r"|Client\.Timeout|TLS handshake timeout|50[234]",
    ),
)


def ask(wanted: Command, reference: str, timeout_s: float) -> Completed:
    """Run a command that asks a registry for a reference; raises RegistryError with its last line."""
    try:
        done = command.capture(wanted, timeout_s=timeout_s, check=False)
    except CommandError:
        raise RegistryError(
            Refusal.UNREACHABLE, reference, (f"no answer within {timeout_s:g} s",)
        ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RegistryError(refusal(done.stderr), reference, tuple(map(_message, lines[-1:])))
    return done


def refusal(text: str) -> Refusal:
    """What kind of refusal a program's error output tells."""
    # What stands in quotes is ours, such as the reference: its words are no sign.
    said = re.sub(r'\\"[^"\\]*\\"', "", text)
    return next((kind for kind, sign in _SIGNS if re.search(sign, said, re.IGNORECASE)), Refusal.OTHER)


def _message(line: str) -> str:
    """The words of a line of logrus, without time and level."""
    found = re.search(r'\bmsg="(.*)"$', line)
    words = found[1].replace('\\"', '"') if found else line
    return re.sub(r'^Error parsing image name "[^"]*": ', "", words)
