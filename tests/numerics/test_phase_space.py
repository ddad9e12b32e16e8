"""Phase-space diffusion: the kernel against published code, the exact score, epsilon predictions, refusals."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import DivergedError, InputError
from hasten.numerics.mixture import GaussianMixture, circle
from hasten.numerics.phase_space import PSLD, PhaseDenoiser, lift

# mandt-lab/PSLD at a4d6135, main/models/sde/psld.py, its closed forms with nu 4.01, gamma 0.01, beta 8, kappa 0.04 and
# numerical_eps 0: factors of the mean (x from x, x from m, m from x, m from m), covariance (xx, xm, mm) given x_0.
AUTHORS = {
    0.01: (
        [0.9965669475825467, 0.14763954779000693, -0.03690988694750173, 0.8489273997925398],
        [0.0016229343288125904, 0.006702711592028604, 0.0756750050170772],
    ),
    0.25: (
        [0.40196602400641496, 0.5359546986752199, -0.13398867466880499, -0.13398867466880499],
        [0.7694839301767833, 0.07109374116043135, 0.22773832347501646],
    ),
    1.0: (
        [0.0029007805510711717, 0.0051569432019043055, -0.0012892358004760764, -0.002256162650833134],
        [0.9999852028970296, 6.532166770470715e-06, 0.24999711620627307],
    ),
}


@pytest.mark.parametrize("t", AUTHORS)
def test_kernel_is_the_authors(t: float) -> None:
    mean, covariance = (torch.tensor(part, dtype=torch.float64) for part in AUTHORS[t])
    factor, found = PSLD().kernel(t)
    torch.testing.assert_close(factor.flatten(), mean, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.flatten()[[0, 1, 3]], covariance, rtol=1e-6, atol=1e-9)
    assert float(found[0, 1] - found[1, 0]) == 0.0


def test_prior_is_where_the_process_ends() -> None:
    process = PSLD()
    drawn = process.prior((50000, 1), torch.Generator().manual_seed(0))
    assert drawn.shape == (50000, 2, 1)
    _, covariance = process.kernel(1.0)
    assert float(drawn[:, 0].var()) == pytest.approx(float(covariance[0, 0]), rel=0.02)
    assert float(drawn[:, 1].var()) == pytest.approx(float(covariance[1, 1]), rel=0.02)


@pytest.mark.parametrize("t", [0.01, 0.4])
def test_score_of_a_lifted_mixture_is_the_gradient_of_its_density(t: float) -> None:
    mixture = GaussianMixture([[1.0, -0.5], [-1.0, 2.0]], [[0.2, 0.5], [0.4, 0.1]], [0.3, 0.7])
    process = PSLD()
    factor, noise = process.kernel(t)
    z = torch.randn(5, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    density = torch.zeros(5, dtype=torch.float64)
    for mean, variance, weight in zip(mixture.means, mixture.variances, mixture.weights):
        joint = weight.log()
        for d in range(2):
            law = torch.distributions.MultivariateNormal(
                factor[:, 0] * mean[d], variance[d] * torch.outer(factor[:, 0], factor[:, 0]) + noise
            )
            joint = joint + law.log_prob(z[:, :, d])
        density = density + joint.exp()
    (gradient,) = torch.autograd.grad(density.log().sum(), z)
    torch.testing.assert_close(lift(mixture, process).score(z.detach(), t), gradient, rtol=1e-8, atol=1e-8)


def test_epsilon_prediction_of_one_point_gives_its_score() -> None:
    """Data that is one point: eps = L^{-1} (z - mean), and the score -cov^{-1} (z - mean)."""
    process = PSLD()
    point = GaussianMixture([[0.7]], [0.0])

    def network(z, t):
        factor, covariance = process.kernel(float(t[0]))
        offset = z - 0.7 * factor[:, :1]
        return torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), offset, upper=False)

    z = torch.randn(4, 2, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(PhaseDenoiser(network, process).score(z, 0.3), lift(point, process).score(z, 0.3))


def test_exact_solution_moves_the_prior_to_the_data() -> None:
    model = lift(circle(), PSLD())
    z = model.solve(model.schedule.prior((2000, 2), torch.Generator().manual_seed(3)), steps=100)
    radius = z[:, 0].norm(dim=1)
    assert float(radius.mean()) == pytest.approx(2.0, abs=0.1)
    drawn = circle().sample(20000, torch.Generator().manual_seed(4))
    torch.testing.assert_close(z[:, 0].mean(0), drawn.mean(0), atol=0.12, rtol=0)


def test_refusals() -> None:
    process = PSLD()
    z = torch.zeros(3, 2, 2)
    for match, make in (
        ("differ", lambda: PSLD(nu=1.0, gamma=1.0)),
        ("beta", lambda: PSLD(beta=0.0)),
        ("t_min", lambda: PSLD(t_min=1.0)),
        ("prediction", lambda: PhaseDenoiser(lambda z, t: z, process, "x0")),
        ("schedule", lambda: PhaseDenoiser(lambda z, t: z, "psld")),  # type: ignore[arg-type]
        ("positions and momenta", lambda: lift(circle(), process).score(z[:, 0], 0.5)),
        ("shape", lambda: PhaseDenoiser(lambda z, t: z[:, :1], process).score(z, 0.5)),
        ("full cov", lambda: lift(GaussianMixture([[0.0, 0.0]], covs=torch.eye(2)[None]), process)),
    ):
        with pytest.raises(InputError, match=match):
            make()
    with pytest.raises(DivergedError, match=r"t=0\.5"):
        PhaseDenoiser(lambda z, t: z / 0.0, process).score(z, 0.5)
