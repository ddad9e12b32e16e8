"""The command `hasten`: race, list, show, claims, train. Parses, calls core, prints."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hasten.core.errors import HastenError, InputError

if TYPE_CHECKING:
    from hasten.core.card import Card
    from hasten.core.claim import Claim

app = typer.Typer(
    help="Race published methods on your problem; see what was reproduced of each paper.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out = Console()
err = Console(stderr=True)
INTERRUPTED = 130
WIDE = 120
DEFAULT_PROBLEM = "digits-mlp"


def _method_names(incomplete: str) -> list[str]:
    """What the shell offers where a method is to be named."""
    from hasten.core.registry import methods

    cards = methods()
    names = [*(card.name for card in cards), *(card.id for card in cards)]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _problem_names(incomplete: str) -> list[str]:
    """What the shell offers where a problem is to be named."""
    from hasten.core.catalogue import problems

    return [entry.name for entry in problems() if entry.name.startswith(incomplete)]


def _network_names(incomplete: str) -> list[str]:
    """What the shell offers where a network is to be named."""
    from hasten.problems.networks import recipes

    return [entry.name for entry in recipes() if entry.name.startswith(incomplete)]


def _preset_names(incomplete: str) -> list[str]:
    """What the shell offers after `--preset`."""
    from hasten.core.preset import presets

    return [entry.name for entry in presets() if entry.name.startswith(incomplete)]


@app.command()
def race(
    problem: Annotated[
        str | None,
        typer.Argument(
            help="ready problem (see `hasten list problems`) or a .py file; digits-mlp if none",
            autocompletion=_problem_names,
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Argument(help="methods, e.g. adamw adopt:lr=1e-3; those that fit if none", autocompletion=_method_names),
    ] = None,
    target: Annotated[float | None, typer.Option(help="metric value that counts as arrived")] = None,
    budget: Annotated[str | None, typer.Option(help="per run: 500 (steps), 30s, 2000calls")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="a race with everything settled, see `hasten list presets`; options go before its own",
            autocompletion=_preset_names,
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="scored runs per method; 5 if not given")] = None,
    trials: Annotated[
        int | None, typer.Option(help="tuning trials per method, 8 if not given; 1 races the defaults")
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="method that ratios are taken against")] = None,
    cost: Annotated[str | None, typer.Option(help="rank by steps, seconds, calls or bytes")] = None,
    engine: Annotated[str, typer.Option(help="local, inline, ray or ray://host:port")] = "local",
    workers: Annotated[int | None, typer.Option(help="parallel runs; one per core")] = None,
    patience: Annotated[float, typer.Option(help="seconds without a sign of life before a run counts as hung")] = 120.0,
    store: Annotated[Path, typer.Option(help="results file; what it holds is not run again")] = Path(
        ".hasten/results.db"
    ),
    report: Annotated[Path | None, typer.Option(help="write an HTML report here")] = None,
    seed: Annotated[int, typer.Option(help="shifts all seeds")] = 0,
) -> None:
    """Race methods on a problem and say which gets there first."""
    from hasten.core.live import Live
    from hasten.core.preset import get as get_preset
    from hasten.core.race import race as run_race

    if report is not None:
        from hasten.core.report import check_destination

        check_destination(report)
    given = {"target": target, "budget": budget, "seeds": seeds, "trials": trials, "baseline": baseline, "cost": cost}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    options |= {"engine": engine, "workers": workers, "patience": patience, "store": store, "seed": seed}
    chosen = None if preset is None else get_preset(preset)
    if chosen is not None and problem is not None:
        raise InputError(f"--preset {chosen.name} settles problems and methods; leave out {problem!r}")
    board = Live(err)
    try:
        if chosen is not None:
            result = chosen.race(**options, listener=board)
        else:
            result = run_race(problem or DEFAULT_PROBLEM, methods or (), **options, listener=board)
    except KeyboardInterrupt:
        board.stop()
        err.print("Stopped. Finished runs are kept; the same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        board.stop()
    out.print(result.table())
    for name in result.problems:
        out.print(escape(result.sentence(name)), soft_wrap=True)
    code = result.code()
    if code:
        out.print("\nTo use the winner:\n")
        out.print(textwrap.indent(code, "    "), markup=False, highlight=False, soft_wrap=True)
    if report is not None:
        out.print(f"\nReport: {result.report(report)}", markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_(
    family: Annotated[
        str | None, typer.Argument(help="a family, a kind of problem, `problems`, `presets` or `networks`")
    ] = None,
) -> None:
    """List methods (of one family, or for one kind of problem), the ready problems, the presets or the networks."""
    from hasten.core.catalogue import problems
    from hasten.core.claim import claims
    from hasten.core.preset import presets
    from hasten.core.registry import families, methods

    if family == "presets":
        for entry in presets():
            out.print(f"{entry.name}: {entry.summary} ({', '.join(entry.problems)})", markup=False, soft_wrap=True)
        return
    if family == "networks":
        from hasten.problems.networks import cached_file, recipes

        for network in recipes():
            state = "trained" if cached_file(network.name).is_file() else "not trained yet"
            out.print(f"{network.name}: {network.summary} ({state})", markup=False, soft_wrap=True)
        return
    if family == "problems":
        table = Table(box=None, pad_edge=False)
        for heading in ("problem", "kind"):
            table.add_column(heading, no_wrap=True)
        table.add_column("what it is")
        for entry in problems():
            table.add_row(escape(entry.name), entry.kind, escape(entry.summary))
        out.print(table)
        return
    kinds = {kind for card in methods() for kind in card.kinds}
    cards = methods(family) if family in (None, *families()) or family not in kinds else methods()
    if family in kinds and family not in families():
        cards = [card for card in cards if family in card.kinds]
    verdicts: dict[str, Counter[str]] = {}
    for made in claims():
        verdicts.setdefault(made.method, Counter())[made.verdict] += 1
    table = Table(box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    wide = out.width >= WIDE
    for heading in ("for", "paper") if wide else ():
        table.add_column(heading, no_wrap=True)
    table.add_column("reproduced", no_wrap=True)
    table.add_column("what it does")
    for card in cards:
        counts = verdicts.get(card.id, Counter())
        evidence = f"{counts['reproduced']} of {counts.total()}" if counts else ""
        more = (", ".join(card.kinds), _paper(card)) if wide else ()
        table.add_row(escape(card.id), *more, evidence, escape(card.summary))
    out.print(table)


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="a method, e.g. adopt", autocompletion=_method_names)],
) -> None:
    """Show a method: its card, what was reproduced of its paper, how to use it."""
    from hasten.core.claim import claims
    from hasten.core.registry import get

    card = get(method)
    out.print(f"[bold]{escape(card.id)}[/bold]  {escape(card.summary)}\n", soft_wrap=True)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    facts.add_row("paper", escape(f"{card.title}. {card.source}"))
    facts.add_row("cost", escape(card.cost))
    facts.add_row("prefer it", escape(card.when))
    facts.add_row("serves", ", ".join(card.kinds) + (f" (with {', '.join(card.needs)})" if card.needs else ""))
    for name, span in card.search_space.items():
        facts.add_row(f"tunes {name}", escape(str(span)))
    out.print(facts)
    out.print("\n[bold]How to use it[/bold]\n")
    out.print(textwrap.indent(card.code(), "    "), markup=False, highlight=False, soft_wrap=True)
    made = claims(card.id)
    if made:
        out.print("\n[bold]Evidence[/bold]\n")
        out.print(_evidence(made))


@app.command()
def train(
    network: Annotated[
        str, typer.Argument(help="a network, see `hasten list networks`", autocompletion=_network_names)
    ],
    force: Annotated[bool, typer.Option("--force", help="train again although its weights are there")] = False,
) -> None:
    """Train one of the small networks that problems need, once per machine, and keep its weights."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from hasten.problems.networks import cached_file
    from hasten.problems.networks import train as run_training

    cached_file(network)
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=err) as progress:
        task = progress.add_task(network, total=None)

        def show(step: int, steps: int, loss: float) -> None:
            progress.update(task, total=steps, completed=step, description=f"{network}, loss {loss:.4g}")

        path = run_training(network, show, force=force)
    out.print(f"Weights: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command("claims")
def claims_(
    which: Annotated[str | None, typer.Argument(help="a family, a method or one claim's id")] = None,
    run: Annotated[bool, typer.Option("--run", help="measure again and print, without writing")] = False,
    write: Annotated[bool, typer.Option("--write", help="measure what is new or changed, keep it")] = False,
    force: Annotated[bool, typer.Option("--force", help="measure also what has not changed")] = False,
    jobs: Annotated[int, typer.Option(help="claims measured at the same time")] = 1,
) -> None:
    """Show the claims and their evidence; measure them again with --run or --write."""
    from hasten.core import claim
    from hasten.core.measure import measure

    chosen = claim.claims(which)
    if not (run or write):
        out.print(_evidence(chosen))
        out.print(_tally(chosen))
        return
    todo = [made for made in chosen if force or run or not made.current]
    failures = 0
    for made, outcome in measure(todo, jobs):
        if isinstance(outcome, str):
            failures += 1
            err.print(f"{made.id}: failed: {outcome}", markup=False, style="red", soft_wrap=True)
            continue
        if write:
            claim.write(made, outcome)
        line = f"{made.id}: {outcome.verdict}: {made.quantity} = {outcome.measured:.4g} ({outcome.seconds:.0f} s)"
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if write:
        out.print(_tally(chosen))
    if failures:
        raise typer.Exit(1)


def _evidence(claims: list[Claim]) -> Table:
    table = Table("paper", "claim", "expected", "measured", "verdict", show_lines=False, box=None)
    colours = {"reproduced": "green", "not reproduced": "yellow"}
    for made in claims:
        measured = "" if made.measured is None else f"{made.measured:.4g}"
        verdict = made.verdict + ("" if made.current or made.measured is None else " (out of date)")
        colour = colours.get(made.verdict, "dim")
        expected = f"{made.quantity} {made.expectation}"
        table.add_row(
            str(made.paper_id or ""), escape(made.id), escape(expected), measured, f"[{colour}]{verdict}[/{colour}]"
        )
    return table


def _tally(claims: list[Claim]) -> str:
    counts = Counter(made.verdict for made in claims)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "no claims"


def _paper(card: Card) -> str:
    return f"{card.year}" + (f", {card.arxiv}" if card.arxiv else "")


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: errors of ours become one message and exit status 2."""
    try:
        return app(arguments, standalone_mode=True)
    except HastenError as error:
        err.print(f"[bold red]Error:[/bold red] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
