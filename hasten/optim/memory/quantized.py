"""Optimizer state in 8 bits: for any optimizer, and Adam, AdamW, momentum and Lion made with it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook, optimizer
from hasten.optim.adaptive.adam import Adam, AdamW
from hasten.optim.adaptive.lion import Lion
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import is_dense
from hasten.optim.memory.blockwise import BLOCK
from hasten.optim.moments import Scalar, axpy_
from hasten.optim.storage import ABSMAX, Blockwise
from hasten.optim.wrapper import StepHook

if TYPE_CHECKING:
    from typing_extensions import Unpack

MIN_SIZE = 4096


def _card(name: str, summary: str, use: str) -> Card:
    return Card(
        name=name,
        family="optim",
        paper_id=409,
        title="8-bit Optimizers via Block-wise Quantization",
        authors="Dettmers et al.",
        year=2022,
        arxiv="2110.02861",
        summary=summary,
        cost="A quarter of the state's memory; on a CPU a step takes three times as long compiled, six times if not.",
        when="The optimizer's state does not fit, or its memory is better spent on a larger model or batch.",
        kinds=KINDS,
        use=use,
        search_space={"lr": LogReal(1e-5, 1e-2) if name.startswith("lion") else LogReal(1e-4, 1e-1)},
    )


@hook(
    _card(
        "quantized-state",
        "Keeps the state of any optimizer in 8 bits between steps.",
        "optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
        "storage = hasten.optim.QuantizedState(optimizer{hyper})",
    )
)
class QuantizedState(StepHook):
    """Keeps state tensors as 8-bit codes and the largest absolute value of each block; any optimizer.

        code = nearest of 256 fixed values to x / max |x| of its block

    State without sign is never rounded down to 0: a step divided by its root would have no bound. (Published code does
    round so.)

    On the rules of this library the state is decoded in small pieces within the step; state of other optimizers is
    decoded before each step and encoded after it, so that its memory is saved between steps (for activations), not
    within them. The codes are what `state_dict` holds. State that was saved in 32 bits may be loaded; it is encoded at
    the next step. State saved in 8 bits needs the same `names`, `block` and `min_size`.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        names: state tensors to be stored so, e.g. `("exp_avg", "exp_avg_sq")`; None for all.
        block: entries that share a largest value.
        min_size: state tensors with fewer entries stay in 32 bits.
        unsigned: those that are never negative, which are stored more finely; None to tell by the name (`*_sq`,
            `*_var`, `square_avg`, `sum`).

    Raises:
        InputError: a rule whose step reads the state of all tensors at once.

    Cost: 1 + 4 / block bytes per entry instead of 4. Source: Dettmers et al. (2022), arXiv 2110.02861.
    """

    stage = "storage"

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        names: Sequence[str] | None = None,
        block: int = BLOCK,
        min_size: int = MIN_SIZE,
        unsigned: Sequence[str] | None = None,
    ) -> None:
        self.form = _form(names, block, min_size, unsigned)
        self._saved: Mapping[str, Any] | None = None
        super().__init__(optimizer)

    def check(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, RuleOptimizer):
            return
        cls = type(optimizer)
        for name in ("step", "advance", "together"):
            if inspect.unwrap(getattr(cls, name)) is not inspect.unwrap(getattr(RuleOptimizer, name)):
                raise InputError(
                    f"{cls.__name__} reads the state of all tensors at once (it overrides {name!r}), which 8-bit "
                    "storage does not offer; use it with 32-bit state"
                )
        if optimizer.storage is not None:
            raise InputError(f"{cls.__name__} keeps its state in 8 bits already")

    def remove(self) -> None:
        """Leave the optimizer as it was, its state in 32 bits; calling it again does nothing."""
        if not self._handles:
            return
        super().remove()
        if isinstance(self.optimizer, RuleOptimizer):
            self.optimizer.storage = None
        self._unpack()

    def _register(self) -> None:
        assert self.optimizer is not None
        handles = [self.optimizer.register_step_pre_hook(self._before)]
        if isinstance(self.optimizer, RuleOptimizer):
            self.optimizer.storage = self.form
        else:
            handles.append(self.optimizer.register_load_state_dict_pre_hook(self._loading))
            handles.append(self.optimizer.register_load_state_dict_post_hook(self._loaded))
            handles.append(self.optimizer.register_step_post_hook(self._after))
        self._handles = handles

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for param in self._params():
            if param.grad is not None and param.grad.layout != torch.strided:
                raise InputError(
                    f"QuantizedState does not take sparse gradients (of a parameter shaped {tuple(param.shape)}); "
                    "build the layer with sparse=False"
                )
        self.steps += 1
        if not isinstance(optimizer, RuleOptimizer):
            self._unpack()

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for param in self._params():
            state = optimizer.state.get(param, {})
            found = {
                name: value.shape
                for name, value in state.items()
                if torch.is_tensor(value) and value.is_floating_point() and value.layout == torch.strided
            }
            for name in self.form.coded(found):
                value = state[name] if is_dense(state[name]) else state[name].contiguous()
                state[name], state[name + ABSMAX] = self.form.encode(name, value)

    @torch.no_grad()
    def _unpack(self) -> None:
        assert self.optimizer is not None
        for param in self._params():
            state = self.optimizer.state.get(param, {})
            for key in [key for key in state if key.endswith(ABSMAX) and key.removesuffix(ABSMAX) in state]:
                name = key.removesuffix(ABSMAX)
                dtype = torch.float64 if param.dtype == torch.float64 else torch.float32
                dtype = dtype if isinstance(self.optimizer, RuleOptimizer) or dtype == torch.float64 else param.dtype
                state[name] = self.form.decode(name, state[name], state.pop(key), dtype)

    def _loading(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict
        for state in state_dict["state"].values():
            for key in [key for key in state if key.endswith(ABSMAX)]:
                codes = state.get(key.removesuffix(ABSMAX))
                if codes is not None and state[key].shape != (-(-codes.numel() // self.form.block),):
                    raise InputError(
                        f"state_dict has {key} shaped {tuple(state[key].shape)} for {codes.numel()} entries, which is "
                        f"not blocks of {self.form.block}; make QuantizedState with the block that it was saved with"
                    )

    def _loaded(self, optimizer: Optimizer) -> None:
        # PyTorch casts loaded state to the type of the parameter, so codes and maxima are taken from the source.
        assert self._saved is not None
        saved, self._saved = self._saved, None
        for theirs, group in zip(saved["param_groups"], optimizer.param_groups):
            for place, param in zip(theirs["params"], group["params"]):
                state = saved["state"].get(place, {})
                for key in [key for key in state if key.endswith(ABSMAX)]:
                    for name in (key, key.removesuffix(ABSMAX)):
                        optimizer.state[param][name] = state[name].detach().to(param.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_saved": None}


def _form(names: Sequence[str] | None, block: int, min_size: int, unsigned: Sequence[str] | None) -> Blockwise:
    for label, given in (("names", names), ("unsigned", unsigned)):
        if isinstance(given, str):
            raise InputError(f"{label} must be a sequence of names, got the string {given!r}; write ({given!r},)")
    return Blockwise(
        check.integer("block", block, 2),
        check.integer("min_size", min_size, 0),
        None if names is None else tuple(names),
        None if unsigned is None else tuple(unsigned),
    )


class Momentum(RuleOptimizer):
    """SGD with momentum, as `torch.optim.SGD` takes its steps.

    m <- momentum m + g  (m = g at first);  p <- p - lr m
    """

    buffers = ("momentum_buffer",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.fraction("momentum", group["momentum"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {**self.decay(group, coupled=True), "lr": group["lr"], "momentum": group["momentum"]}

    @staticmethod
    def update(p: Tensor, g: Tensor, momentum_buffer: Tensor, *, lr: Scalar, momentum: Scalar) -> None:
        momentum_buffer.mul_(momentum).add_(g)
        axpy_(p, -lr, momentum_buffer)


class _Stored(RuleOptimizer):
    """A rule with its state in 8 bits from the start."""

    def __init__(self, params: Any, *args: Any, block: int = BLOCK, min_size: int = MIN_SIZE, **options: Any) -> None:
        form = _form(None, block, min_size, None)
        super().__init__(params, *args, **options)
        self.storage = form


@optimizer(
    _card(
        "adam-8bit",
        "Adam with its state in 8 bits.",
        "optimizer = hasten.optim.Adam8bit(model.parameters(){hyper})",
    )
)
class Adam8bit(_Stored, Adam):
    """`Adam` with its state in 8 bits.

    Args:
        params: parameters, named parameters or groups of them.
        block, min_size: see `QuantizedState`.
        args, options: those of `Adam`.
    """


@optimizer(
    _card(
        "adamw-8bit",
        "AdamW with its state in 8 bits.",
        "optimizer = hasten.optim.AdamW8bit(model.parameters(){hyper})",
    )
)
class AdamW8bit(_Stored, AdamW):
    """`AdamW` with its state in 8 bits; arguments as `Adam8bit`, `weight_decay` decoupled and 0.01 by default."""


@optimizer(
    _card(
        "momentum-8bit",
        "SGD with momentum, its state in 8 bits.",
        "optimizer = hasten.optim.Momentum8bit(model.parameters(){hyper})",
    )
)
class Momentum8bit(_Stored, Momentum):
    """SGD with momentum, its state in 8 bits: `lr`, `momentum` and coupled `weight_decay` as in `torch.optim.SGD`."""


@optimizer(
    _card(
        "lion-8bit",
        "Lion with its state in 8 bits.",
        "optimizer = hasten.optim.Lion8bit(model.parameters(){hyper})",
    )
)
class Lion8bit(_Stored, Lion):
    """`Lion` with its momentum in 8 bits; arguments as `Lion`, and those of `Adam8bit`."""


class StableEmbedding(nn.Embedding):
    """An embedding for training with 8-bit state: Xavier-uniform start and layer norm after the look-up.

    Give its weights to an optimizer of their own, or to a group of one, with state in 32 bits.

    Args:
        num_embeddings: rows.
        embedding_dim: entries per row.
        padding_idx: a row that stays zero, as in `torch.nn.Embedding`.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx)
        self.norm = nn.LayerNorm(embedding_dim)

    def reset_parameters(self) -> None:
        """Xavier-uniform values; zero in the row of `padding_idx`."""
        nn.init.xavier_uniform_(self.weight)
        self._fill_padding_idx_with_zero()

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))
