"""What refers to the images of a store: kept whole, and damage costs only time."""

from pathlib import Path

import pytest

from rc_tasks.state.store.catalogue import Cached, Catalogue, FailedInstruction, Pulled

REFERENCES = (
    "ubuntu",
    "docker.io/library/debian:12",
    "[::1]:5000/team/x_y:2025.1@sha256:" + "a" * 64,
    "registry.example.com:5000/" + "very-long/" * 23 + "name:tag",
)


def pulled(reference: str) -> Pulled:
    return Pulled(reference, "sha256:" + "1" * 64, "2" * 64, "2026-01-02T03:04:05+00:00", "node 1")


def test_every_reference_has_an_entry_of_its_own_by_architecture(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    for reference in REFERENCES:
        assert catalogue.base(reference, "x86_64") is None
        catalogue.put_base(pulled(reference), "x86_64")
    for reference in REFERENCES:
        assert catalogue.base(reference, "x86_64") == pulled(reference)
        assert catalogue.base(reference, "aarch64") is None
    assert {base.reference for base in catalogue.bases()} == set(REFERENCES)
    locks = {catalogue.base_lock(reference, "x86_64") for reference in REFERENCES}
    assert len(locks) == len(REFERENCES) and not any(lock.exists() for lock in locks)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"built": 3}', '{"built": [{}]}', "\xff"])
def test_a_damaged_entry_counts_as_none(tmp_path: Path, text: str) -> None:
    catalogue = Catalogue(tmp_path)
    catalogue.put_base(pulled("ubuntu"), "x86_64")
    catalogue.put_cache("app:1", (Cached("a", ""),))
    for path in tmp_path.rglob("*.json"):
        path.write_bytes(text.encode("latin-1"))
    assert catalogue.base("ubuntu", "x86_64") is None
    assert list(catalogue.bases()) == []
    assert catalogue.cache("app:1") == ()


def test_a_failed_build_adds_to_what_the_last_good_one_made(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    one, two, three = (Cached(letter * 64, letter) for letter in "abc")
    assert catalogue.cache("app:1") == ()
    catalogue.put_cache("app:1", (one, two))
    catalogue.put_cache("app:1", (one, three), failed=True)
    assert catalogue.cache("app:1") == (one, two, three)
    # Only of the last one that failed, so that it does not grow for ever.
    catalogue.put_cache("app:1", (one,), failed=True)
    assert catalogue.cache("app:1") == (one, two)
    catalogue.put_cache("app:1", (three,))
    assert dict(catalogue.caches()) == {"app:1": (three,)}


def test_the_failed_instruction_is_kept_until_a_build_succeeds(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path)
    one, two = (Cached(letter * 64, letter) for letter in "ab")
    assert catalogue.failed_instruction("app:1") is None
    catalogue.put_cache("app:1", (one,))
    failed = FailedInstruction(3, "FROM x\n", "c" * 64, {"A": "1"}, "4.3.1")
    catalogue.put_failed_instruction("app:1", failed)
    catalogue.put_cache("app:1", (two,), failed=True)
    assert catalogue.failed_instruction("app:1") == failed
    assert catalogue.cache("app:1") == (one, two)
    # Its image, which may be that of the base alone, is in use.
    assert dict(catalogue.caches()) == {"app:1": (one, two, Cached("c" * 64, ""))}
    catalogue.rename_cache("app:1", "app:2")
    assert catalogue.failed_instruction("app:2") == failed
    catalogue.put_cache("app:2", (two,))
    assert catalogue.failed_instruction("app:2") is None
