"""SPAM: Adam that clips gradient spikes and forgets its momentum now and then; its clipping for any Adam-type rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import real
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_
from hasten.optim.wrapper import StepHook

if TYPE_CHECKING:
    from typing_extensions import Unpack

PAPER = {
    "paper_id": 289,
    "title": "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training",
    "authors": "Huang et al.",
    "year": 2025,
    "arxiv": "2501.06842",
    "kinds": KINDS,
    "family": "optim",
}
CARD = Card(
    name="spam",
    **PAPER,
    summary="Adam that cuts gradient entries far above their own second moment and resets its moments periodically.",
    cost="As Adam, two state tensors per parameter; with a density below 1 about that share of it.",
    when="Training shows sudden gradient spikes, as that of large language models does.",
    use="optimizer = hasten.optim.SPAM(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)
CLIP = Card(
    name="spike-clip",
    **PAPER,
    summary="Cuts gradient entries far above the second moment that an Adam-type optimizer keeps of them.",
    cost="One elementwise pass; with resets also a copy of the parameters.",
    when="Gradients spike, and the optimizer is an Adam-type one other than Adam.",
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\nclip = hasten.optim.SpikeClip(optimizer{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "reset_interval": Choice(None, 500)},
)


def warmth(since: int, steps: int) -> float:
    """Share of the step that is taken `since` steps after a reset: from 0.01 up to 1 along a cosine."""
    return 1 - 0.99 * 0.5 * (1 + math.cos(math.pi * since / (steps + 1))) if since < steps else 1.0


def without_spikes(g: Tensor, second_moment: Tensor, threshold: Scalar) -> Tensor:
    """`g` with `|g|` at most `sqrt(threshold * second_moment)`, where there is a second moment yet."""
    bound = (second_moment * threshold).sqrt()
    return torch.where(second_moment > 0, torch.minimum(torch.maximum(g, -bound), bound), g)


@optimizer(CARD)
class SPAM(RuleOptimizer):
    """Adam with gradient spikes cut to size and moments that start anew periodically.

        t a multiple of reset_interval:  m = v = 0
        t >= grace and t mod reset_interval >= grace:  g <- sign(g) sqrt(threshold v)  where g^2 > threshold v
        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        p <- p - lr w sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps);  p <- p (1 - lr weight_decay)

    `w` rises from 0.01 to 1 along a cosine over the `warmup_steps` after a reset and is 1 otherwise. The bias
    correction runs on across resets, as published: just after one, steps are then up to
    `(1 - b1) / sqrt(1 - b2)` = 3.2 times as long as Adam's, before `w`. An entry whose second moment is exactly zero is
    not cut, as it could never move again.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: applied after the step, `p <- p (1 - lr weight_decay)`.
        threshold: largest square of a gradient entry over its second moment; 0 for no clipping.
        reset_interval: steps from one reset to the next; 0 for none.
        warmup_steps: steps after a reset over which the step size rises.
        grace: steps at the start and after a reset in which nothing is cut.
        density: share of the entries of matrices (and larger tensors) that are trained between two resets, in (0, 1];
            which ones is drawn anew at each reset. Only these have state and change.
        restart_bias_correction: count from the last reset, as Adam would.
        seed: of the draws for a `density` below 1.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`. A `density` below 1 needs resets.

    Cost: as Adam; with a density below 1, three numbers of state for each kept entry. Source: Huang et al. (2025),
    arXiv 2501.06842.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        threshold: float = 5000.0,
        reset_interval: int = 500,
        warmup_steps: int = 150,
        grace: int = 20,
        density: float = 1.0,
        restart_bias_correction: bool = False,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "threshold": threshold}
        hyper |= {"reset_interval": reset_interval, "warmup_steps": warmup_steps, "grace": grace, "density": density}
        super().__init__(params, {**hyper, "restart_bias_correction": restart_bias_correction, "seed": seed}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.nonnegative("threshold", group["threshold"])
        for name in ("reset_interval", "warmup_steps", "grace", "seed"):
            check.integer(name, group[name], 0)
        check.real("density", group["density"], 0.0, 1.0, open_low=True)
        if group["density"] < 1 and not group["reset_interval"]:
            raise InputError(
                f"density={group['density']} needs resets: with reset_interval=0 the other entries would never train"
            )

    def whole(self, group: Mapping[str, Any]) -> bool:
        return group["density"] < 1

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        count = math.ceil(group["density"] * math.prod(shape))
        if len(shape) < 2 or group["density"] == 1:
            return super().shapes(group, shape)
        return {"exp_avg": (count,), "exp_avg_sq": (count,), "chosen": (count,)}

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        if "chosen" in state:
            state["chosen"] = self._choice(param, state["chosen"], group["seed"])

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> Mapping[str, float | Tensor]:
        if group["density"] < 1 and t % group["reset_interval"] == 0:
            for place, (param, state) in enumerate(zip(params, states)):
                if "chosen" in state:
                    state["chosen"].copy_(self._choice(param, state["chosen"], group["seed"] + t * 1_000_003 + place))
        return {}

    @staticmethod
    def _choice(param: Tensor, like: Tensor, seed: int) -> Tensor:
        """Places in the flattened tensor, drawn without repetition."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(param.numel(), generator=generator)[: len(like)].to(param.device, torch.int32)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        interval, grace, steps = group["reset_interval"], group["grace"], group["warmup_steps"]
        resets = bool(interval) and t >= interval
        since = t % interval if interval else t
        k = since + 1 if resets and group["restart_bias_correction"] else t
        step = group["lr"] * math.sqrt(1 - beta2**k) / (1 - beta1**k)
        return {
            "reset": resets and since == 0,
            "threshold": float(group["threshold"]) if group["threshold"] and min(t, since) >= grace else None,
            "step": step * (warmth(since, steps) if resets else 1.0),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "eps": group["eps"],
            "shrink": group["lr"] * group["weight_decay"] if group["weight_decay"] else None,
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        chosen: Tensor | None = None,
        *,
        reset: bool,
        threshold: Scalar | None,
        step: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        shrink: Scalar | None,
    ) -> None:
        if reset:
            exp_avg.zero_()
            exp_avg_sq.zero_()
        places = None if chosen is None else chosen.long()
        if places is not None:
            g = g.flatten(1).gather(1, places)
        if threshold is not None:
            g = without_spikes(g, exp_avg_sq, threshold)
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        entries = p if places is None else p.flatten(1).gather(1, places)
        add_ratio_(entries, -step, exp_avg, exp_avg_sq.sqrt().add_(eps))
        if shrink is not None:
            entries.mul_(1 - shrink)
        if places is not None:
            p.copy_(p.flatten(1).scatter(1, places, entries).view_as(p))


@hook(CLIP)
class SpikeClip(StepHook):
    """Cuts gradient spikes before any Adam-type optimizer, and on request resets its moments; see `SPAM`.

        g <- sign(g) sqrt(threshold v)  where g^2 > threshold v,  v the optimizer's own `exp_avg_sq`

    Args:
        optimizer: any optimizer that keeps a full `exp_avg_sq` of the raw gradients; None leaves it to `compose`.
        threshold: largest square of a gradient entry over its second moment, above 0.
        grace: steps at the start and after a reset in which nothing is cut.
        reset_interval: set `exp_avg` and `exp_avg_sq` to zero every so many steps; None for never. The optimizer's own
            bias correction runs on.
        warmup_steps: steps after a reset over which the update rises from 0.01 of its size to all of it.

    Raises:
        InputError: the optimizer keeps no second moment; at its second step, where that cannot be known before.

    Cost: one elementwise pass; with resets also a copy of the parameters. Source: Huang et al. (2025), arXiv
    2501.06842.
    """

    conflicts: ClassVar[Mapping[str, str]] = {"QuantizedState": "reads the second moment, which is then kept in 8 bits"}

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        threshold: float = 5000.0,
        grace: int = 20,
        reset_interval: int | None = None,
        warmup_steps: int = 150,
    ) -> None:
        self.threshold = check.positive("threshold", threshold)
        self.grace = check.integer("grace", grace, 0)
        self.reset_interval = None if reset_interval is None else check.integer("reset_interval", reset_interval, 1)
        self.warmup_steps = check.integer("warmup_steps", warmup_steps, 0)
        self._first: set[Tensor] = set()
        super().__init__(optimizer)

    def acts(self, method: str) -> bool:
        return method == "on_gradients" or (self.reset_interval is not None and self.warmup_steps > 0)

    def check(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, RuleOptimizer):
            members = ((group, param) for group in optimizer.param_groups for param in group["params"])
            known = all("exp_avg_sq" in optimizer.shapes(group, real(param).shape) for group, param in members)
        else:
            known = not type(optimizer).__module__.startswith("torch.optim") or isinstance(optimizer, _WITH_MOMENT)
        if not known:
            raise InputError(_refusal(optimizer))
        if getattr(optimizer, "storage", None) is not None:
            raise InputError(f"{type(self).__name__} {self.conflicts['QuantizedState']}")

    def on_gradients(self, params: list[Tensor]) -> None:
        assert self.optimizer is not None
        for param in params:
            own, known = self.state.setdefault(param, {"seen": 0}), self.optimizer.state.get(param, {})
            own["seen"] += 1
            if not known and param not in self._first:
                self._first.add(param)
                continue
            second = known.get("exp_avg_sq")
            grad: Tensor = param.grad  # type: ignore[assignment]
            if not isinstance(second, Tensor) or second.shape not in (real(grad).shape, grad.shape):
                raise InputError(_refusal(self.optimizer))
            since = own["seen"] % self.reset_interval if self.reset_interval else own["seen"]
            if self.reset_interval and since == 0:
                second.zero_()
                if isinstance(known.get("exp_avg"), Tensor):
                    known["exp_avg"].zero_()
            if min(since, own["seen"]) < self.grace:
                continue
            entries = real(grad)
            size = real(second) if second.is_complex() else second
            entries.copy_(without_spikes(entries.to(size.dtype), size, self.threshold))

    def on_update(self, params: list[Tensor], old: list[Tensor]) -> None:
        assert self.reset_interval is not None
        for param, before in zip(params, old):
            seen = self.state[param]["seen"] if param in self.state else 0
            factor = warmth(seen % self.reset_interval, self.warmup_steps) if seen >= self.reset_interval else 1.0
            if factor < 1.0:
                param.sub_(before).mul_(factor).add_(before)


_WITH_MOMENT = (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam)


def _refusal(optimizer: Optimizer) -> str:
    return (
        "SpikeClip compares gradients with the second moment exp_avg_sq that the optimizer keeps of each parameter, "
        f"and {type(optimizer).__name__} keeps none; use it with an Adam-type optimizer, or clip by norm"
    )
