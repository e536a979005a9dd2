"""The programs that tests need: a laptop without one skips, CI fails."""

import os
import shutil

REQUIRED = "RC_REQUIRE_TOOLS"


def which(name: str) -> str | None:
    """The full path of a program, daemons included."""
    # An ordinary user's PATH has no sbin, where Debian puts the daemons.
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))


def require_tools(*names: str) -> None:
    """Skip the calling test when a program is missing; fail it where RC_REQUIRE_TOOLS=1 is set."""
    missing = [name for name in names if which(name) is None]
    if missing:
        refuse(
            f"not installed: {', '.join(missing)}; `./bootstrap.sh test` installs what the tests need"
        )


def refuse(reason: str) -> None:
    """Skip the calling test, or fail it where RC_REQUIRE_TOOLS=1 is set."""
    # Here, because the benches come without the tests' packages.
    import pytest

    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def limited() -> tuple[str, ...]:
    """What makes root obey permissions; an ordinary user does anyway."""
    if os.geteuid() != 0:
        return ()
    require_tools("setpriv")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner")
