"""Some variants of every kind of file, by seed. `make fuzz` runs many more."""

import pytest

from fuzz.judge import KINDS, judge

SEEDS = range(3 * len(KINDS))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_variant_is_read_rightly_refused_by_name_or_counted(seed: int):
    verdict = judge(seed)
    assert verdict.fault is None, f"{verdict.what}: {verdict.outcome}\n{verdict.fault}"
