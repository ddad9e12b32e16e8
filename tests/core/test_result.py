from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import race_samples
from race_samples import METHODS, single
from rich.console import Console

from hasten.core.card import Card
from hasten.core.errors import InputError, UnknownNameError
from hasten.core.registry import methods
from hasten.core.result import Result, Scored
from hasten.core.trace import Trace

INF = math.inf


def made(
    costs: dict[str, list[float]], target: float | None = 0.1, best: dict[str, list[float]] | None = None
) -> Result:
    """A race from the cost to the target of each seed; `best` gives the metric where that is what counts."""
    runs = []
    for method, column in costs.items():
        for seed, cost in enumerate(column):
            arrived = math.isfinite(cost)
            trace = Trace(status="reached" if arrived else "budget", target=target)
            trace.append(0, 0.0, 5.0, {}, 0)
            last = best[method][seed] if best else 0.05 if arrived else 0.5
            trace.append(int(cost) if arrived else 1000, 0.5, last, {"gradient": 7}, 0)
            runs.append(Scored("p", method, seed, {"lr": 0.1}, trace))
    problems = {
        "p": {"name": "p", "kind": "train", "measures": "loss", "target": target, "summary": "", "cost": "steps"}
    }
    return Result(runs, problems=problems, baselines={"p": "made.base"}, methods=list(costs))


def shown(result: Result, width: int = 160) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.table())
    return console.export_text()


class TestFrame:
    def test_has_one_row_per_run_with_every_cost_to_the_target(self):
        frame = single().frame()
        assert len(frame) == 5 * len(METHODS)
        row = frame[(frame.method == "made.adopt") & (frame.seed == 3)].iloc[0]
        trace = race_samples.decay(race_samples.SPEED["made.adopt"], 3)
        assert row.reached
        assert (row.steps, row.calls, row.best) == (trace.steps[-1], trace.steps[-1], trace.best)
        assert row.seconds == pytest.approx(trace.seconds[-1])
        never = frame[frame.method == "made.sophia"]
        assert (never.steps == INF).all()
        assert not never.reached.any()

    def test_keeps_why_a_run_failed(self):
        frame = single().frame()
        assert set(frame[frame.method == "made.broken"].status) == {"error"}
        assert frame[frame.method == "made.unstable"].message.str.contains("nan at step 120").any()


class TestSummary:
    def test_ranks_by_seeds_that_arrived_then_by_cost_then_by_metric(self):
        summary = single().summary()
        assert list(summary.method) == [
            "made.adopt",
            "made.lion",
            "made.adamw",
            "made.prodigy",
            "made.unstable",
            "made.sophia",
            "made.broken",
        ]
        assert list(summary["rank"]) == [1, 2, 3, 4, 5, 6, 7]

    def test_takes_medians_over_seeds_and_ratios_to_the_baseline(self):
        summary = made({"made.base": [100, 200, 300], "made.fast": [60, 100, 120]}).summary().set_index("method")
        fast = summary.loc["made.fast"]
        assert (fast.steps, fast.ratio_steps, fast.seeds, fast.reached) == (100, 0.5, 3, 3)
        assert fast.ratio_steps_low <= 0.5 <= fast.ratio_steps_high
        assert summary.loc["made.base"].ratio_steps == 1
        assert summary.loc["made.base"].baseline

    def test_counts_failures(self):
        summary = single().summary().set_index("method")
        assert summary.loc["made.unstable"].diverged == 3
        assert summary.loc["made.broken"].error == 5
        assert summary.loc["made.unstable"].ratio_steps == INF

    def test_pairs_the_seeds_that_both_have(self):
        full = made({"made.base": [100, 200, 300], "made.fast": [50, 100, 150]})
        part = Result(
            [run for run in full.runs if (run.method, run.seed) != ("made.fast", 2)],
            problems=full.problems,
            baselines=full.baselines,
            methods=full.methods,
        )
        found = part.compare("p", "made.fast")
        assert found is not None
        assert (found.seeds, found.value) == (2, 0.5)

    def test_the_target_of_the_race_counts_not_the_one_of_the_trace(self):
        result = single(target=1.0)
        assert result.median("digits-mlp", "made.sophia", "steps") < INF


class TestBest:
    def test_is_the_first_with_its_hyper_parameters(self):
        best = single().best
        assert best is not None
        assert (best.method, best.name, best.reached, best.seeds) == ("made.adopt", "adopt", 5, 5)
        assert best.hyper == {"lr": 0.003, "betas": (0.9, 0.99)}

    def test_arriving_more_often_goes_before_arriving_soon(self):
        best = made({"made.base": [100, 100, 100], "made.fast": [10, 10, INF]}).best
        assert best is not None
        assert best.method == "made.base"

    def test_over_several_problems_weighs_relative_costs(self):
        result = race_samples.several()
        # lion costs 1.30, 1 and 1.5 times the best; adopt 1, 3.2 and 1 times.
        assert result.best is not None
        assert result.best.method == "made.lion"
        assert result.best.problem == "federated-digits"

    def test_is_none_if_every_run_failed(self):
        result = single(methods=["made.broken"])
        assert result.best is None
        assert result.code() == ""

    def test_code_is_the_code_of_the_card(self):
        card = methods()[0]
        result = made({card.id: [10, 20]})
        assert result.code() == card.code({"lr": 0.1})
        fixed = made({f"{card.id}:lr=0.1": [10, 20]})
        assert fixed.code() == card.code({"lr": 0.1})
        assert isinstance(fixed.best and fixed.best.card, Card)

    def test_code_of_a_method_from_elsewhere_still_names_it(self):
        assert made({"mine.own": [10]}).code() == "method = hasten.get('mine.own').make(lr=0.1)"

    def test_labels_are_short_unless_that_is_ambiguous(self):
        labels = made({"a.newton": [1], "b.newton": [1], "b.sgd:lr=0.01": [1]}).labels
        assert labels == {"a.newton": "a.newton", "b.newton": "b.newton", "b.sgd:lr=0.01": "sgd:lr=0.01"}


BASE = [100, 110, 120, 130, 140]


class TestSentence:
    @pytest.mark.parametrize(
        ("costs", "parts"),
        [
            ({"made.fast": [50, 55, 60, 65, 70]}, ["fast reaches loss 0.1 in 0.50× the steps of base", "excludes 1."]),
            ({"made.fast": [95, 130, 90, 150, 118]}, ["0.98×", "includes 1: these 5 seeds do not tell the two apart"]),
            (
                {"made.slow": [200, 220, 240, 260, 280]},
                ["base stays ahead", "slow, takes 2.00× the steps", "excludes 1"],
            ),
            ({"made.slow": [INF] * 5}, ["base stays ahead", "slow, with 0 of 5 seeds"]),
            ({}, ["base reaches loss 0.1 in 120 steps (median of 5 of 5 seeds); nothing else ran"]),
        ],
    )
    def test_says_who_wins_and_how_sure_that_is(self, costs, parts):
        sentence = made({"made.base": BASE, **costs}).sentence()
        for part in parts:
            assert part in sentence
        assert "nan" not in sentence
        assert "inf " not in sentence

    def test_few_seeds_are_not_passed_off_as_certainty(self):
        three = made({"made.base": [100, 110, 120], "made.fast": [50, 55, 60]}).sentence()
        assert "excludes 1, though 3 seeds say little" in three
        one = made({"made.base": [100], "made.fast": [50]}).sentence()
        assert "0.50×" in one
        assert "one seed gives no interval" in one
        assert "90 %" not in one

    def test_a_baseline_that_never_arrived_gives_no_ratio(self):
        sentence = made({"made.base": [INF] * 5, "made.fast": [50] * 5}).sentence()
        assert "fast reaches loss 0.1 in 50 steps (5 of 5 seeds)" in sentence
        assert "the baseline base reached it with 0 of 5 seeds, so there is no ratio" in sentence

    def test_a_baseline_that_mostly_failed_gives_no_ratio(self):
        sentence = made({"made.base": [100, INF, INF], "made.fast": [50] * 3}).sentence()
        assert "with 3 of 3 seeds, the baseline base with 1 of 3 seeds; that leaves no ratio" in sentence

    def test_a_slower_but_steadier_winner_is_called_that(self):
        costs = {"made.base": [100, 100, 100, 100, INF], "made.steady": [150, 160, 150, 155, 150]}
        sentence = made(costs).sentence()
        assert "1.50× the steps of base" in sentence
        assert "5 of 5 seeds, base 4 of 5 seeds" in sentence
        assert "arrives more often, not because it is faster" in sentence

    def test_without_a_target_the_best_metric_is_compared(self):
        values = {"made.base": [1.0, 1.1, 1.2], "made.low": [0.5, 0.55, 0.6]}
        sentence = made({m: [INF] * 3 for m in values}, None, values).sentence()
        assert "low gets lowest within the budget: best loss 0.55" in sentence
        assert "0.50× the baseline base's 1.1" in sentence

    def test_where_nobody_arrived_the_best_metric_is_compared(self):
        values = {"made.base": [1.0, 1.1, 1.2], "made.low": [0.5, 0.55, 0.6]}
        sentence = made({m: [INF] * 3 for m in values}, 0.1, values).sentence()
        assert sentence.startswith("No method reached loss 0.1 within the budget. low came closest: best loss 0.55")

    def test_metrics_that_may_be_negative_are_compared_by_difference(self):
        values = {"made.base": [-1.0, -1.1, -1.2], "made.low": [-3.0, -3.1, -3.2]}
        result = made({m: [INF] * 3 for m in values}, None, values)
        assert (
            "-2 against the baseline base's -1.1 (90 % interval -2 to -2); the interval excludes 0" in result.sentence()
        )
        assert math.isnan(result.summary().set_index("method").loc["made.low"].ratio_best)
        assert "-2" in shown(result)

    def test_a_race_in_which_everything_failed_says_why(self):
        sentence = single(methods=["made.broken"]).sentence()
        assert "all 5 runs failed (error): broken: ValueError: lr must be positive" in sentence

    def test_the_baseline_may_be_missing(self):
        result = made({"made.a": [10, 12, 14], "made.b": [20, 24, 28]})
        assert result.sentence().startswith("a reaches loss 0.1 in 12 steps")
        assert result.compare("p", "made.a") is None

    def test_an_empty_race_is_no_crash(self):
        empty = made({})
        assert empty.sentence() == "Nothing has run on p yet."
        assert empty.best is None
        assert empty.frame().empty
        assert empty.summary().empty

    def test_an_unknown_problem_is_named(self):
        with pytest.raises(UnknownNameError, match="unknown problem 'q'"):
            single().sentence("q")


class TestProfile:
    def test_solves_pairs_of_problem_and_seed(self):
        profile = race_samples.several().performance_profile("steps")
        assert profile.index[0] == 1
        assert profile.iloc[-1]["made.lion"] == 1
        assert profile.iloc[-1]["made.sophia"] == 0
        assert profile.iloc[-1]["made.unstable"] == pytest.approx(2 / 15)

    def test_leaves_out_problems_without_a_target(self):
        assert single(target=None).performance_profile().empty


class TestPlot:
    @pytest.mark.parametrize("by", ["steps", "seconds", "calls"])
    def test_shows_every_method_that_gave_a_value_and_the_target(self, by):
        figure = single().plot(by)
        names = [trace.name for trace in figure.data if trace.name]
        assert names[:3] == ["adopt", "lion", "adamw"]
        assert set(names) == {m.removeprefix("made.") for m in METHODS}
        assert figure.layout.shapes[0].y0 == 0.1

    def test_a_median_that_arrives_ends_on_its_cost(self):
        result = single()
        line = next(trace for trace in result.plot().data if trace.name == "adopt")
        assert line.x[-1] == result.median("digits-mlp", "made.adopt", "steps")
        assert line.y[-1] <= 0.1

    def test_a_diverged_median_is_cut_not_drawn(self):
        figure = single(seeds=3).plot()
        line = next(trace for trace in figure.data if trace.name == "unstable")
        assert all(value is None or math.isfinite(value) for value in line.y)
        high = figure.layout.yaxis.range[1]
        assert high < math.log10(2.3) + 0.5

    def test_a_method_keeps_its_look_everywhere(self):
        looks = {t.name: (t.line.color, t.line.dash) for t in single().plot("steps").data if t.name}
        again = {t.name: (t.line.color, t.line.dash) for t in single().plot("seconds").data if t.name}
        assert looks == again
        assert len(set(looks.values())) == len(looks)

    def test_an_unknown_measure_is_named(self):
        with pytest.raises(InputError, match="by must be one of"):
            single().plot("minutes")


class TestTable:
    def test_shows_rank_ratio_interval_and_failures(self):
        text = shown(single())
        assert text.index("adopt") < text.index("lion") < text.index("adamw") < text.index("prodigy")
        for part in ("0.65×", "0.58–0.67", "baseline", "3 diverged", "5 error", "not reached"):
            assert part in text

    def test_names_are_text_not_markup(self):
        assert "[red]x[/red]" in shown(made({"made.base": [10], "mine.[red]x[/red]": [5]}))

    def test_several_problems_make_several_tables(self):
        text = shown(race_samples.several())
        assert "digits-mlp: steps to mean loss 0.1" in text
        assert "federated-digits: bytes sent" in text


class TestData:
    def test_round_trips_through_json(self):
        result = race_samples.several()
        again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
        assert again.frame().drop(columns="hyper").equals(result.frame().drop(columns="hyper"))
        assert [again.sentence(p) for p in again.problems] == [result.sentence(p) for p in result.problems]

    def test_refuses_a_run_of_an_unknown_problem(self):
        result = made({"made.base": [10]})
        stray = replace(result.runs[0], problem="q")
        with pytest.raises(InputError, match="not described"):
            Result([stray], problems=result.problems, baselines={}, methods=[])

    def test_refuses_a_run_scored_twice(self):
        result = made({"made.base": [10]})
        with pytest.raises(InputError, match="scored twice with seed 0"):
            Result(result.runs * 2, problems=result.problems, baselines={}, methods=[])

    def test_refuses_an_unknown_cost(self):
        with pytest.raises(InputError, match="cost of problem 'p'"):
            Result([], problems={"p": {"cost": "minutes"}}, baselines={}, methods=[])
