"""What the forms of D-Adaptation share: the estimate of the distance, its growth, one learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.optim import flat
from hasten.optim.base import RuleOptimizer
from hasten.optim.layout import Batch

Work = Sequence[tuple[Batch, list[Tensor]]]


class DAdaptation(RuleOptimizer):
    """What the three have in common: the estimate `d` and its growth, one for all groups, kept in the first."""

    kept = ("d", "numerator", "k", "first_norm")

    @property
    def d(self) -> float:
        """Estimate of the distance from the start to the solution (in the norm of the rule)."""
        return self.param_groups[0].get("d", self.param_groups[0]["d0"])

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("d0", group["d0"])
        if group["growth_rate"] != math.inf:
            check.real("growth_rate", group["growth_rate"], 1.0)
        if "momentum" in group:
            check.fraction("momentum", group["momentum"])
        self._rate()

    def _rate(self) -> float:
        """The learning rate of the groups that do not rest.

        Raises:
            InputError: they have several.
        """
        rates = {float(group["lr"]) for group in self.param_groups} - {0.0}
        if len(rates) > 1:
            raise InputError(
                f"lr must be the same in all groups of {type(self).__name__}, or 0 in groups at rest, because one d "
                f"serves them all; got {sorted(rates)}"
            )
        return rates.pop() if rates else 0.0

    def advance(self, work: Work) -> None:
        rate, memory = self._rate(), self.param_groups[0]
        moving = [(batch, grads) for batch, grads in work if float(batch.group["lr"]) > 0]
        k = memory.get("k", 0)
        scale = self.scale(moving, k) if moving else 0.0
        if scale == 0.0:
            return
        self._lam = self.d * rate * scale
        before = self.numerator_before(moving)
        super().advance(moving)
        found = self.estimate(self.numerator_after(before, moving))
        memory["d"] = max(self.d, min(found, self.d * memory["growth_rate"]))
        memory["k"] = k + 1

    def scale(self, work: Work, k: int) -> float:
        """Factor of `d * lr` at the `k`-th step from 0; 0 leaves the step out."""
        return 1.0 if k or any(flat.norm(grads) for _, grads in work) else 0.0

    def numerator_before(self, work: Work) -> float:
        """What the state before the step adds to the numerator of the estimate."""
        return 0.0

    def numerator_after(self, before: float, work: Work) -> float:
        """The numerator of the estimate, renewed after the step."""
        memory = self.param_groups[0]
        memory["numerator"] = memory.get("numerator", 0.0) + before
        return memory["numerator"]

    def estimate(self, numerator: float) -> float:
        """Lower bound on the distance."""
        raise NotImplementedError

    def states(self, name: str) -> list[Tensor]:
        """A state tensor of all parameters that move; also of those that have no gradient in this step."""
        params = [param for group in self.param_groups if float(group["lr"]) > 0 for param in group["params"]]
        return [self.state[param][name] for param in params if name in self.state.get(param, ())]


def sign(batch: Batch) -> float:
    """-1 where the group climbs."""
    return -1.0 if batch.group["maximize"] else 1.0


def l2(batch: Batch) -> float:
    """Weight decay that is added to the gradient."""
    return 0.0 if batch.group.get("decouple") else float(batch.group["weight_decay"])


def of(batch: Batch, name: str) -> list[Tensor]:
    """A state tensor of each parameter."""
    return [state[name] for state in batch.states]


def quotient(numerator: float, norm: float) -> float:
    """`numerator / norm`; no bound at all where nothing has moved."""
    return numerator / norm if norm > 0 else -math.inf
