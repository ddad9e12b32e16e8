"""Variance-reduced gradients: entries are scaled by their signal-to-noise ratio over micro-batches (VRGD)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal, Real
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook
from hasten.optim.base import RuleOptimizer
from hasten.optim.layout import Batch, real
from hasten.optim.moments import Scalar, axpy_, ema_, ema_square_
from hasten.optim.persample import MicroBatches
from hasten.optim.wrapper import OptimizerWrapper, StepHook

CARD = Card(
    name="gsnr",
    family="optim",
    paper_id=99,
    title="Accelerating Large Batch Training via Gradient Signal to Noise Ratio (GSNR)",
    authors="Jiang et al.",
    year=2023,
    arxiv="2309.13681",
    summary="Scales every gradient entry by its signal-to-noise ratio over the micro-batches of a large batch.",
    cost="Two tensors per parameter and a few elementwise passes per micro-batch, which large batches have anyway.",
    when="Large batches are made of several micro-batches, and lose generalisation against small ones.",
    kinds=KINDS,
    needs=("micro-batches",),
    use="optimizer = torch.optim.SGD(model.parameters(), momentum=0.9{hyper.lr})\n"
    "gsnr = hasten.optim.GSNRFilter(optimizer{hyper})\n"
    "for inputs, labels in loader:\n"
    "    loss_fn(model(inputs), labels).backward()\n"
    "    gsnr.accumulate()\n"
    "optimizer.step()",
    search_space={"lr": LogReal(1e-3, 1.0), "gamma": Real(0.05, 0.5), "momentum": Choice(0.0, 0.9)},
)


def signal_to_noise(seen: MicroBatches[Any], gamma: float) -> dict[Any, Tensor]:
    """`gb^2 / s2`, divided by its mean over each tensor and clamped to [gamma, 1]; `s2` with divisor `count`."""
    found = {}
    for key, mean in seen.mean.items():
        noise = seen.variance[key] * ((seen.count - 1) / seen.count)
        # Entries without any noise must not swallow all others in the mean, nor overflow it.
        ratio = (mean.square() / (noise + 1e-30)).clamp_(max=1e30)
        found[key] = (ratio / (ratio.mean() + 1e-30)).clamp_(gamma, 1.0)
    return found


class _Micro:
    """Collects the gradients of micro-batches out of `.grad`, and puts their mean back."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.seen: MicroBatches[Tensor] = MicroBatches()
        self.touched: set[Tensor] = set()

    def add(self, params: Sequence[Tensor]) -> None:
        for param in params:
            if param.grad is not None and param.grad.layout != torch.strided:
                raise InputError(f"{self.owner} does not take sparse gradients; build the layer with sparse=False")
        wanted = [param for param in params if param.requires_grad]
        self.seen.add({p: torch.zeros_like(real(p)) if p.grad is None else real(p.grad) for p in wanted})
        self.touched |= {param for param in wanted if param.grad is not None}
        for param in wanted:
            param.grad = None

    def take(self, gamma: float) -> dict[Tensor, Tensor]:
        """Put the mean gradients in place and begin anew; returns the ratios."""
        seen, touched = self.seen, self.touched
        if seen.count < 2:
            raise InputError(
                f"{self.owner} needs at least 2 micro-batches per step to tell signal from noise, got {seen.count}; "
                "call accumulate() after the backward pass of each"
            )
        self.seen, self.touched = MicroBatches(), set()
        ratios = signal_to_noise(seen, gamma)
        for param, mean in seen.mean.items():
            if param in touched:
                whole = torch.view_as_complex(mean) if param.is_complex() else mean
                param.grad = whole.to(param.dtype)
        return {param: ratios[param] for param in ratios if param in touched}


@hook(CARD, base=torch.optim.SGD)
class GSNRFilter(StepHook):
    """Scales every gradient entry by how well the micro-batches agree on it; works on any optimizer.

        gb, s2 = mean and variance (divisor k) of the gradients of k micro-batches
        r = gb^2 / s2;  r <- clamp(r / mean(r), gamma, 1), the mean taken over each tensor
        q <- b3 q + (1 - b3) r;  g <- gb q / (1 - b3^t)

    Use it as in a loop with gradient accumulation, but call `accumulate()` after each backward pass: it moves the
    gradient out of `.grad`, and the step puts the (filtered) mean there. Losses are averaged over their micro-batch
    and not divided by `k`. `GradScaler`, which looks into `.grad` before the step, cannot be combined with it.

        for inputs, labels in micro_batches:
            loss_fn(model(inputs), labels).backward()
            gsnr.accumulate()
        optimizer.step()

    An Adam-type optimizer takes the scaled gradient into both moments; `VRAdam` and `VRLAMB` take the unscaled one
    into the second.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        gamma: least factor, in (0, 1].
        momentum: `b3`, in [0, 1); the paper averages the ratios for Adam and LAMB (0.9) and not for SGD.

    Raises:
        InputError: fewer than two micro-batches were accumulated before a step.

    Cost: two tensors per parameter, three with momentum. Source: Jiang et al. (2023), arXiv 2309.13681.
    """

    conflicts: ClassVar[Mapping[str, str]] = {"Discover": "each makes the gradient of a step anew out of its own parts"}

    def __init__(self, optimizer: Optimizer | None = None, gamma: float = 0.1, momentum: float = 0.0) -> None:
        self.gamma = check.real("gamma", gamma, 0.0, 1.0, open_low=True)
        self.momentum = check.fraction("momentum", momentum)
        self._micro = _Micro(type(self).__name__)
        self._ratios: dict[Tensor, Tensor] = {}
        super().__init__(optimizer)

    def accumulate(self) -> None:
        """Take in the gradients of one micro-batch; call it after each backward pass."""
        self._micro.add(list(self._params()))

    @torch.no_grad()
    def _act(self) -> None:
        self._ratios = self._micro.take(self.gamma)
        super()._act()

    def on_gradients(self, params: list[Tensor]) -> None:
        for param in params:
            ratio = self._ratios.get(param)
            if ratio is None:
                continue
            if self.momentum:
                state = self.state.setdefault(param, {"ratio": torch.zeros_like(ratio), "count": 0})
                state["count"] += 1
                state["ratio"].lerp_(ratio, 1 - self.momentum)
                ratio = state["ratio"] / (1 - self.momentum ** state["count"])
            real(param.grad).mul_(ratio)  # type: ignore[arg-type]
        self._ratios = {}


class VRSGD(OptimizerWrapper):
    """`torch.optim.SGD` behind a `GSNRFilter`: call `accumulate()` after each micro-batch, then `step()`.

    Args:
        params, lr, momentum, weight_decay: as `torch.optim.SGD`.
        gamma: as `GSNRFilter`.
    """

    def __init__(
        self, params: Any, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0, gamma: float = 0.1
    ) -> None:
        super().__init__(torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.filter = GSNRFilter(self.base, gamma)

    def accumulate(self) -> None:
        """Take in the gradients of one micro-batch."""
        self.filter.accumulate()


class _ScaledFirstMoment(RuleOptimizer):
    """Adam or LAMB whose first moment alone takes the scaled gradient; `ratio` is the averaged ratio `q`.

    Attributes:
        fresh: the ratios of this step, put here before it.
    """

    buffers = ("exp_avg", "exp_avg_sq", "ratio")
    fresh: Mapping[Tensor, Tensor] = MappingProxyType({})

    def __init__(self, params: Any, **hyper: Any) -> None:
        super().__init__(params, hyper)

    def advance(self, work: Sequence[tuple[Batch, list[Tensor]]]) -> None:
        for batch, _ in work:
            for owner, state in zip(batch.owners, batch.states):
                state["ratio"].lerp_(self.fresh[owner].to(state["ratio"].dtype), 1 - batch.group["betas"][2])
        super().advance(work)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        weights = [1 - beta for beta in group["betas"][:2]]
        scales = [1 / (1 - beta**t) for beta in group["betas"]]
        named = dict(zip(("weight1", "weight2", "scale1", "scale2", "scale3"), (*weights, *scales)))
        return {
            **named,
            "lr": group["lr"],
            "eps": group["eps"],
            "decay": group["weight_decay"],
            "trust": self.whole_tensor,
        }

    @staticmethod
    def update(
        p: Tensor, g: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, ratio: Tensor, *,
        weight1: Scalar, weight2: Scalar, scale1: Scalar, scale2: Scalar, scale3: Scalar,
        lr: Scalar, eps: Scalar, decay: Scalar, trust: bool,
    ) -> None:  # fmt: skip
        ema_(exp_avg, g * ratio * scale3, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        direction = exp_avg * scale1 / ((exp_avg_sq * scale2).sqrt() + eps) + decay * p
        if trust:
            sizes, lengths = (x.flatten(1).norm(dim=1) if x.ndim > 1 else x.abs() for x in (p, direction))
            factor = torch.where((sizes > 0) & (lengths > 0), sizes / lengths.clamp(min=1e-30), 1.0)
            direction = direction * factor.view(-1, *[1] * (p.ndim - 1))
        axpy_(p, -lr, direction)


class _ScaledFirstMomentLAMB(_ScaledFirstMoment):
    whole_tensor = True


class VRAdam(OptimizerWrapper):
    """AdamW whose first moment takes the gradient scaled by its signal-to-noise ratio, the second the unscaled one.

        m <- b1 m + (1 - b1) gb q_hat;  v <- b2 v + (1 - b2) gb^2
        p <- p (1 - lr weight_decay) - lr m_hat / (sqrt(v_hat) + eps)

    Call `accumulate()` after the backward pass of each micro-batch, then `step()`; `gb` and `q_hat` as in `GSNRFilter`.

    Args:
        params: parameters or groups of them.
        lr: step size.
        betas: decay of the first moment, the second moment, and the ratios, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled, `p <- p (1 - lr weight_decay)`.
        gamma: least ratio, in (0, 1].

    Raises:
        InputError: fewer than two micro-batches were accumulated before a step.

    Cost: three tensors of state per parameter, and two between micro-batches. Source: Jiang et al. (2023), arXiv
    2309.13681.
    """

    _rule: ClassVar[type[_ScaledFirstMoment]] = _ScaledFirstMoment

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 0.1,
    ) -> None:
        self.gamma = check.real("gamma", gamma, 0.0, 1.0, open_low=True)
        self._micro = _Micro(type(self).__name__)
        super().__init__(self._rule(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    def accumulate(self) -> None:
        """Take in the gradients of one micro-batch; call it after each backward pass."""
        self._micro.add([param for group in self.param_groups for param in group["params"]])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; a `closure` runs all micro-batches, and its value is returned."""
        loss = closure() if closure is not None else None
        assert isinstance(self.base, _ScaledFirstMoment)
        self.base.fresh = self._micro.take(self.gamma)
        self.base.step()
        del self.base.fresh
        return loss


class VRLAMB(VRAdam):
    """LAMB in the manner of `VRAdam`: each tensor's step `m_hat / (sqrt(v_hat) + eps) + weight_decay p` is brought to
    the length of the tensor itself, times `lr`; a tensor of zeros takes the step as it is.

    Args, errors, cost and source as `VRAdam`.
    """

    _rule = _ScaledFirstMomentLAMB
