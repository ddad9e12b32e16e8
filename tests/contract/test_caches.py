"""What every cache must do, whatever its rule: change nothing without forecasts, leave no trace, start anew."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.core.card import Card
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.sample import sampling
from hasten.core.run import run
from hasten.diffusion import CFG, DDIM, Denoiser, FlowMatching, ParaDiGMS, sample
from hasten.problems.networks.dit import TinyDiT

CARDS = [card for card in hasten.methods("diffusion") if card.needs == ("blocks",)]
NEUTRAL = {
    "fora": {"interval": 1},
    "taylorseer": {"interval": 1},
    "gated-taylor": {"threshold": 0.0},
    "step-rehash": {"threshold": 2.0},
}
"""Arguments with which a cache forecasts nothing."""
EAGER = {"fora": {}, "taylorseer": {}, "gated-taylor": {"threshold": 10.0}, "step-rehash": {"threshold": -1.0}}
"""Arguments with which it forecasts what it can, whatever the network."""
every = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def filled(model: nn.Module) -> nn.Module:
    """The network with random numbers where its training would begin at zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


@pytest.fixture
def dit() -> nn.Module:
    torch.manual_seed(0)
    return filled(TinyDiT(width=16, depth=3, heads=2))


@pytest.fixture
def pipe() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=4
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    made = diffusers.DiTPipeline(filled(transformer), vae.eval(), diffusers.DDIMScheduler())
    made.set_progress_bar_config(disable=True)
    return made


def noise(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def denoiser(model: nn.Module) -> Denoiser:
    return Denoiser(model, FlowMatching(), "velocity", null=10)


def draw(model: nn.Module, cache: Any, start: Tensor | None = None, **options: Any) -> Tensor:
    start = noise() if start is None else start
    made = denoiser(model).given(torch.arange(len(start)))
    return sample(made, noise=start, **{"sampler": DDIM(grid="uniform"), "steps": 12, **options}, cache=cache)


def images(pipe: Any, labels: list[int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = pipe(labels, num_inference_steps=10, guidance_scale=4.0, generator=generator, output_type="np").images
    return torch.from_numpy(found)


def everything(model: nn.Module) -> list[tuple[str, Any]]:
    """All that instances of modules hold, by identity, and the contents of their tables of hooks."""
    held: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        for key, value in module.__dict__.items():
            held.append((f"{name}.{key}", id(value)))
            if isinstance(value, dict):
                held.append((f"{name}.{key}", [(inner, id(entry)) for inner, entry in value.items()]))
    return held


@every
def test_is_listed_with_its_arguments(card: Card) -> None:
    assert card.name in NEUTRAL
    assert card.name in EAGER


@every
@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver-3"])
def test_changes_nothing_where_it_forecasts_nothing(dit: nn.Module, card: Card, sampler: str) -> None:
    cache = card.load()(**NEUTRAL[card.name])
    assert torch.equal(draw(dit, cache, sampler=sampler), draw(dit, None, sampler=sampler))
    assert cache.forecasts == 0
    guided = {"guidance": CFG(3.0), "sampler": sampler}
    assert torch.equal(draw(dit, cache, **guided), draw(dit, None, **guided))


@every
def test_forecasts_change_the_samples_a_little(dit: nn.Module, card: Card) -> None:
    plain, cached = draw(dit, None), draw(dit, card.load()(**EAGER[card.name]))
    assert 0.0 < float((cached - plain).square().mean().sqrt()) < 0.2 * float(plain.std())


@every
def test_detaches_without_a_trace(dit: nn.Module, card: Card) -> None:
    before, plain = everything(dit), draw(dit, None)
    draw(dit, card.load()(**EAGER[card.name]))
    assert everything(dit) == before
    assert all("forward" not in module.__dict__ for module in dit.modules())
    assert torch.equal(draw(dit, None), plain)


@every
def test_a_forward_of_somebody_else_is_put_back(dit: nn.Module, card: Card) -> None:
    forward = dit.forward
    own = lambda x, t, cond=None: 0.5 * forward(x, t, cond)  # noqa: E731
    dit.forward = own
    plain = draw(dit, None)
    assert torch.equal(draw(dit, card.load()(**NEUTRAL[card.name])), plain)
    assert dit.forward is own


@every
def test_starts_anew_with_every_sample(dit: nn.Module, card: Card) -> None:
    cache = card.load()(**EAGER[card.name])
    first = draw(dit, cache)
    counts = (cache.full, cache.forecasts, cache.stored)
    draw(dit, cache, noise(5, seed=1))
    assert torch.equal(draw(dit, cache), first)
    assert (cache.full, cache.forecasts, cache.stored) == counts


@every
def test_an_error_inside_leaves_no_trace(dit: nn.Module, card: Card) -> None:
    cache = card.load()(**EAGER[card.name])
    before, plain = everything(dit), draw(dit, cache)

    def stop(state: Any) -> None:
        if state.index == 7:
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        draw(dit, cache, callback=stop)
    assert everything(dit) == before
    with pytest.raises(DivergedError, match="step 1"):
        draw(dit, cache, torch.full((3, 1, 8, 8), torch.nan))
    assert everything(dit) == before
    assert torch.equal(draw(dit, cache), plain)


@every
def test_goes_on_after_an_error_inside_a_block(dit: Any, card: Card) -> None:
    """Whoever catches it inside the `with` goes on with a new chain."""
    x, cond = noise(), torch.arange(3)
    with torch.no_grad(), card.load()(**EAGER[card.name]).attached(dit):
        for t in (0.9, 0.8, 0.7):
            dit(x, torch.full((3,), t), cond)
        with pytest.raises(RuntimeError):
            dit(x, torch.full((3,), 0.6), torch.arange(2))
        found = dit(x, torch.full((3,), 0.5), cond)
    with torch.no_grad():
        assert torch.equal(found, dit(x, torch.full((3,), 0.5), cond))


@every
def test_counts_passes_as_evaluations_are_counted(dit: nn.Module, card: Card) -> None:
    cache = card.load()(**EAGER[card.name])
    costs: dict[str, int] = {}
    draw(dit, cache, costs=costs)
    assert (costs["nfe"], costs["rounds"], costs["passes"]) == (12, 12, cache.full)
    assert cache.full + cache.forecasts == 12
    assert 0 < cache.full < 12
    assert cache.stored > 0
    draw(dit, cache, guidance=CFG(3.0), costs=costs)
    assert (costs["nfe"], costs["passes"]) == (24, 2 * cache.full)


@every
def test_calls_at_one_time_are_streams_of_their_own(dit: nn.Module, card: Card) -> None:
    """Two calls per step remember what two networks would."""
    calls = [(noise(seed=k), torch.full((3,), 1.0 - 0.1 * k)) for k in range(9)]
    labels = [torch.full((3,), label) for label in (3, 10)]
    make = card.load()
    with torch.no_grad():
        with make(**EAGER[card.name]).attached(dit) as cache:
            together = [[dit(x, t, cond) for cond in labels] for x, t in calls]
        for stream, cond in enumerate(labels):
            with make(**EAGER[card.name]).attached(dit) as alone:
                for (x, t), found in zip(calls, together):
                    assert torch.equal(dit(x, t, cond), found[stream])
            assert (2 * alone.full, 2 * alone.forecasts) == (cache.full, cache.forecasts)


@every
def test_guidance_that_calls_the_network_twice(dit: nn.Module, card: Card) -> None:
    """Conditions that are no tensors cannot go into one call."""

    def network(x: Tensor, t: Tensor, cond: str) -> Tensor:
        return dit(x, t, torch.full((len(x),), {"three": 3, "none": 10}[cond]))

    separate = Denoiser(network, FlowMatching(), "velocity", null="none").given("three")
    joint = denoiser(dit).given(torch.full((3,), 3))
    options: dict[str, Any] = {"noise": noise(), "sampler": DDIM(grid="uniform"), "steps": 12, "guidance": CFG(3.0)}
    caches = [card.load()(**EAGER[card.name], model=dit) for _ in range(2)]
    found, expected = (sample(made, cache=cache, **options) for made, cache in zip((separate, joint), caches))
    torch.testing.assert_close(found, expected)
    assert caches[0].full == 2 * caches[1].full
    assert caches[0].stored == caches[1].stored


@every
def test_one_cache_at_a_time(dit: nn.Module, card: Card) -> None:
    make = card.load()
    with make().attached(dit) as cache:
        with pytest.raises(InputError, match="attached already"):
            draw(dit, make())
        with pytest.raises(InputError, match="attached already"):
            cache.attach(dit)
        draw(dit, None)
    assert all("forward" not in module.__dict__ for module in dit.modules())


@every
def test_parallel_samplers_refuse_it_before_the_network_runs(dit: nn.Module, card: Card) -> None:
    calls = []
    handle = dit.get_submodule("embed").register_forward_hook(lambda *args: calls.append(args))
    with pytest.raises(InputError, match="several times at once"):
        draw(dit, card.load()(), sampler=ParaDiGMS(window=4))
    assert calls == []
    handle.remove()


@every
def test_in_an_unmodified_pipeline(pipe: Any, card: Card) -> None:
    before = everything(pipe.transformer)
    plain = images(pipe, [7, 400])
    with card.load()(**NEUTRAL[card.name]).attached(pipe.transformer) as cache:
        assert torch.equal(images(pipe, [7, 400]), plain)
        assert (cache.full, cache.forecasts) == (10, 0)
    with card.load()(**EAGER[card.name]).attached(pipe.transformer) as cache:
        cached = images(pipe, [7, 400])
        full = cache.full
        assert 0 < full < 10
        assert torch.equal(images(pipe, [7, 400]), cached), "the second chain remembers the first"
        images(pipe, [1], seed=1)
        assert torch.equal(images(pipe, [7, 400]), cached), "an unequal batch in between is remembered"
        assert cache.full + cache.forecasts == 40
    assert float((cached - plain).abs().max()) > 0.0
    assert everything(pipe.transformer) == before
    assert torch.equal(images(pipe, [7, 400]), plain)


@every
def test_a_network_that_changes_its_features_in_place(card: Card) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn, self.mlp = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(self.attn(x).mul_(0.5).tanh()).mul_(0.3).add_(x)

    class Net(nn.Module):
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))

        def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
            h = x.flatten(1)
            for block in self.blocks:
                h = block(h)
            h.mul_(1.0)
            out = h.clone()
            h.zero_()
            return out.view_as(x)

    torch.manual_seed(0)
    model = Net()
    x = noise()
    with torch.no_grad(), card.load()(**EAGER[card.name]).attached(model) as cache:
        outputs = [model(x, torch.full((3,), 1.0 - 0.1 * k)) for k in range(10)]
    assert cache.forecasts > 0
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


@every
def test_races_and_counts_full_passes_only(dit: nn.Module, card: Card) -> None:
    made = denoiser(dit).given(torch.arange(4))
    problem = sampling("tiny", made, (4, 1, 8, 8), rungs=(4, 8), metric=lambda x: float(x.norm()))
    trace = run(card.make(**EAGER[card.name]), problem, target=-1.0)
    assert trace.status == "budget", trace.message
    for rung, spent, found in zip((4, 8), trace.calls["nfe"], trace.metric):
        cache = card.load()(**EAGER[card.name])
        instance = problem.build(0)
        steps = cache.calls_for(rung)
        x = sample(instance.denoiser, noise=instance.noise, sampler=DDIM(grid="uniform"), steps=steps, cache=cache)
        assert spent == cache.full <= rung <= steps
        assert found == instance.metric(x)
    assert all("forward" not in module.__dict__ for module in dit.modules())


@every
def test_races_only_where_there_are_blocks(dit: nn.Module, card: Card) -> None:
    assert card.needs == ("blocks",)
    assert "blocks" in sampling("tiny", denoiser(dit), (1, 1, 8, 8), metric=torch.norm).build(0).offers()
    function = Denoiser(lambda x, t: x, FlowMatching(), "velocity")
    assert "blocks" not in sampling("function", function, (1, 2), metric=torch.norm).build(0).offers()


@every
def test_refusals(dit: nn.Module, card: Card) -> None:
    make = card.load()
    function = Denoiser(lambda x, t: x, FlowMatching(), "velocity")
    with pytest.raises(InputError, match=r"nn\.Module"):
        sample(function, (1, 2), cache=make())
    with pytest.raises(InputError, match="compiled"):
        make().attach(torch.compile(dit))
    with pytest.raises(InputError, match="blocks"):
        make().attach(nn.Linear(2, 2))
    with pytest.raises(InputError, match="nonsense"):
        make(blocks="nonsense").attach(dit)
    with pytest.raises(InputError, match="cache must be"):
        sample(denoiser(dit), (1, 1, 8, 8), cache="ddim")
    with pytest.raises(InputError, match="time"), make().attached(dit):
        dit(noise(), t=None)
    assert all("forward" not in module.__dict__ for module in dit.modules())
