"""EF14, the classical error feedback (Seide et al., 2014; Stich, Cordonnier, Jaggi, 2018)."""

from __future__ import annotations

from hasten.core.card import Card, LogReal
from hasten.core.registry import register
from hasten.distributed.compressors import Compressor
from hasten.distributed.feedback import Feedback

CARD = Card(
    name="ef14",
    family="distributed",
    title="Sparsified SGD with Memory",
    authors="Stich, Cordonnier, Jaggi",
    year=2018,
    arxiv="1809.07599",
    summary="Each worker adds what compression dropped so far to the next gradient before it compresses again.",
    cost="one gradient and one d-vector per worker; one compressed message up, the model down",
    when="like workers, or when a residual error from unlike workers does not matter",
    kinds=("federate",),
    use="""import hasten
from hasten.distributed import EF14, TopK

trace = hasten.run(EF14(TopK(0.1){hyper}), hasten.problem("hetero-quadratic"))""",
    search_space={"lr": LogReal(1e-3, 3.0)},
)


@register(CARD)
class EF14(Feedback):
    """Error feedback: D_i = C(e_i + grad f_i(x)), e_i <- e_i + grad f_i(x) - D_i, x <- x - lr mean_i D_i.

    With a constant step and unlike workers it stops at an error of the order of lr times the heterogeneity; `EF21`
    and `EControl` do not. The error memory holds gradients, which for a constant `lr` is the classical rule.

    Args:
        compressor: what each worker applies, `TopK(0.1)` if not given.
        lr: step size.
    """

    card = CARD
    tracking = False
    eta = 1.0

    def __init__(self, compressor: Compressor | None = None, lr: float = 0.1) -> None:
        super().__init__(compressor, lr)
