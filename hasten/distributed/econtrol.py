"""EControl (Gao, Islamov, Stich, 2023)."""

from __future__ import annotations

import math
import warnings

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.core.kinds.federate import Federation
from hasten.core.registry import register
from hasten.distributed.compressors import Compressor
from hasten.distributed.feedback import Feedback, Settings

CARD = Card(
    name="econtrol",
    family="distributed",
    title="EControl: Fast Distributed Optimization with Compression and Error Control",
    authors="Gao, Islamov, Stich",
    year=2023,
    arxiv="2311.05645",
    paper_id=4,
    summary="EF21's gradient estimates plus a measured dose of classical error feedback.",
    cost="one gradient and two d-vectors per worker; one compressed message up, the model down",
    when="biased compression, unlike workers and noisy gradients",
    kinds=("federate",),
    use="""import hasten
from hasten.distributed import EControl, TopK

trace = hasten.run(EControl(TopK(0.1){hyper}), hasten.problem("hetero-quadratic:noise=1"))""",
    search_space={"lr": LogReal(1e-3, 3.0)},
)


@register(CARD)
class EControl(Feedback):
    """Error feedback whose strength is controlled, so that it neither stalls nor amplifies.

        D_i = C(eta e_i + g_i - h_i) is sent,   e_i <- e_i + g_i - h_i - D_i,   h_i <- h_i + D_i,
        h <- h + mean_i D_i,   x <- x - lr h

    eta = 0 is EF21. Converges linearly with exact gradients, and keeps the speed-up in the number of workers with
    noisy ones, under any heterogeneity.

    Args:
        compressor: what each worker applies, contractive; `TopK(0.1)` if not given.
        lr: step size, of the order of delta/L at most.
        eta: strength of the feedback; delta/(3 sqrt(1-delta)(1+sqrt(1-delta))), at most 1, if not given.
        init: `exact` sends the first gradients uncompressed, `zero` starts from h_i = 0.

    Raises:
        InputError: `eta` is not given and the compressor declares no contraction.

    Warns above the `eta` for which the recursion of errors is proved to contract (1.5 times the default).
    """

    card = CARD

    def __init__(
        self, compressor: Compressor | None = None, lr: float = 0.1, eta: float | None = None, init: str = "exact"
    ) -> None:
        super().__init__(compressor, lr, init)
        self.strength = None if eta is None else float(check.nonnegative("eta", eta))

    def settings(self, problem: Federation) -> Settings:
        delta = self.compressor.delta(len(problem.x0))
        if delta is None and self.strength is None:
            raise InputError(f"{self.compressor} declares no contraction; give eta yourself or choose TopK, Sign, ...")
        default = math.inf if delta is None else econtrol_strength(delta)
        eta = min(default, 1.0) if self.strength is None else self.strength
        if eta > 1.5 * default:
            warnings.warn(
                f"eta={eta:g} is above {1.5 * default:.4g}, up to which the errors are known to contract with "
                f"{self.compressor}; expect divergence, or leave eta out",
                stacklevel=2,
            )
        assert self.lr is not None
        return Settings(self.lr, eta, problem.weights)


def econtrol_strength(delta: float) -> float:
    """The theory's eta for a compressor with contraction `delta` in (0, 1]; infinite for delta = 1."""
    check.real("delta", delta, 0.0, 1.0, open_low=True)
    root = math.sqrt(1.0 - delta)
    return delta / (3.0 * root * (1.0 + root)) if root else math.inf
