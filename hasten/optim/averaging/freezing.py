"""GradES: matrices whose gradients have become small are frozen one by one, beside any optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, Parts, companion
from hasten.optim.wrapper import StepHook

MONITORS = ("grad", "grad_change", "weight_change")

CARD = Card(
    name="grades",
    family="optim",
    paper_id=179,
    title="GradES: Significantly Faster Training in Transformers with Gradient-Based Early Stopping",
    authors="Wen et al.",
    year=2025,
    arxiv="2509.01842",
    summary="Freezes each weight matrix once its gradient has become small, and stops when all are frozen.",
    cost="One norm per matrix and check; saves the weight gradients and the optimizer state of what is frozen.",
    when="Fine-tuning: parts of the network arrive early, and validation passes for early stopping are dear.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "stopping = hasten.optim.GradientEarlyStopping(optimizer, total_steps=total_steps, relative=True{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "tau": LogReal(0.05, 0.8)},
)


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = {"relative": True, "tau": 0.2, **hyper}
    optimizer = torch.optim.AdamW(model.parameters(), lr=own.pop("lr", 1e-3))
    GradientEarlyStopping(optimizer, total_steps=horizon, **own)
    return Parts(optimizer)


@companion(CARD, _assemble)
class GradientEarlyStopping(StepHook):
    """Early stopping matrix by matrix, by the size of the gradients; on any optimizer.

        after step > alpha * total_steps, every `interval` steps, for each matrix W:
        freeze it for ever if |dL/dW|_1 < tau      (its gradient and optimizer state are dropped)

    Backward passes then skip the weight gradient of frozen matrices, about a third of the work of a layer, and need
    no validation. Parameters of one dimension (biases, norms) go on training. Ask `should_stop` in the training loop.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        total_steps: steps of the whole training.
        tau: threshold, above 0. Without `relative` its scale is that of the gradients: the paper uses 0.02 for LoRA and
            2.4 for full fine-tuning.
        alpha: share of the training during which nothing is frozen, in [0, 1).
        interval: steps between two checks.
        monitor: `grad`, `grad_change` (since the last check; keeps a copy of each gradient) or `weight_change` (since
            the last check; keeps a copy of each matrix).
        match: track only matrices whose name contains one of these; () for all with two dimensions or more.
        relative: divide by the value at the first check from `alpha * total_steps` on.
        max_frozen: share of the matrices at which training should stop, in (0, 1].
        model: gives the names for `match`; not needed if the optimizer was made from `named_parameters()`.

    Attributes:
        should_stop: whether enough is frozen.

    Source: Wen et al. (2025), arXiv 2509.01842.
    """

    conflicts: ClassVar[Mapping[str, str]] = {"GradNormRecorder": "the norms would leave out what is frozen meanwhile"}

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        total_steps: int,
        tau: float = 1e-4,
        alpha: float = 0.3,
        interval: int = 1,
        monitor: str = "grad",
        match: Sequence[str] = (),
        relative: bool = False,
        max_frozen: float = 1.0,
        model: nn.Module | None = None,
    ) -> None:
        self.total_steps = check.integer("total_steps", total_steps, 1)
        self.tau = check.positive("tau", tau)
        self.alpha = check.fraction("alpha", alpha)
        self.interval = check.integer("interval", interval, 1)
        self.monitor = check.one_of("monitor", monitor, MONITORS)
        if isinstance(match, str):
            raise InputError(f"match must be a sequence of names, got the string {match!r}; write ({match!r},)")
        self.match = tuple(match)
        self.relative = relative
        self.max_frozen = check.real("max_frozen", max_frozen, 0.0, 1.0, open_low=True)
        named = model.named_parameters() if model is not None else ()
        self._names: dict[Tensor, str] = {param: name for name, param in named}
        super().__init__(optimizer)

    def check(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            self._names.update(zip(group["params"], group.get("param_names", ())))
        if self.match and not any(self._tracks(param) for group in optimizer.param_groups for param in group["params"]):
            raise InputError(
                f"match={self.match} finds no matrix: give model=, or make the optimizer from named_parameters(), and "
                f"look at the names; known are {sorted(self._names.values())[:6]}"
            )

    @property
    def tracked(self) -> list[Tensor]:
        """The matrices that are looked at, frozen or not."""
        return [param for param in self._params() if self._tracks(param)]

    @property
    def frozen(self) -> list[Tensor]:
        """The matrices that are frozen."""
        return [param for param in self.tracked if "frozen" in self.state.get(param, ())]

    @property
    def should_stop(self) -> bool:
        tracked = self.tracked
        return bool(tracked) and len(self.frozen) >= self.max_frozen * len(tracked)

    def unfreeze(self) -> None:
        """Let everything that was frozen train again, and look at it anew."""
        for param in self.frozen:
            param.requires_grad_(True)
            self.state.pop(param)

    def on_gradients(self, params: list[Tensor]) -> None:
        # What a step did to the weights is seen just before the next one.
        done = self.steps - 1 if self.monitor == "weight_change" else self.steps
        if done % self.interval:
            return
        for param in params:
            if param.requires_grad and self._tracks(param):
                state = self.state.setdefault(param, {})
                measure = self._measure(param, state)
                if measure is not None and done >= self.alpha * self.total_steps and self._small(measure, state, done):
                    self._freeze(param, done)

    def _measure(self, param: Tensor, state: dict[str, Any]) -> float | None:
        if self.monitor == "grad":
            return float(torch.linalg.vector_norm(param.grad, 1))  # type: ignore[arg-type]
        now = param.grad if self.monitor == "grad_change" else param.detach()
        before, state["before"] = state.get("before"), now.clone()  # type: ignore[union-attr]
        return None if before is None else float(torch.linalg.vector_norm(now - before, 1))

    def _small(self, measure: float, state: dict[str, Any], done: int) -> bool:
        if self.relative and "reference" not in state:
            state["reference"] = measure
            return False
        return done > self.alpha * self.total_steps and measure < self.tau * state.get("reference", 1.0)

    def _freeze(self, param: Tensor, done: int) -> None:
        assert self.optimizer is not None
        self.state[param] = {"frozen": done}
        param.requires_grad_(False)
        param.grad = None
        self.optimizer.state.pop(param, None)

    def _tracks(self, param: Tensor) -> bool:
        return param.ndim >= 2 and (not self.match or any(part in self._names.get(param, "") for part in self.match))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved state; what was frozen then is frozen, all other tracked matrices train."""
        super().load_state_dict(state_dict)
        assert self.optimizer is not None
        for param in self.tracked:
            frozen = "frozen" in self.state.get(param, ())
            param.requires_grad_(not frozen)
            if frozen:
                param.grad = None
                self.optimizer.state.pop(param, None)
