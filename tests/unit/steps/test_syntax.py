"""What a Dockerfile needs that a node's podman may be too old for."""

import os
from textwrap import dedent

import pytest

from rc_tasks.errors import DockerfileError
from rc_tasks.model.dockerfile.instructions import instructions
from rc_tasks.steps.podman.syntax import require_known

# What each instruction needs, and the last version that does not know it.
CASES = {
    "heredoc": ("RUN <<EOF\necho hi\nEOF", "here-documents (<<)", "5.0", "4.9.4"),
    "heredoc of a copy": ("COPY <<a <<b /d/\n1\na\n2\nb", "here-documents (<<)", "5.0", "4.3.1"),
    "network": ("RUN --network=none true", "RUN --network", "4.5", "4.4.4"),
    "checksum": ("ADD --checksum=sha256:00 http://x/f /f", "ADD --checksum", "4.8", "4.7.2"),
    "exclude": ("COPY --exclude=*.md . /x", "COPY --exclude", "5.3", "5.2.5"),
    "parents": ("COPY --parents a/b /x", "COPY --parents", "5.5", "5.4.2"),
    "link": ("COPY --link f /f", "COPY --link", "5.6", "5.5.2"),
    "link of add": ("ADD --link f /f", "ADD --link", "5.6", "5.5.2"),
}


@pytest.mark.parametrize(("text", "words", "since", "before"), CASES.values(), ids=CASES)
def test_an_instruction_that_the_nodes_podman_does_not_know(
    text: str, words: str, since: str, before: str
) -> None:
    source = instructions(f"FROM base\n# why\n{text}\nRUN true\n".encode(), where="p/Dockerfile")
    with pytest.raises(DockerfileError) as caught:
        require_known(source, {0}, before, where="p/Dockerfile")
    assert str(caught.value) == (
        f"p/Dockerfile:3: podman {before} on {os.uname().nodename} does not know {words}: podman {since}"
        " does\n  next: build it on a node with a newer podman, or write it without"
    )
    require_known(source, {0}, f"{since}.0", where="p/Dockerfile")


def test_what_every_podman_knows() -> None:
    text = """
        FROM base
        RUN --mount=type=bind,source=f,target=/m cat /m && echo '<<EOF' && test $((1<<2)) = 4
        COPY --chown=1:1 --chmod=0755 --from=other /x /x
        RUN ["echo", "<<EOF"]
        ENV A="<<EOF"
    """
    require_known(instructions(dedent(text).encode(), where="p"), {0}, "4.3.1", where="p")


def test_a_stage_that_is_not_built_may_need_more() -> None:
    text = b"FROM base AS unused\nCOPY --link f /f\nRUN <<EOF\nx\nEOF\nFROM base\nRUN true\n"
    source = instructions(text, where="p")
    require_known(source, {1}, "4.3.1", where="p")
    with pytest.raises(DockerfileError, match="COPY --link"):
        require_known(source, {0, 1}, "4.3.1", where="p")
