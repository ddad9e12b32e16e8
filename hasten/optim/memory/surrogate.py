"""Any optimizer in a subspace: it trains small stand-ins of the matrices, and its steps are carried back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core.errors import InputError
from hasten.optim import sharded
from hasten.optim.adaptive.lion import Kappa, LionK
from hasten.optim.base import RuleOptimizer
from hasten.optim.layout import Batch, work_dtype
from hasten.optim.memory.adafactor import Adafactor
from hasten.optim.memory.projector import Projector

NAMED = ("adamw", "lion", "adafactor", "sgdm")
LENT = "base."

Base = str | Callable[..., Optimizer]


class Part:
    """One parameter in a step.

    Attributes:
        projector: its subspace, None where the base works on the whole tensor.
        stand_in: what the base trains; before its step zero (or, for a base that is not one of the named, the
            coordinates of `p`), afterwards the change. None where the base takes no step.
        y: coordinates of `g`, the gradient of the stand-in.
    """

    def __init__(self, param: Tensor, grad: Tensor, maximize: bool, projector: Projector | None) -> None:
        self._param = param.detach()
        self._grad = grad
        self._maximize = maximize
        self.projector = projector
        self.stand_in: nn.Parameter | None = None
        self.y = grad

    # Made when asked for: copies of all low-precision parameters at once would cost what the subspace saves.

    @property
    def p(self) -> Tensor:
        """The parameter in the precision of the arithmetic; itself if it has that, else a copy."""
        return self._param.to(work_dtype(self._param.dtype))

    @property
    def g(self) -> Tensor:
        """The gradient, downhill, in the precision of the arithmetic."""
        g = self._grad.to(work_dtype(self._param.dtype))
        return -g if self._maximize else g

    def coordinates(self, x: Tensor) -> Tensor:
        """Of a tensor like the parameter, in the subspace."""
        return x if self.projector is None else self.projector.down(x)

    def add_back_(self, p: Tensor, alpha: float = 1.0) -> None:
        """`p + alpha` times the change of the stand-in, in place."""
        if self.stand_in is not None and self.projector is not None:
            self.projector.add_(p, self.stand_in, alpha)
        elif self.stand_in is not None:
            p.add_(self.stand_in, alpha=alpha)


class SubspaceOptimizer(RuleOptimizer):
    """A base optimizer whose state for matrices lives in a subspace; a method says which, and what else is done.

    The base trains a stand-in for each parameter: its coordinates for a matrix in a subspace, all entries for others.
    The stand-ins get projected gradients, the base takes its step on them, and `apply` carries the change back. This
    way it can be any optimizer that takes its step from gradients; each group has one of its own. Its state is kept, in
    single or double precision, in `state` of the parameter under names that begin with `base.`; the numbers that it
    keeps in a parameter group, in `base_group` of the group.

    A subclass overrides `projector`, and `apply` where the change is not all.

    Args:
        params, defaults, options: as of `RuleOptimizer`.
        base: `adamw`, `lion`, `adafactor`, `sgdm`, or what builds an optimizer from `(params, lr=...)`.
        kappa: of `lion`, see `LionK`; for a method that takes signs itself.

    Attributes:
        base: name of the base, or what builds it.
    """

    whole_tensor = True
    takes_complex = False
    kept = ("base_group",)

    def __init__(
        self, params: Any, defaults: Mapping[str, Any], base: Base, kappa: Kappa = "l1", **options: Any
    ) -> None:
        if not callable(base) and base not in NAMED:
            raise InputError(
                f"base must be one of {', '.join(NAMED)}, or build an optimizer from (params, lr=...); got {base!r}"
            )
        self.base = base
        self._kappa = kappa
        self._bases: list[Optimizer | None] = []
        self._stand_ins: dict[Tensor, tuple[int, nn.Parameter]] = {}
        name = base if isinstance(base, str) else getattr(base, "__name__", type(base).__name__)
        super().__init__(params, {**defaults, "base": name}, **options)

    # What a method says of itself

    def projector(
        self, options: Mapping[str, Any], param: Tensor, number: int, state: dict[str, Any]
    ) -> Projector | None:
        """The subspace of a parameter, with `state` to keep it in; None for all entries.

        Args:
            options: of its group.
            param: as the optimizer holds it.
            number: its place among all parameters, a seed for random choices.
            state: its state; `step` counts the steps before this one.
        """
        raise NotImplementedError

    def apply(self, p: Tensor, part: Part, options: Mapping[str, Any]) -> None:
        """Change `p`, the parameter in the precision of the arithmetic, after the base has taken its step."""
        part.add_back_(p)

    # The base

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._bases.append(self._build(group))
        except Exception:
            self.param_groups.pop()
            raise

    def _build(self, group: dict[str, Any]) -> Optimizer | None:
        params = [param for param in group["params"] if param.numel()]
        made = []
        for param in params:
            made.append(nn.Parameter(torch.zeros((), dtype=work_dtype(param.dtype), device=param.device)))
            self._stand_ins[param] = (len(self._stand_ins), made[-1])
        if not made:
            return None
        own: dict[str, Any] = self._base_options(self._options(group))
        quiet = {"backend": self.backend, "on_nonfinite": "ignore"}
        if self.base == "adamw":
            fused = all(param.device.type in ("cpu", "cuda") for param in params)
            return torch.optim.AdamW(made, weight_decay=0.0, fused=fused, **own)
        if self.base == "sgdm":
            return torch.optim.SGD(made, **own)
        if self.base == "adafactor":
            return Adafactor(made, relative_step=False, scale_parameter=False, **own, **quiet)
        if self.base == "lion":
            return LionK(made, kappa=self._kappa, **own, **quiet)
        assert callable(self.base)
        base = self.base(made, **own)
        if not isinstance(base, Optimizer) or getattr(base, "takes", "gradients") != "gradients":
            raise InputError(f"base must build an optimizer that takes its step from gradients, it built a {base!r}")
        if isinstance(base, torch.optim.LBFGS):
            raise InputError("base cannot be LBFGS: it evaluates the loss at points of its own")
        group["base_group"] = _numbers(base)
        return base

    def _base_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        names = {"adamw": ("betas", "eps"), "lion": ("betas",)}.get(self.base, ()) if isinstance(self.base, str) else ()
        own = {name: options[name] for name in ("lr", *names)}
        return {**own, "momentum": options["betas"][0]} if self.base == "sgdm" else own

    # How a step is made

    def _advance(self, batch: Batch, grads: list[Tensor]) -> None:
        options = self._options(batch.group)
        place = next(i for i, group in enumerate(self.param_groups) if group is batch.group)
        base = self._bases[place]
        assert base is not None
        base.param_groups[0].update({**batch.group.get("base_group", {}), **self._base_options(options)})
        parts = [self._lend(options, base, *each) for each in zip(batch.owners, batch.params, grads, batch.states)]
        base.step()
        for part, owner, work, state in zip(parts, batch.owners, batch.params, batch.states):
            if part.stand_in is not None:
                self._settle(part, base, state)
            p = part.p
            if options["weight_decay"]:
                p.mul_(1 - options["lr"] * options["weight_decay"])
            self.apply(p, part, options)
            if p.dtype != work.dtype:
                work.copy_(p)
            if owner is not work:
                sharded.keep_own_part(owner, work)
            if part.stand_in is not None:
                part.stand_in.grad = None
            state["step"] += 1
        if "base_group" in batch.group:
            batch.group["base_group"] = _numbers(base)

    def _lend(
        self,
        options: Mapping[str, Any],
        base: Optimizer,
        owner: Tensor,
        work: Tensor,
        grad: Tensor,
        state: dict[str, Any],
    ) -> Part:
        """Give the base a gradient, and what it remembers of the parameter."""
        if owner is not work:
            work.copy_(sharded.full(owner))
        number, stand_in = self._stand_ins[owner]
        part = Part(work, grad, bool(options["maximize"]), self.projector(options, owner, number, state))
        g, projector = part.g, part.projector
        if projector is not None:
            projector.update(g)
            if projector.kind == "blocks" and not projector.active:
                stand_in.data = g.new_empty(0)
                return part
        part.stand_in, part.y = stand_in, part.coordinates(g)
        if stand_in.shape != part.y.shape or stand_in.device != part.y.device:
            stand_in.data = torch.zeros_like(part.y, memory_format=torch.contiguous_format)
        if isinstance(self.base, str):
            stand_in.zero_()
        else:
            stand_in.copy_(part.coordinates(part.p))
        stand_in.grad = part.y
        lent = {name.removeprefix(LENT): value for name, value in state.items() if name.startswith(LENT)}
        held = base.state[stand_in]
        if held.keys() != lent.keys():
            held.clear()
        held.update(lent)
        return part

    def _settle(self, part: Part, base: Optimizer, state: dict[str, Any]) -> None:
        """Take note of the base's state, and turn the stand-in from its new value into its change."""
        assert part.stand_in is not None
        state.update({LENT + name: value for name, value in base.state[part.stand_in].items()})
        if not isinstance(self.base, str):
            part.stand_in.sub_(part.coordinates(part.p))

    def forget(self, state: dict[str, Any]) -> None:
        """Let the base begin anew on one parameter."""
        for name in [name for name in state if name.startswith(LENT)]:
            del state[name]

    def check_saved(self, saved: Mapping[str, Any]) -> None:
        super().check_saved(saved)
        for theirs, group in zip(saved["param_groups"], self.param_groups):
            if theirs["base"] != group["base"]:
                raise InputError(f"state_dict is of the base {theirs['base']!r}, this one has {group['base']!r}")

    def __getstate__(self) -> dict[str, Any]:
        own = {"base": self.base, "_kappa": self._kappa, "_bases": self._bases, "_stand_ins": self._stand_ins}
        return {**super().__getstate__(), **own}


def _numbers(base: Optimizer) -> dict[str, Any]:
    return {name: value for name, value in base.param_groups[0].items() if name != "params"}
