"""GDSS against the published solver, its exact toy, masks, renumbering, losses and bad inputs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasten.core.errors import DivergedError, InputError
from hasten.diffusion import (
    VE,
    GraphDenoiser,
    Graphs,
    GraphSDE,
    PredictorCorrector,
    S4Solver,
    VPLinear,
    graph_batch,
    sample_graphs,
)
from hasten.diffusion.graphs.base import GraphNoise
from hasten.numerics.gaussian_graphs import GaussianGraphs

VP = VPLinear(beta0=0.1, beta1=1.0)
VE1 = VE(sigma_min=0.1, sigma_max=1.0)
LAW = GaussianGraphs(nodes=4, features=2)
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])

# harryjo97/GDSS at 24cc490e, solver.py: S4_solver and get_pc_sampler (Euler, Langevin) in float64 with N=5, eps=0,
# snr=0.2, scale_eps=0.7, torch.manual_seed(7), stopped after three steps; VPSDE(0.1, 1.0) and VESDE(0.1, 1.0); networks
# as in `network`. Features of the first graph; then its weights of the pairs (0, 1), (0, 2) and (1, 2), the second's of
# (0, 1).
GOLDEN = {
    ("vp", "s4"): (
        [-0.6874252624, 1.7709718175, -0.4015644328, -1.2124249454, 1.2995077972, -0.5213821505],
        [1.2639038818, 0.6245942090, -0.1686211349, -1.8681765724],
    ),
    ("vp", "pc"): (
        [-0.4599864201, 1.6282267470, 0.4122161573, -1.4959256939, 0.8164444811, -2.0470318305],
        [1.1501422987, 0.8994581947, -0.5660556285, -0.8001462488],
    ),
    ("ve", "s4"): (
        [-0.5124434148, 2.0285548817, 1.7033451319, -3.5193162574, 4.2496213648, -3.7993295275],
        [-0.6018258798, -1.1781752723, 1.7734581244, -4.8604535038],
    ),
    ("ve", "pc"): (
        [-0.5223853133, 2.5424961571, 1.8235477320, -3.4022080929, 2.9376456017, -5.4608345310],
        [-0.8754042381, -1.0081985332, 0.9507023599, -3.7414114434],
    ),
}


def network(x: Tensor, adj: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(adj @ x) + 0.3 * x, torch.tanh(x @ x.mT) + 0.2 * adj


@pytest.mark.parametrize(("kind", "solver"), GOLDEN)
def test_steps_are_the_published_ones(kind: str, solver: str) -> None:
    schedule, prediction = (VP, "epsilon") if kind == "vp" else (VE1, "score")
    denoiser = GraphDenoiser(network, GraphSDE(schedule, schedule), prediction)
    sampler = (S4Solver if solver == "s4" else PredictorCorrector)(snr=0.2, scale_eps=0.7)
    draw = GraphNoise(torch.Generator().manual_seed(7))
    mask = MASK.bool()
    zeros = Graphs(torch.zeros(2, 3, 2).double(), torch.zeros(2, 3, 3).double(), mask)
    state = mean = Graphs(*draw(zeros), mask)
    for t in (1.0, 0.75, 0.5):
        state, mean = sampler.step(denoiser, state, t, t - 0.2, draw)
    features, weights = (torch.tensor(part, dtype=torch.float64) for part in GOLDEN[kind, solver])
    torch.testing.assert_close(mean.x[0], features.reshape(3, 2), rtol=0, atol=1e-9)
    pairs = torch.stack([mean.adj[0, 0, 1], mean.adj[0, 0, 2], mean.adj[0, 1, 2], mean.adj[1, 0, 1]])
    torch.testing.assert_close(pairs, weights, rtol=0, atol=1e-9)


def exact(sde: GraphSDE) -> GraphDenoiser:
    return GraphDenoiser(LAW.network(*sde.schedules), sde, "score")


@pytest.mark.parametrize("sampler", ["gdss-s4", "gdss-pc"])
def test_covariance_of_the_toy_is_reached(sampler: str) -> None:
    costs: dict[str, int] = {}
    x, adj, _ = sample_graphs(
        exact(GraphSDE()),
        torch.ones(4000, 4),
        2,
        sampler,
        60,
        generator=torch.Generator().manual_seed(0),
        costs=costs,
        dtype=torch.float64,
        snr=0.2,
    )
    z = LAW.pack(x, adj)
    assert float((z.mT @ z / 4000 - LAW.covariance).norm() / LAW.covariance.norm()) < 0.12
    assert costs["nfe"] == (60 if sampler == "gdss-s4" else 120)


def test_scores_of_the_toy_are_gradients() -> None:
    """Half the gradient by the adjacency reaches each of the two mirrored entries."""
    sde = GraphSDE(VPLinear(), VE())
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(3, 14, dtype=torch.float64, generator=generator, requires_grad=True)
    scale = torch.tensor([sde.features.alpha(0.4)] * 8 + [1.0] * 6, dtype=torch.float64)
    noise = torch.tensor([sde.features.sigma(0.4)] * 8 + [sde.adjacency.sigma(0.4)] * 6, dtype=torch.float64)
    noisy = scale[:, None] * LAW.covariance * scale + torch.diag(noise**2)
    (-0.5 * (z @ torch.linalg.inv(noisy) * z).sum()).backward()
    x, adj = LAW.unpack(z.detach())
    scores = exact(sde).scores(Graphs(x, adj, torch.ones(3, 4, dtype=torch.bool)), 0.4)
    torch.testing.assert_close(LAW.pack(*scores), z.grad)
    assert float((LAW.covariance - _empirical()).abs().max()) < 0.05


def _empirical() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20000, 4, 2, dtype=torch.float64, generator=generator)
    e = torch.randn(20000, 4, 4, dtype=torch.float64, generator=generator).triu(1)
    along = x.sum(2) / math.sqrt(2.0)
    adj = LAW.coupling * (along[:, :, None] + along[:, None]) + LAW.spread * (e + e.mT)
    z = LAW.pack(x, adj)
    return z.mT @ z / len(z)


def test_renumbered_noise_gives_renumbered_graphs() -> None:
    order = torch.tensor([2, 0, 3, 1])
    denoiser = exact(GraphSDE())

    class Relabelled:
        def __init__(self) -> None:
            self.noise = GraphNoise(torch.Generator().manual_seed(3))

        def __call__(self, like: Graphs) -> tuple[Tensor, Tensor]:
            x, adj = self.noise(like)
            return x[:, order], adj[:, order][:, :, order]

    mask = torch.ones(5, 4)
    noise = GraphNoise(torch.Generator().manual_seed(3))
    x, adj, _ = sample_graphs(denoiser, mask, 2, steps=12, noise=noise, dtype=torch.float64)
    y, bdj, _ = sample_graphs(denoiser, mask, 2, steps=12, noise=Relabelled(), dtype=torch.float64)
    torch.testing.assert_close(x[:, order], y, rtol=0, atol=1e-10)
    torch.testing.assert_close(adj[:, order][:, :, order], bdj, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", [S4Solver(), S4Solver(kernel="reverse"), PredictorCorrector(grid="quadratic")])
def test_graphs_stay_symmetric_and_masked(sampler: S4Solver) -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    denoiser = GraphDenoiser(network, GraphSDE(VPLinear(), VP))
    seen: list[int] = []
    generator = torch.Generator().manual_seed(4)
    out = sample_graphs(
        denoiser, mask, 3, sampler, 9, generator=generator, callback=lambda index, state: seen.append(index)
    )
    assert seen == list(range(1, 10))
    assert out.x.shape == (2, 4, 3)
    assert torch.equal(out.adj, out.adj.mT)
    assert not out.adj.diagonal(dim1=1, dim2=2).any()
    assert not out.x[~mask.bool()].any()
    assert not out.adj[1].any(), "a single node has no edges"
    assert bool(out.x.isfinite().all())


def test_step_ends_where_it_is_told() -> None:
    schedule = GraphSDE()
    assert S4Solver(eps=0.01).times(schedule, 4) == pytest.approx((1.0, 0.7525, 0.505, 0.2575, 0.01))
    assert S4Solver(grid=(1.0, 0.3, 0.2)).times(schedule, 7) == (1.0, 0.3, 0.2)
    assert PredictorCorrector().times(schedule, 2)[-1] == schedule.t_min
    assert S4Solver().times(GraphSDE(VPLinear(t_min=0.01), VE()), 2)[-1] == 0.01


def test_transition_noise_by_kernel() -> None:
    """The reverse kernel of the linear part has variance `alpha_s^2/alpha_t^2 - 1` where variance is preserved."""
    schedules = (VP, VP)
    state = Graphs(torch.zeros(1, 2, 1).double(), torch.zeros(1, 2, 2).double(), torch.ones(1, 2).bool())

    def ones(like: Graphs) -> tuple[Tensor, Tensor]:
        return torch.ones_like(like.x), torch.ones_like(like.adj)

    ratio = (VP.alpha(0.5) / VP.alpha(0.8)) ** 2
    for kernel, variance in (("forward", 1.0 - 1.0 / ratio), ("reverse", ratio - 1.0)):
        end, mean = S4Solver(kernel=kernel).transition(schedules, state, 0.8, 0.5, ones)
        assert float(end.x[0, 0, 0]) == pytest.approx(math.sqrt(variance))
        assert not mean.x.any()


def test_losses_vanish_for_the_true_noise_only() -> None:
    sde = GraphSDE(VPLinear(), VE1)
    generator = torch.Generator().manual_seed(5)
    adj = torch.rand(6, 5, 5, generator=generator).triu(1)
    clean = graph_batch(torch.rand(6, 5, 2, generator=generator), adj + adj.mT, torch.ones(6, 5).tril(2))
    times = torch.linspace(0.1, 0.9, 6)
    noise = GraphNoise(torch.Generator().manual_seed(6))(clean)
    draw = GraphNoise(torch.Generator().manual_seed(6))

    def oracle(x: Tensor, adj: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x0 = (x - sde.features.alpha(t)[:, None, None] * clean.x) / sde.features.sigma(t)[:, None, None]
        a0 = (adj - clean.adj) / sde.adjacency.sigma(t)[:, None, None]
        return x0, a0

    assert max(float(loss) for loss in sde.losses(oracle, clean, draw, times)) < 1e-10
    zero = sde.losses(lambda x, adj, mask, t: (0 * x, 0 * adj), clean, lambda like: noise, times)
    nodes = clean.mask.sum()
    pairs = (clean.mask.sum(1) * (clean.mask.sum(1) - 1)).sum()
    assert float(zero[0]) == pytest.approx(float(0.5 * noise[0].square().sum() / (2 * nodes)), rel=1e-5)
    assert float(zero[1]) == pytest.approx(float(0.5 * noise[1].square().sum() / pairs), rel=1e-5)


DENOISER = GraphDenoiser(network, GraphSDE())
LOPSIDED = torch.stack((torch.zeros(3, 3), torch.ones(3, 3).triu(1)))


def wrong(answer: Callable[..., tuple[Tensor, Tensor]]) -> Graphs:
    return sample_graphs(GraphDenoiser(lambda x, adj, mask, t: answer(x, adj), GraphSDE()), torch.ones(1, 3), 1)


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("symmetric, but graph 1", lambda: graph_batch(torch.zeros(2, 3, 1), LOPSIDED)),
        ("loop", lambda: graph_batch(torch.zeros(1, 3, 1), torch.eye(3)[None])),
        ("shapes", lambda: graph_batch(torch.zeros(1, 3, 1), torch.zeros(1, 2, 2))),
        ("graph 0 without a node", lambda: graph_batch(torch.zeros(1, 3, 1), torch.zeros(1, 3, 3), torch.zeros(1, 3))),
        ("graph 1 without a node", lambda: sample_graphs(DENOISER, torch.tensor([[1, 1], [0, 0]]), 1)),
        ("mask must", lambda: sample_graphs(DENOISER, torch.ones(3), 1)),
        ("same time", lambda: GraphSDE(VPLinear(T=0.5), VE())),
        ("schedule", lambda: GraphSDE(0.1)),  # type: ignore[arg-type]
        ("steps", lambda: sample_graphs(DENOISER, torch.ones(1, 3), 1, steps=0)),
        ("features", lambda: sample_graphs(DENOISER, torch.ones(1, 3), 0)),
        ("sampler must be one of graphs", lambda: sample_graphs(DENOISER, torch.ones(1, 3), 1, "ddim")),
        ("set these", lambda: sample_graphs(DENOISER, torch.ones(1, 3), 1, S4Solver(), snr=0.1)),
        ("snr", lambda: S4Solver(snr=-0.1)),
        ("eps", lambda: PredictorCorrector(eps=0.0)),
        ("eps", lambda: S4Solver(eps=2.0).times(GraphSDE(), 3)),
        ("kernel", lambda: S4Solver(kernel="exact")),
        ("prediction", lambda: GraphDenoiser(network, GraphSDE(), "x0")),
        ("must return tensors", lambda: wrong(lambda x, a: (a, a))),
        ("must be symmetric", lambda: wrong(lambda x, a: (x, a.triu()))),
    ],
)  # fmt: skip
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()


def test_nan_is_named_with_its_step() -> None:
    def broken(x: Tensor, adj: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(t[:, None, None] < 0.5, math.nan, x), adj

    with pytest.raises(DivergedError, match=r"step \d+ of 10.*nan or infinity at t=0\.\d+"):
        sample_graphs(GraphDenoiser(broken, GraphSDE()), torch.ones(2, 3), 1, steps=10)
