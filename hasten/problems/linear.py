"""Convex problems on real tables: logistic regression and the lasso, with exact minima."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.minimise import Minimisation
from hasten.core.problem import Problem
from hasten.problems.data import load

Table = tuple[Tensor, Tensor]


class Logistic:
    """`f(w) = mean_i log(1 + exp(-y_i <x_i, w>)) + ridge * |w|^2`, derivatives in closed form.

    Args:
        x: features (n, d).
        y: labels (n,) in {-1, +1}.
        ridge: weight of the squared norm.
    """

    def __init__(self, x: Tensor, y: Tensor, ridge: float) -> None:
        self.signed = x * y[:, None]
        self.ridge = ridge

    def value(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        signed = self.signed if rows is None else self.signed[rows]
        return F.softplus(-(signed @ w)).mean() + self.ridge * w.dot(w)

    def gradient(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        signed = self.signed if rows is None else self.signed[rows]
        return signed.T @ torch.sigmoid(-(signed @ w)) / -len(signed) + 2 * self.ridge * w

    def sampled_gradient(self, w: Tensor, generator: torch.Generator, batch: int) -> Tensor:
        return self.gradient(w, self._rows(generator, batch))

    def sampled_value(self, w: Tensor, generator: torch.Generator, batch: int) -> Tensor:
        return self.value(w, self._rows(generator, batch))

    def _rows(self, generator: torch.Generator, batch: int) -> Tensor:
        return torch.randint(len(self.signed), (batch,), generator=generator)

    def hessian(self, w: Tensor) -> Tensor:
        p = torch.sigmoid(self.signed @ w)
        weighted = self.signed * (p * (1 - p) / len(p))[:, None]
        return weighted.T @ self.signed + 2 * self.ridge * torch.eye(len(w), dtype=w.dtype)

    def minimum(self) -> float:
        """Least value, by damped Newton steps down to a gradient of 1e-13."""
        w = self.signed.new_zeros(self.signed.shape[1])
        for _ in range(100):
            gradient = self.gradient(w)
            if gradient.norm() < 1e-13:
                break
            direction = torch.linalg.solve(self.hessian(w), gradient)
            step, start, slope = 1.0, self.value(w), gradient.dot(direction)
            while step > 1e-6 and self.value(w - step * direction) > start - 1e-4 * step * slope + 1e-16:
                step /= 2
            w = w - step * direction
        return float(self.value(w))


def logistic_regression(
    name: str,
    table: Callable[[], Table],
    ridge: float,
    batch: int,
    target: float,
    budget: int,
    every: int,
    summary: str,
) -> Problem:
    """Logistic regression from zero weights, the metric being the gap to its exact minimum."""
    check.positive("ridge", ridge)
    check.integer("batch", batch, 0)

    @cache
    def fit() -> tuple[Logistic, float]:
        logistic = Logistic(*table(), ridge)
        return logistic, logistic.minimum()

    def build(seed: int) -> Minimisation:
        logistic, minimum = fit()
        return Minimisation(
            logistic.value,
            logistic.signed.new_zeros(logistic.signed.shape[1]),
            gradient=logistic.gradient,
            hessian=logistic.hessian,
            noisy_gradient=partial(logistic.sampled_gradient, batch=batch) if batch else None,
            noisy_fun=partial(logistic.sampled_value, batch=batch) if batch else None,
            minimum=minimum,
            generator=torch.Generator().manual_seed(seed),
        )

    return Problem(
        name=name,
        kind="minimise",
        build=build,
        measures="objective gap",
        target=target,
        budget=budget,
        every=every,
        summary=summary,
    )


@cache
def breast_cancer() -> Table:
    """Standardised features (569, 30) and labels (569,) in {-1, +1}, float64."""
    bunch = load_breast_cancer()
    x = torch.tensor(bunch.data)  # type: ignore[attr-defined]
    return (x - x.mean(0)) / x.std(0, correction=0), torch.tensor(2.0 * bunch.target - 1)  # type: ignore[attr-defined]


@cache
def a9a_table() -> Table:
    """Features (16281, 123) and labels (16281,) in {-1, +1} of a9a, float64."""
    arrays = load("a9a")
    return torch.tensor(arrays["x"], dtype=torch.float64), torch.tensor(arrays["y"], dtype=torch.float64)


@ready("breast-cancer-logreg", kind="minimise")
def breast_cancer_logreg(ridge: float = 5e-4, batch: int = 0) -> Problem:
    """Logistic regression on the breast-cancer table (scikit-learn, 569x30), gap to its exact minimum.

    Standardised features, labels -1/+1, no intercept; at the default ridge the least value is 0.05984 and the
    gradient's Lipschitz constant 3.32.

    Args:
        ridge: weight of `|w|^2`.
        batch: rows per stochastic gradient, drawn with replacement; 0 for the full gradient.
    """
    return logistic_regression(
        "breast-cancer-logreg",
        breast_cancer,
        ridge,
        batch,
        target=5e-3 if batch else 1e-4,
        budget=2000,
        every=10,
        summary="ridge logistic regression on 569 standardised rows of 30 features",
    )


@ready("a9a", kind="minimise")
def a9a(ridge: float = 1e-4, batch: int = 0) -> Problem:
    """Logistic regression on LIBSVM's a9a.t (16,281x123, downloaded once), gap to its exact minimum.

    Args:
        ridge: weight of `|w|^2`.
        batch: rows per stochastic gradient, drawn with replacement; 0 for the full gradient.
    """
    return logistic_regression(
        "a9a",
        a9a_table,
        ridge,
        batch,
        target=5e-3 if batch else 1e-4,
        budget=1000,
        every=10,
        summary="ridge logistic regression on 16,281 rows of 123 binary features",
    )


@ready("diabetes-lasso", kind="minimise")
def diabetes_lasso(strength: float = 0.1) -> Problem:
    """Lasso on the diabetes table (scikit-learn, 442x10): smooth part, proximal map, gap to its exact minimum.

    `|X w - b|^2 / (2 n) + h(w)` with `h(w) = strength * lambda_max * |w|_1`, standardised columns; from
    `lambda_max` on, the solution is zero.

    Args:
        strength: fraction of `lambda_max`, in (0, 1).
    """
    check.real("strength", strength, 0.0, 1.0, open_low=True, open_high=True)

    @cache
    def fit() -> tuple[Tensor, Tensor, float, float]:
        bunch = load_diabetes()
        x = bunch.data / bunch.data.std(0)  # type: ignore[attr-defined]
        b = (bunch.target - bunch.target.mean()) / bunch.target.std()  # type: ignore[attr-defined]
        weight = float(strength * np.abs(x.T @ b).max() / len(b))
        best = Lasso(weight, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x, b).coef_
        minimum = float(((x @ best - b) ** 2).mean() / 2 + weight * np.abs(best).sum())
        return torch.tensor(x), torch.tensor(b), weight, minimum

    def build(seed: int) -> Minimisation:
        x, b, weight, minimum = fit()
        curvature = x.T @ x / len(b)
        linear = x.T @ b / len(b)
        return Minimisation(
            lambda w: (x @ w - b).square().mean() / 2,
            x.new_zeros(x.shape[1]),
            gradient=lambda w: curvature @ w - linear,
            hessian=lambda w: curvature,
            nonsmooth=lambda w: weight * w.abs().sum(),
            prox=lambda v, t: torch.sign(v) * (v.abs() - t * weight).clamp(min=0),
            minimum=minimum,
            generator=torch.Generator().manual_seed(seed),
        )

    return Problem(
        name="diabetes-lasso",
        kind="minimise",
        build=build,
        measures="objective gap",
        target=1e-6,
        budget=1000,
        every=1,
        summary="least squares with an l1 term on 442 standardised rows of 10 features",
    )
