"""The table of mutations.py fits the code, so that the script can be run; and its page knows every line of it."""

import mutations
import pytest
from mutations import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file.split('/')[-1]}: {mutant.was}")
def test_the_code_has_it_exactly_once(mutant: Mutant) -> None:
    assert mutations.fits(mutant)
    assert mutant.was != mutant.becomes
    assert mutant.file in mutations.C_TESTS or mutant.file in mutations.PYTHON_TESTS


def test_there_are_enough_and_none_is_there_twice() -> None:
    assert len(MUTANTS) >= 150
    assert len({mutations.row_of(mutant) for mutant in MUTANTS}) == len(MUTANTS)


def test_the_page_has_the_result_of_each_and_none_survived() -> None:
    results = mutations.known()
    assert [mutations.row_of(mutant) for mutant in MUTANTS if mutations.row_of(mutant) not in results] == []
    for mutant in MUTANTS:
        result = results[mutations.row_of(mutant)]
        assert result == ("equivalent", mutant.equivalent) if mutant.equivalent else result.word == "killed"
    assert len(results) == len(MUTANTS)
