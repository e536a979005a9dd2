"""Errors of registries, as podman and skopeo report them: causes, messages, hints."""

import os
import re
from collections.abc import Iterable
from enum import StrEnum

from rc_tasks.errors import CommandError, RcError
from rc_tasks.tools import command, failures
from rc_tasks.tools.command import Command, Completed


class Refusal(StrEnum):
    """Why a registry gave no image."""

    UNAUTHORISED = "unauthorised"
    UNREADABLE = "unreadable"
    CREDENTIALS = "credentials"
    BLOCKED = "blocked"
    LIMITED = "limited"
    UNKNOWN = "unknown"
    UNTRUSTED = "untrusted"
    UNNAMED = "unnamed"
    ELSEWHERE = "elsewhere"
    NESTED = "nested"
    UNSUPPORTED = "unsupported"
    DAMAGED = "damaged"
    PROXY = "proxy"
    UNRESOLVED = "unresolved"
    FAILING = "failing"
    UNREACHABLE = "unreachable"
    OTHER = "other"


class RegistryError(RcError):
    """A registry did not answer, or refused to."""

    def __init__(self, refusal: Refusal, reference: str, quote: tuple[str, ...]) -> None:
        what, hint = words(refusal, reference)
        super().__init__(what, where=reference, quote=quote, hint=hint)
        self.refusal = refusal


def host(reference: str) -> str:
    """Return the registry of a reference by Docker's rule: Docker's own when it names none."""
    first, slash, _ = reference.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else "docker.io"


def words(refusal: Refusal, reference: str) -> tuple[str, str]:
    """Return what happened, and what to do next."""
    what, hint = _WORDS[refusal]
    return what, hint.format(host=host(reference), reference=reference)


_WORDS = {
    Refusal.UNAUTHORISED: (
        "the registry wants other credentials, or hides what is not there",
        "`podman login {host}`; and check the name",
    ),
    Refusal.UNREADABLE: (
        "the file of credentials that REGISTRY_AUTH_FILE names cannot be read on this host",
        "`podman login {host}` makes it, in a place that the nodes share; or unset that variable",
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
    Refusal.UNNAMED: (
        "podman does not know which registry this name is of",
        "check the name, or write the registry too, as in docker.io/library/debian:12",
    ),
    Refusal.ELSEWHERE: (
        "the registry has this image for other machines only",
        "name another one in the Dockerfile; `skopeo inspect --raw docker://{reference}` lists what\n"
        "there is, and FROM --platform=linux/ARCH takes one for another machine",
    ),
    Refusal.NESTED: (
        "the registry has an index within an index here, which podman cannot pull",
        "name one of its images by digest, as `skopeo inspect --raw docker://{reference}` lists\n"
        "them, and report it to the publisher of the image",
    ),
    Refusal.UNSUPPORTED: (
        "the registry has no image there that this podman can take",
        "it may be an artifact, or older or newer than podman: name another one in the Dockerfile",
    ),
    Refusal.DAMAGED: (
        "the registry sent other data than it promised",
        "try again; if it fails again, a proxy or a mirror may alter it, or {host} keeps it damaged:\n"
        "report it to their operators",
    ),
    Refusal.PROXY: (
        "the proxy on the way to the registry does not answer, or refuses",
        "`env | grep -i _proxy` on this host tells which one is set: correct or unset it, or ask\n"
        "the site",
    ),
    Refusal.UNRESOLVED: (
        "this host does not know the host name of the registry",
        "check its spelling ({host}); if it is right, ask the site how this host reaches the network\n"
        "(DNS, a proxy), or pull on one that does",
    ),
    Refusal.FAILING: (
        "the registry has an error of its own",
        "try again later; if it lasts, report it to the operators of {host}",
    ),
    Refusal.UNREACHABLE: (
        "the registry cannot be reached from this host",
        "check the host's name and the network (`curl -I https://{host}/v2/`), then try again",
    ),
    Refusal.CREDENTIALS: (
        "the credentials that are kept on this host cannot be used",
        "`podman login {host}` writes them again; a helper that a credHelpers line names has to be\n"
        "on PATH (containers-auth.json(5))",
    ),
    Refusal.BLOCKED: (
        "this host's settings block the registry",
        "/etc/containers/registries.conf says so (containers-registries.conf(5)): ask the site which\n"
        "mirror to name in the Dockerfile",
    ),
    Refusal.OTHER: (
        "the image could not be read from the registry",
        "show the message above to the site, or to the operators of {host}",
    ),
}
# Messages of containers/image, the library in podman and skopeo (seen with podman 4.3 and skopeo 1.9;
# the limit is Docker Hub's). The first match counts.
_SIGNS = (
    (Refusal.CREDENTIALS, r"getting (username and password|credentials)|docker-credential-"),
    (Refusal.BLOCKED, r"is blocked in "),
    (Refusal.PROXY, r"proxyconnect|proxy authentication required"),
    (Refusal.LIMITED, r"toomanyrequests|too many requests|rate limit|status code 429"),
    (Refusal.UNAUTHORISED, r"unauthorized|authentication required|(?<!permission )denied\b|forbidden"),
    (
        Refusal.UNTRUSTED,
        r"x509:|HTTP response to HTTPS client|certificate|not look like a TLS handshake",
    ),
    (Refusal.UNNAMED, r"short-name|unqualified-search registries"),
    (Refusal.ELSEWHERE, r"no image found in (image index|manifest list)|no matching manifest"),
    (Refusal.NESTED, r"received a manifest list instead of a manifest"),
    (
        Refusal.UNSUPPORTED,
        r"unsupported (manifest|image|media|MIME|schema|docker)|artifact with type|unimplemented",
    ),
    (
        Refusal.DAMAGED,
        r"does not match (expected|the required)|digest mismatch|invalid character"
        r"|unexpected end of JSON|invalid checksum|Digest did not match",
    ),
    (Refusal.UNKNOWN, r"manifest unknown|name unknown|repository name not known|not found"),
    (Refusal.UNRESOLVED, r"no such host|server misbehaving|name resolution"),
    (Refusal.FAILING, r"HTTP status:? 5\d\d|status code 5\d\d|\b50[0234] [A-Z]"),
    (
        Refusal.UNREACHABLE,
        r"dial tcp|connection re(?:fused|set)|i/o timeout|network is unreachable|\bEOF\b"
        r"|Client\.Timeout|TLS handshake timeout|no route to host",
    ),
)


def ask(query: Command, reference: str, timeout_s: float) -> Completed:
    """Run a command that asks a registry for a reference. Raise RegistryError with its last line."""
    try:
        done = command.capture(query, timeout_s=timeout_s, check=False)
    except CommandError:
        raise RegistryError(
            Refusal.UNREACHABLE, reference, (f"no answer within {timeout_s:g} s",)
        ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RegistryError(refusal(done.stderr, reference), reference, tuple(map(_message, lines[-1:])))
    return done


def not_pulled(reference: str, returncode: int, lines: Iterable[str]) -> CommandError:
    """Return the error for a `podman pull` that ended with `returncode`; `lines` are its last ones."""
    causes = (*failures.PODMAN, *failures.LIMITS)
    # An error of several lines extends to the end of the output.
    lines = list(lines)
    begins = [number for number, line in enumerate(lines) if line.startswith("Error: ")]
    error_lines = lines[begins[-1] :] if begins else lines
    why = refusal("\n".join(error_lines), reference)
    cause = failures.find(error_lines, causes, returncode)
    if cause is not None and why is not Refusal.UNREADABLE:
        return cause.error(f"podman pull {reference}")
    what, hint = words(why, reference)
    return CommandError(what, where=reference, hint=hint)


def refusal(text: str, reference: str = "") -> Refusal:
    """Return the kind of refusal in the error output of a program that asked for `reference`."""
    credentials = os.environ.get("REGISTRY_AUTH_FILE")
    at = rf'(stat|open|reading.*) "?{re.escape(credentials or "")}"?: '
    if credentials and re.search(at, text):
        return Refusal.UNREADABLE
    # The reference itself and quoted texts may contain a pattern by chance.
    name = re.split(r"@|:(?=[^/]*$)", reference)[0]
    remaining = re.sub(r'\\"[^"\\]*\\"', "", text.replace(name, "") if name else text)
    return next(
        (kind for kind, sign in _SIGNS if re.search(sign, remaining, re.IGNORECASE)), Refusal.OTHER
    )


def _message(line: str) -> str:
    """Return the message in a line of logrus, without time and level."""
    match = re.search(r'\bmsg="(.*)"$', line)
    words = match[1].replace('\\"', '"') if match else line
    return re.sub(r'^Error parsing image name "[^"]*": ', "", words)
