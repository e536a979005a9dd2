"""ssh-agent: how many keys it holds, asked at its socket."""

import socket
import struct

# The numbers of draft-ietf-sshm-ssh-agent; each message begins with its length.
_REQUEST_IDENTITIES = 11
_IDENTITIES_ANSWER = 12
_HEAD = ">IB"
_TIMEOUT_S = 5.0


def key_count(path: str) -> int:
    """Return the number of keys that an agent holds. Raise OSError when it does not answer as one."""
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(_TIMEOUT_S)
        agent.connect(path)
        agent.sendall(struct.pack(_HEAD, 1, _REQUEST_IDENTITIES))
        answer = agent.makefile("rb").read(struct.calcsize(">IBI"))
    if len(answer) < struct.calcsize(">IBI") or answer[4] != _IDENTITIES_ANSWER:
        raise ConnectionError("it does not answer as an SSH agent")
    return int(struct.unpack(">IBI", answer)[2])
