"""A mount whose source is not on this host is named with the line that sets it."""

from pathlib import Path

import pytest

from rc_tasks.errors import EdfError
from rc_tasks.steps.container import launch


def test_a_missing_source_is_named_with_its_line(tmp_path: Path) -> None:
    base = tmp_path / "env.toml"
    base.write_text('image = "ubuntu"\nmounts = [\n  "/tmp",\n  "/nowhere/at all:/data",\n]\n')
    (tmp_path / "mine.toml").write_text(f'base_environment = "{base}"\n')
    resolved = launch.resolve("./mine.toml", environ={}, cwd=tmp_path)
    with pytest.raises(EdfError) as caught:
        launch.require_mounts(resolved)
    told = str(caught.value).splitlines()[0]
    assert "env.toml:4: /nowhere/at all is not on " in told
    base.write_text('image = "ubuntu"\nmounts = ["/tmp"]\n')
    launch.require_mounts(launch.resolve("./mine.toml", environ={}, cwd=tmp_path))
