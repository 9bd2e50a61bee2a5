"""The table of benchmarks/mutations.py keeps up with the code that it mutates."""

import re
from pathlib import Path

import pytest

from benchmarks.mutations import MUTATIONS, ROOT, TESTS, Mutation, mutated_text


def test_every_row_changes_one_place_and_leaves_python_that_compiles() -> None:
    for mutation in MUTATIONS:
        text = (ROOT / mutation.file).read_text(encoding="utf-8")
        compile(mutated_text(mutation, text), mutation.file, "exec")
        assert mutation.original != mutation.mutated


def test_every_file_has_tests_and_every_sampler_has_rows() -> None:
    assert {mutation.file for mutation in MUTATIONS} == set(TESTS)
    for tests in TESTS.values():
        for test in tests:
            assert (ROOT / "tests/diffusion" / test).is_file(), test
    samplers = {str(path.relative_to(ROOT)) for path in Path(ROOT / "diffusion/samplers").glob("*.py")}
    assert samplers - {"diffusion/samplers/__init__.py"} <= set(TESTS)


def test_the_oracle_part_is_what_the_table_runs() -> None:
    marked = {
        path.name
        for path in (ROOT / "tests/diffusion").glob("test_*.py")
        if re.search(r"^pytestmark = .*\bpytest\.mark\.oracle\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert marked == {test for tests in TESTS.values() for test in tests}


def test_a_text_that_is_not_there_is_reported() -> None:
    with pytest.raises(ValueError, match="has 'twice' 2 times"):
        mutated_text(Mutation("a.py", "twice", "once"), "twice twice")
