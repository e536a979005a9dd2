"""After an upgrade without `./bootstrap.sh setup`, a package may be missing."""

import sys

import pytest

from rc_tasks.commands.cli.errors import report_errors
from rc_tasks.squashfs import compression
from rc_tasks.squashfs.superblock import Compressor
from rc_tasks.steps import __main__ as steps

MESSAGE = """\
{place}: the Python package xxhash is not installed
  next: run `./bootstrap.sh setup` where the builder is; each upgrade (`git pull`) needs it
"""


def import_missing(name: str) -> int:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_command_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_errors(lambda: import_missing("xxhash.something")) == 3
    assert capsys.readouterr().err == "ERROR: " + MESSAGE.format(place=sys.prefix)


def test_a_step_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What main changes for the whole process stays as it is.
    for changes in ("interrupt.raise_once", "command.end_with_parent", "with_careful_umask"):
        monkeypatch.setattr(f"{steps.__name__}.{changes}", lambda *_: None)
    monkeypatch.setattr(f"{steps.__name__}.find_root", lambda _: import_missing("xxhash"))
    assert steps.main(["enroot", "x:1"]) == 1
    assert capsys.readouterr().err == MESSAGE.format(place=sys.prefix)


def test_a_missing_module_of_our_own_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError):
        report_errors(lambda: import_missing("rc_tasks.nosuch"))


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="zstd comes with Python")
@pytest.mark.parametrize("module", ["backports", "backports.zstd"])
def test_an_image_is_not_called_damaged_for_want_of_zstd(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("backports", "backports.zstd"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    compression._zstd.cache_clear()
    decompress = compression.decompressor(Compressor.ZSTD)
    assert decompress is not None
    assert report_errors(lambda: len(decompress(b"x"))) == 3
    told = MESSAGE.format(place=sys.prefix).replace("xxhash", "backports.zstd")
    assert capsys.readouterr().err == f"ERROR: {told}"
    with pytest.raises(ModuleNotFoundError):
        compression.compressor(Compressor.ZSTD)
