from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core import stats
from hasten.core.errors import InputError
from hasten.core.stats import bootstrap_difference, bootstrap_ratio, performance_profile

INF = math.inf
cost = st.one_of(st.floats(0.01, 1e4), st.just(INF))
pairs = st.integers(2, 8).flatmap(lambda n: st.tuples(*[st.lists(cost, min_size=n, max_size=n)] * 2))


class TestRatio:
    @pytest.mark.parametrize(
        ("ours", "theirs", "value"),
        [
            ([2, 4, 6], [4, 8, 8], 0.5),
            ([1, 2, INF], [1, 2, 4], 1.0),
            ([1, INF, INF], [1, 2, 4], INF),
            ([1, 2, 4], [INF, INF, 1], 0.0),
            ([1, INF], [2, 2], INF),
            ([0, 0, 0], [0, 0, 0], 1.0),
            ([0, 0, 0], [1, 2, 3], 0.0),
        ],
    )
    def test_is_the_ratio_of_medians_where_not_arriving_costs_inf(self, ours, theirs, value):
        assert bootstrap_ratio(ours, theirs).value == value

    def test_says_nothing_where_neither_median_arrived(self):
        found = bootstrap_ratio([1, INF, INF], [INF, INF, 2])
        assert math.isnan(found.value)
        assert (found.low, found.high) == (0.0, INF)
        assert not found.decided

    def test_has_no_interval_with_one_seed_and_no_value_with_none(self):
        one, none = bootstrap_ratio([1], [2]), bootstrap_ratio([], [])
        assert one.value == 0.5
        assert math.isnan(one.low)
        assert not one.decided
        assert math.isnan(none.value)
        assert none.seeds == 0

    @pytest.mark.parametrize(
        ("count", "level", "rank"),
        # The bootstrap median of n values is their k-th smallest or less with probability P(Bin(n, k/n) > n/2):
        # n=3: 0.26 at k=1; n=5: 0.058 at k=1 and 0.317 at k=2.
        [(3, 0.9, 1), (5, 0.9, 1), (5, 0.88, 2), (5, 0.3, 3)],
    )
    def test_interval_of_few_seeds_is_the_exact_bootstrap(self, count, level, rank):
        values = np.arange(1.0, count + 1)
        found = bootstrap_ratio(values, np.ones(count), level=level)
        assert (found.low, found.high) == (rank, count + 1 - rank)

    def test_random_resamples_agree_with_all_resamples(self, monkeypatch):
        ours, theirs = [3.0, 4.1, 5.2, 7.0, 9.5, 2.2], [5.0, 5.5, 6.1, 8.8, 9.0, 4.0]
        exact = bootstrap_ratio(ours, theirs)
        monkeypatch.setattr(stats, "_EXACT_UP_TO", 0)
        drawn = bootstrap_ratio(ours, theirs)
        assert drawn.low == pytest.approx(exact.low, rel=0.05)
        assert drawn.high == pytest.approx(exact.high, rel=0.05)
        assert drawn == bootstrap_ratio(ours, theirs)

    def test_what_seeds_share_cancels(self):
        easy = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
        found = bootstrap_ratio(0.7 * easy, easy)
        assert (found.low, found.high) == (pytest.approx(0.7), pytest.approx(0.7))
        assert found.decided

    @given(pairs, st.floats(0.1, 10))
    def test_scales_with_the_cost_and_inverts_with_the_roles(self, both, factor):
        ours, theirs = both
        found = bootstrap_ratio(ours, theirs)
        scaled = bootstrap_ratio([factor * c for c in ours], theirs)
        assert scaled.value == pytest.approx(factor * found.value, nan_ok=True)
        assert scaled.high == pytest.approx(factor * found.high)
        swapped = bootstrap_ratio(theirs, ours)
        if 0 < found.value < INF:
            assert swapped.value == pytest.approx(1 / found.value)

    @given(pairs)
    def test_the_interval_is_ordered_and_never_nan(self, both):
        found = bootstrap_ratio(*both)
        assert 0 <= found.low <= found.high

    @given(pairs, st.data())
    def test_a_costlier_run_never_lowers_the_ratio(self, both, data):
        ours, theirs = both
        place = data.draw(st.integers(0, len(ours) - 1))
        worse = [INF if i == place else c for i, c in enumerate(ours)]
        before, after = bootstrap_ratio(ours, theirs), bootstrap_ratio(worse, theirs)
        assert math.isnan(before.value) or math.isnan(after.value) or after.value >= before.value
        assert after.high >= before.high

    @pytest.mark.parametrize(
        ("seeds", "least", "most"), [(3, 0.68, 0.82), (5, 0.88, 0.98), (9, 0.88, 0.98), (15, 0.9, 1.0)]
    )
    def test_interval_covers_the_true_ratio(self, seeds, least, most):
        rng, hits, repeats = np.random.default_rng(5), 0, 250
        for _ in range(repeats):
            shared = np.exp(0.3 * rng.standard_normal(seeds))
            theirs = 100 * shared * np.exp(0.1 * rng.standard_normal(seeds))
            ours = 80 * shared * np.exp(0.1 * rng.standard_normal(seeds))
            found = bootstrap_ratio(ours, theirs)
            hits += found.low <= 0.8 <= found.high
        assert least <= hits / repeats <= most

    @pytest.mark.parametrize(
        ("ours", "theirs", "words"),
        [([1, 2], [1], "one value per seed"), ([math.nan], [1], "nan"), ([-1], [1], ">= 0")],
    )
    def test_refuses_what_are_no_costs(self, ours, theirs, words):
        with pytest.raises(InputError, match=words):
            bootstrap_ratio(ours, theirs)

    def test_refuses_an_impossible_level(self):
        with pytest.raises(InputError, match="level"):
            bootstrap_ratio([1, 2], [1, 2], level=1.0)


def test_difference_takes_values_of_either_sign():
    found = bootstrap_difference([-3, -2, -1], [-1, 0, 1])
    assert (found.value, found.neutral) == (-2, 0)
    assert found.high < 0
    assert found.decided


class TestProfile:
    def test_is_dolan_and_more(self):
        # Method 0 is best on the first problem, method 1 on the second, by factors 3 and 2; nobody solves the third.
        tau, share = performance_profile([[1, 3], [4, 2], [INF, INF]])
        assert tau.tolist() == [1, 2, 3]
        assert share.tolist() == [[1 / 3, 1 / 3], [2 / 3, 1 / 3], [2 / 3, 2 / 3]]

    @given(
        st.integers(1, 4).flatmap(
            lambda n: st.lists(st.lists(cost, min_size=n, max_size=n), min_size=1, max_size=6),
        )
    )
    def test_grows_from_the_share_of_wins_to_the_share_of_problems_solved(self, costs):
        tau, share = performance_profile(costs)
        table = np.array(costs)
        assert tau[0] == 1
        assert (np.diff(tau) > 0).all()
        assert (np.diff(share, axis=0) >= 0).all()
        assert share[-1] == pytest.approx(np.isfinite(table).mean(axis=0))
        solved = np.isfinite(table).any(axis=1)
        best = (table == table.min(axis=1, keepdims=True)) & solved[:, None]
        assert share[0] == pytest.approx(best.mean(axis=0))

    @pytest.mark.parametrize("costs", [[], [[math.nan]], [[-1.0]], [1.0, 2.0]])
    def test_refuses_what_is_no_table_of_costs(self, costs):
        with pytest.raises(InputError, match="costs"):
            performance_profile(costs)
