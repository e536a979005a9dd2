"""Variables of an image in /etc/environment, written so that Enroot reads what was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rc_tasks.tools import enroot

HOST = {"X": "of the host", "HOME": "/home/ann"}


@pytest.mark.parametrize(
    ("variable", "line"),
    [
        pytest.param("A=plain", "A=plain", id="plain"),
        pytest.param("A=", "A=", id="empty"),
        pytest.param("A=b=c", "A=b=c", id="equals"),
        pytest.param('A=it\'s "odd" \\ $X `id` $(id) ', 'A=it\'s "odd" \\ $X `id` $(id) ', id="odd"),
        pytest.param('A="quoted"', 'A="""quoted"""', id="quoted"),
        pytest.param("A=\\a'", 'A=""\\a\'""', id="a backslash and a quote"),
        pytest.param("A='-a' '-b' ", "A=\"\"'-a' '-b' \"\"", id="two in quotes"),
        pytest.param('A="', 'A="', id="one quote"),
        pytest.param("A=a${X}b", "A=a$${_RC_TASKS_EMPTY}{X}b", id="reference"),
        pytest.param("A=${X", "A=${X", id="no reference"),
        pytest.param("A=a\nPATH=/evil", "A=a PATH=/evil", id="line break"),
    ],
)
def test_only_what_enroot_would_change_is_written_otherwise(variable: str, line: str) -> None:
    assert enroot.environment((variable,)) == (line,)


@given(st.text(st.one_of(st.sampled_from("\"'${}X_ \n\\=#"), st.characters(exclude_characters="\0"))))
def test_what_is_written_is_what_is_read(value: str) -> None:
    text = "\n".join(enroot.environment((f"A={value}", "B=1")))
    assert enroot.variables(text, HOST) == {"A": value.replace("\n", " "), "B": "1"}


def test_other_lines_are_read_as_enroot_reads_them() -> None:
    text = '  A="1"\n#B=2\n\nC\nfoo.bar=3\nENROOT_X=4\nD=${HOME}/${Y}x\nF=1\nF=2\r\nG=\0\n'
    text += """E="'both'"\n"""
    assert enroot.variables(text, HOST) == {
        "A": "1",
        "D": "/home/ann/x",
        "E": "both",
        "F": "2\r",
    }
