"""Compressed gradients without any correction: what error feedback is measured against."""

from __future__ import annotations

from hasten.core.card import Card, LogReal
from hasten.core.registry import register
from hasten.distributed.compressors import Compressor
from hasten.distributed.feedback import Feedback

CARD = Card(
    name="naive-top-k",
    family="distributed",
    title="Top-k gradient descent without error feedback",
    authors="classical baseline",
    year=2017,
    summary="Each worker sends the largest entries of its gradient and forgets the rest.",
    cost="one gradient per worker; k values and k places up, the model down; no state",
    when="only as a baseline: with unlike workers it stops far from the solution",
    kinds=("federate",),
    use="""import hasten
from hasten.distributed import NaiveCompression, TopK

trace = hasten.run(NaiveCompression(TopK(0.1){hyper}), hasten.problem("hetero-quadratic"))""",
    search_space={"lr": LogReal(1e-3, 3.0)},
)


@register(CARD)
class NaiveCompression(Feedback):
    """Gradient descent on compressed gradients: x <- x - lr mean_i C(grad f_i(x)).

    With a biased compressor and unlike workers the fixed point is not the solution; with an unbiased one it is
    compressed SGD. Prefer any error feedback.

    Args:
        compressor: what each worker applies to its gradient, `TopK(0.1)` if not given.
        lr: step size.
    """

    card = CARD
    tracking = False

    def __init__(self, compressor: Compressor | None = None, lr: float = 0.1) -> None:
        super().__init__(compressor, lr)
