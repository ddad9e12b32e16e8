"""EF21 and EF21-W (Richtarik, Gasanov, Burlachenko, 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.core.kinds.federate import Federation
from hasten.core.registry import register
from hasten.distributed.compressors import Compressor
from hasten.distributed.feedback import Feedback, Settings
from hasten.distributed.smoothness import smoothness

CARD = Card(
    name="ef21",
    family="distributed",
    title="Error Feedback Reloaded: From Quadratic to Arithmetic Mean of Smoothness Constants",
    authors="Richtarik, Gasanov, Burlachenko",
    year=2024,
    arxiv="2402.10774",
    paper_id=449,
    summary="Each worker sends the compressed change of its gradient; weights by smoothness allow the larger step.",
    cost="one gradient and one d-vector per worker; one compressed message up, the model down",
    when="biased compression and full gradients on unlike workers, above all when some are much steeper than others",
    kinds=("federate",),
    needs=("hvp",),
    use="""import hasten
from hasten.distributed import EF21, TopK

trace = hasten.run(EF21(TopK(0.1){hyper}), hasten.problem("hetero-quadratic"))""",
    search_space={"lr": LogReal(1e-3, 3.0), "weights": Choice(None, "smoothness")},
)


@register(CARD)
class EF21(Feedback):
    """Error feedback on gradient differences, and its weighted form EF21-W.

        x <- x - lr sum_i w_i g_i,   u_i = C(grad f_i(x)/(n w_i) - g_i) is sent,   g_i <- g_i + u_i

    Converges linearly where gradient descent does, with a constant step and any heterogeneity. With noisy gradients
    it does not average over workers; prefer `EControl` there.

    Args:
        compressor: what each worker applies, contractive; `TopK(0.1)` if not given.
        lr: step size; None for the theory's (L_AM with weights, L_QM without), `am` for 1/(L + L_AM xi) in any case.
        weights: None for 1/n, `smoothness` for w_i = L_i/sum L_j (EF21-W), or positive shares that sum to 1, `[n]`.
        L, L_i: smoothness of the mean and of each client `[n]`; estimated by `smoothness(problem)` if needed and
            not given.
        init: `exact` sends the first gradients uncompressed, `zero` starts from g_i = 0.
        momentum: average of the gradients before compression (EF21-SGDM), 0 for none.
        participation: probability with which a client takes part in a round.

    Raises:
        InputError: a smoothness constant that is not positive, or a compressor without a declared contraction where
            the step size must come from theory.
    """

    card = CARD

    def __init__(
        self,
        compressor: Compressor | None = None,
        lr: float | str | None = None,
        weights: str | Sequence[float] | Tensor | None = None,
        L: float | None = None,
        L_i: Sequence[float] | Tensor | None = None,
        init: str = "exact",
        momentum: float = 0.0,
        participation: float = 1.0,
    ) -> None:
        if isinstance(lr, str):
            check.one_of("lr", lr, ("am",))
        super().__init__(compressor, None if isinstance(lr, str) else lr, init, participation)
        self.arithmetic = lr == "am" or isinstance(weights, str)
        if isinstance(weights, str):
            check.one_of("weights", weights, ("smoothness",))
        self.weights = weights
        self.L = None if L is None else float(check.positive("L", L))
        self.L_i = None if L_i is None else _positive("L_i", L_i)
        self.momentum = float(check.fraction("momentum", momentum))

    def settings(self, problem: Federation) -> Settings:
        L, L_i = self.L, self.L_i
        if (self.lr is None and L is None) or ((self.lr is None or self.weights == "smoothness") and L_i is None):
            estimate, each = smoothness(problem)
            L, L_i = L or estimate, each if L_i is None else L_i
        if L_i is not None and len(L_i) != problem.n:
            raise InputError(f"L_i must hold one constant per client, {problem.n}, got {len(L_i)}")
        lr = self.lr
        if lr is None:
            alpha = self.compressor.delta(len(problem.x0))
            if alpha is None:
                raise InputError(
                    f"{self.compressor} declares no contraction; give lr yourself or choose TopK, Sign, ..."
                )
            assert L is not None
            assert L_i is not None
            lr = ef21_stepsize(L, L_i, alpha, weighted=self.arithmetic)
        return Settings(lr, 0.0, self._shares(problem, L_i))

    def _shares(self, problem: Federation, L_i: Tensor | None) -> Tensor:
        if self.weights is None:
            return problem.weights
        if isinstance(self.weights, str):
            assert L_i is not None
            steep = problem.weights * L_i.to(problem.weights)
            return steep / steep.sum()
        shares = _positive("weights", self.weights).to(problem.weights)
        if shares.shape != (problem.n,) or abs(float(shares.sum()) - 1) > 1e-6:
            raise InputError(f"weights must be {problem.n} positive shares that sum to 1, got {self.weights}")
        return shares


def ef21_stepsize(L: float, L_i: Sequence[float] | Tensor, alpha: float, weighted: bool) -> float:
    """The theory's step size 1/(L + M xi), xi = sqrt(1 - alpha)/(1 - sqrt(1 - alpha)).

    Args:
        L: smoothness of the mean objective.
        L_i: smoothness of each client.
        alpha: contraction of the compressor, in (0, 1].
        weighted: M is the arithmetic mean of the L_i (EF21-W), otherwise their quadratic mean (EF21).
    """
    check.real("alpha", alpha, 0.0, 1.0, open_low=True)
    each = _positive("L_i", L_i)
    root = math.sqrt(1.0 - alpha)
    mean = float(each.mean() if weighted else each.square().mean().sqrt())
    return 1.0 / (check.positive("L", L) + mean * root / (1.0 - root))


def _positive(name: str, values: Sequence[float] | Tensor) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float64)
    if tensor.ndim != 1 or len(tensor) == 0 or not bool((tensor > 0).all()) or not bool(tensor.isfinite().all()):
        raise InputError(f"{name} must be positive finite numbers, one per client; got {values}")
    return tensor
