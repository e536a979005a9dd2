"""What `ssh` in project.toml names: each problem is reported before podman starts."""

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from rc_tasks.errors import ProjectError
from rc_tasks.model.graph.graph import ImageNode
from rc_tasks.state.checkout import open_checkout
from rc_tasks.steps.podman import ssh
from rc_tasks.tools.failures import node_name
from tests.support.checkouts import write_checkout
from tests.support.tools import require_tools

FILES = {
    "projects/app:1/Dockerfile": "FROM scratch\nRUN --mount=type=ssh true\n",
    "projects/app:1/.containerignore": "ignored\n",
}
MAKE = "ssh-keygen -t ed25519 -N '' -f ~/.ssh/build"
INSTEAD = (
    'name a key without a passphrase, which nodes see: ssh = ["default=~/.ssh/build"];\n'
    f"        {MAKE} makes one"
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SSH_AUTH_SOCK", "SLURM_JOB_ID", "SLURM_JOBID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".ssh").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def node(home: Path, *entries: str) -> ImageNode:
    root = home / "imgs"
    if not root.exists():
        write_checkout(root, FILES)
    listed = ", ".join(f'"{entry}"' for entry in entries)
    (root / "projects/app:1/project.toml").write_text(f"ssh = [{listed}]\n")
    return open_checkout(root, {}).graph.images["app:1"]


def problem(home: Path, *entries: str) -> str:
    with pytest.raises(ProjectError) as caught:
        ssh.find(node(home, *entries))
    return str(caught.value).removeprefix("projects/app:1/project.toml: ssh default: ")


def make_key(path: Path, passphrase: str = "", *options: str) -> Path:
    require_tools("ssh-keygen")
    argv = ("ssh-keygen", "-q", "-N", passphrase, "-f", path, *(options or ("-t", "ed25519")))
    subprocess.run(argv, check=True)
    return path


@pytest.fixture
def agent(home: Path) -> Iterator[Callable[[bytes], Path]]:
    """Makes a socket at which a stand-in for an agent gives one answer."""
    sockets: list[socket.socket] = []

    def serve(answer: bytes) -> Path:
        path = home / f"agent {len(sockets)}"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        sockets.append(listener)

        def work() -> None:
            # A test that opens no connection ends this by closing the socket.
            with suppress(OSError), closing(listener.accept()[0]) as connection:
                assert connection.recv(5) == b"\0\0\0\1\x0b"
                connection.sendall(answer)

        threading.Thread(target=work, daemon=True).start()
        return path

    yield serve
    for listener in sockets:
        listener.close()


def identities(count: int) -> bytes:
    return struct.pack(">IBI", 5, 12, count)


def test_keys_and_agents(home: Path, agent: Callable[[bytes], Path], tmp_path: Path) -> None:
    make_key(home / ".ssh/id, odd")
    (home / ".ssh/link").symlink_to("id, odd")
    make_key(home / "imgs key", "", "-t", "rsa", "-b", "1024", "-m", "PEM")
    sock = agent(identities(2))
    image = node(home, "default=~/.ssh/link,../../../imgs key", f"work={sock}")
    files = ssh.find(image)
    assert files == {"default": (home / ".ssh/id, odd", home / "imgs key"), "work": (sock,)}
    # podman takes a comma for the end of a path.
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    sources = ssh.sources(files, scratch)
    assert sources == {
        "default": f"{scratch}/ssh.0.0,{scratch}/ssh.0.1",
        "work": f"{scratch}/ssh.1.0",
    }
    assert (scratch / "ssh.0.0").resolve() == home / ".ssh/id, odd"
    assert ssh.find(node(home)) == {}


def test_the_agent_of_the_environment(
    home: Path, agent: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sock = agent(identities(1))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(sock))
    assert ssh.find(node(home, "default")) == {"default": (sock,)}


def test_no_agent(home: Path) -> None:
    assert problem(home, "default") == (
        f"SSH_AUTH_SOCK is not set on {node_name()}\n"
        '  next: start one where you call doit: eval "$(ssh-agent)" && ssh-add\n'
        f"        or {INSTEAD}"
    )


def test_an_agent_of_another_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "agent"))
    what = (
        f"no agent can be reached at {home}/agent (SSH_AUTH_SOCK) on {node_name()}:"
        " No such file or directory\n"
    )
    assert problem(home, "default") == (
        f"{what}  next: `ssh-add -l` shows what it holds, and `ssh-add` adds keys\n        or {INSTEAD}"
    )
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert problem(home, "default") == (
        f"{what}  next: an agent serves only the host on which it was started: {INSTEAD}"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (identities(0), "the agent at {path} holds no key, or is locked\n  next: ssh-add"),
        (struct.pack(">IB", 1, 5), "no agent can be reached at {path} on {node}: it does not answer as"),
        (b"", "no agent can be reached at {path} on {node}: it does not answer as"),
        (b"HTTP/1.1 400 Bad Request", "no agent can be reached at {path} on {node}: it does not answer"),
    ],
    ids=["empty", "failure", "nothing", "another"],
)
def test_an_agent_that_cannot_be_used(
    home: Path, agent: Callable[[bytes], Path], answer: bytes, words: str
) -> None:
    path = agent(answer)
    assert problem(home, f"default={path}").startswith(words.format(path=path, node=node_name()))


def test_an_agent_that_has_ended(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "sock"))
    told = problem(home, "default=~/sock")
    assert told.startswith(f"no agent can be reached at ~/sock on {node_name()}: Connection refused\n")
    assert told.endswith(f"  next: {INSTEAD}")


def test_a_socket_among_keys(home: Path, agent: Callable[[bytes], Path]) -> None:
    make_key(home / ".ssh/id")
    path = agent(identities(1))
    assert problem(home, f"default=~/.ssh/id,{path}") == (
        f"{path} is a socket, which has to be the only path\n"
        "  next: name keys or one agent; a second ID can have the others"
    )


@pytest.mark.parametrize("options", [("-t", "ed25519"), ("-t", "rsa", "-m", "PEM"), ("-m", "PKCS8")])
def test_a_passphrase(home: Path, options: tuple[str, ...]) -> None:
    make_key(home / ".ssh/id", "a passphrase", *options)
    assert problem(home, "default=~/.ssh/id") == (
        "~/.ssh/id has a passphrase, which nobody can type in a build\n"
        f"  next: make a key for builds, which may only read what they need: {MAKE}"
    )


def test_other_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_key(home / ".ssh/id")
    assert problem(home, "default=~/.ssh/id.pub").startswith(
        "~/.ssh/id.pub is open to other users (mode 0644)\n  next: chmod 600 ~/.ssh/id.pub"
    )
    (home / ".ssh/id.pub").chmod(0o600)
    assert problem(home, "default=~/.ssh/id.pub").startswith("~/.ssh/id.pub is not a private key\n")
    assert problem(home, "default=~/nothing") == (
        f"~/nothing cannot be read on {node_name()}: No such file or directory\n"
        "  next: nodes have to see the file, or the socket; a relative path begins at the project"
    )
    os.mkfifo(home / "pipe")
    assert problem(home, "default=~/pipe").startswith(f"~/pipe cannot be read on {node_name()}: ")
    assert problem(home, "default=~").startswith(f"~ cannot be read on {node_name()}: ")
    (home / ".ssh/id").chmod(0o640)
    assert problem(home, "default=~/.ssh/id") == (
        "~/.ssh/id is open to other users (mode 0640)\n  next: chmod 600 ~/.ssh/id"
    )
    (home / ".ssh/id").chmod(0o600)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert problem(home, "default=~/.ssh/id").startswith("~/.ssh/id belongs to ")


def test_a_key_in_the_build_context(home: Path) -> None:
    image = node(home, "default=key")
    key = make_key(Path(image.project.base) / "key")
    with pytest.raises(ProjectError) as caught:
        ssh.find(image)
    assert str(caught.value) == (
        "projects/app:1/key: a key of ssh default lies in the build context: COPY could take it into the"
        " image\n"
        "  next: move it out of the project, to ~/FILE for example, or name it in .containerignore"
    )
    key.rename(key.with_name("ignored"))
    assert ssh.find(node(home, "default=ignored")) == {"default": (key.with_name("ignored"),)}
