"""Low-rank adapters: small trainable corrections of the linear maps of a frozen network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.errors import InputError

ADAPTED = (nn.Linear, nn.Conv2d)


class LoRA(nn.Module):
    """Low-rank adapters of chosen `Linear` and `Conv2d` layers of any network.

    While attached, a layer with weight W acts as if its weight were `W + scale (alpha / rank) B A`, with A of `rank`
    rows and `B = 0` at the start, so that nothing changes before training. A convolution has for A one of its own
    kernel size with `rank` channels, and for B one of size 1. Adapters hang on forward hooks: the network's classes,
    names and state_dict stay as they are, `detach` leaves no trace, and several sets attached at once add up. Attaching
    freezes all parameters of the network; detaching gives them back their `requires_grad`.

    As a module it consists of the adapters alone: `parameters()`, `state_dict()` and `to()` do not see the network.

    Args:
        module: the network. Not attached yet: call `attach`, or use the object in a `with` statement.
        targets: which layers: dotted names, or parts of them. `"attn"` means every layer that is called so or lies
            inside a module that is, `"blocks.0"` every one in that block. None means all.
        rank: rows of A, at least 1; for a grouped convolution a multiple of its groups.
        alpha: numerator of the scaling; None takes `rank`, hence a scaling of 1.
        scale: further factor, which can be changed at any time, e.g. to fade the adapters out.
        generator: source of A (uniform, as torch initialises a layer); torch's global one if not given.

    Raises:
        InputError: no layer of that name, a rank that a layer cannot have, or a layer inside `nn.MultiheadAttention`,
            which uses the weights of its layers without calling them.

    Cost: `rank (inputs + outputs)` parameters and multiplications per layer and row; none once merged.
    Source: Hu et al. (2021), arXiv 2106.09685.

    Example:
        >>> lora = LoRA(net, targets=["attn"], rank=8).attach()
        >>> optimizer = torch.optim.AdamW(lora.parameters(), lr=1e-3)
    """

    def __init__(
        self,
        module: nn.Module,
        targets: str | Sequence[str] | None = None,
        rank: int = 8,
        alpha: float | None = None,
        *,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check.integer("rank", rank, 1)
        self.rank = rank
        self.alpha = float(rank) if alpha is None else float(check.positive("alpha", alpha))
        self._scale = float(check.real("scale", scale))
        self._module = (module,)
        self._layers = named_layers(module, targets)
        self._handles: list[Any] = []
        self._frozen: list[nn.Parameter] = []
        self._originals: dict[str, Tensor] = {}
        self.adapters = nn.ModuleDict()
        for name, layer in self._layers.items():
            self.adapters[_key(name)] = _Adapter(name, layer, rank, generator)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapted layers."""
        return tuple(self._layers)

    @property
    def attached(self) -> bool:
        """Whether the network acts with the adapters."""
        return bool(self._handles)

    @property
    def merged(self) -> bool:
        """Whether the adapters are part of the network's weights at present."""
        return bool(self._originals)

    @property
    def scale(self) -> float:
        """Factor of all adapters, beside `alpha / rank`. Changing it while merged merges anew."""
        return self._scale

    @scale.setter
    def scale(self, value: float) -> None:
        self._scale = float(check.real("scale", value))
        if self.merged:
            self.unmerge()
            self.merge()

    def attach(self) -> LoRA:
        """Let the network act with the adapters, and freeze its own parameters."""
        if not self.attached:
            for name, layer in self._layers.items():
                self._handles.append(layer.register_forward_hook(_Hook(self, self.adapters[_key(name)])))
            self._frozen = [parameter for parameter in self._module[0].parameters() if parameter.requires_grad]
            for parameter in self._frozen:
                parameter.requires_grad_(False)
        return self

    def detach(self) -> LoRA:
        """Leave the network as it was before `attach`; the adapters stay as they are."""
        self.unmerge()
        for handle in self._handles:
            handle.remove()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._handles, self._frozen = [], []
        return self

    def __enter__(self) -> LoRA:
        return self.attach()

    def __exit__(self, *error: object) -> None:
        self.detach()

    @torch.no_grad()
    def merge(self) -> LoRA:
        """Add the adapters to the weights, so that they cost nothing; `unmerge` restores the weights bit for bit.

        Raises:
            InputError: the adapters are not attached, or two adapted layers share one weight.
        """
        if not self.attached:
            raise InputError("merge works on attached adapters; call attach() first")
        if len({id(layer.weight) for layer in self._layers.values()}) < len(self._layers):
            raise InputError("two of the adapted layers share one weight, so their adapters cannot both be merged")
        if not self.merged:
            for name, layer in self._layers.items():
                weight: Any = layer.weight
                self._originals[name] = weight.clone()
                weight.add_((self.factor * self._adapter(name).product()).to(weight.dtype))
        return self

    @torch.no_grad()
    def unmerge(self) -> LoRA:
        """Take the adapters out of the weights again."""
        for name, original in self._originals.items():
            weight: Any = self._layers[name].weight
            weight.copy_(original)
        self._originals = {}
        return self

    @property
    def factor(self) -> float:
        """What the product BA is multiplied by, `scale alpha / rank`."""
        return self._scale * self.alpha / self.rank

    def _adapter(self, name: str) -> _Adapter:
        adapter = self.adapters[_key(name)]
        assert isinstance(adapter, _Adapter)
        return adapter


class _Adapter(nn.Module):
    """The two factors of one layer's correction."""

    def __init__(self, name: str, layer: nn.Module, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        weight: Any = layer.weight
        options: dict[str, Any] = {"bias": False, "device": weight.device, "dtype": weight.dtype}
        self.groups = 1
        self.shape = weight.shape
        if isinstance(layer, nn.Conv2d):
            self.groups = layer.groups
            if rank % self.groups:
                raise InputError(f"rank of {name!r} must be a multiple of its {self.groups} groups, got {rank}")
            options["groups"] = self.groups
            self.down = nn.Conv2d(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                padding_mode=layer.padding_mode,
                **options,
            )
            self.up = nn.Conv2d(rank, layer.out_channels, 1, **options)
        else:
            assert isinstance(layer, nn.Linear)
            self.down = nn.Linear(layer.in_features, rank, **options)
            self.up = nn.Linear(rank, layer.out_features, **options)
        with torch.no_grad():
            shape, bound = self.down.weight.shape, 1.0 / math.sqrt(self.down.weight[0].numel())
            device = weight.device if generator is None else generator.device
            self.down.weight.copy_(bound * (2.0 * torch.rand(shape, generator=generator, device=device) - 1.0))
            self.up.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x.to(self.down.weight.dtype)))

    def product(self) -> Tensor:
        """BA in the shape of the layer's weight."""
        up = self.up.weight.reshape(self.groups, self.shape[0] // self.groups, -1)
        down = self.down.weight.reshape(self.groups, up.shape[2], -1)
        return (up @ down).reshape(self.shape)


class _Hook:
    """Adds an adapter's output to its layer's."""

    def __init__(self, lora: LoRA, adapter: nn.Module) -> None:
        self.lora = lora
        self.adapter = adapter

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.lora.merged or self.lora.scale == 0.0:
            return output
        return output + (self.lora.factor * self.adapter(args[0])).to(output.dtype)


def named_layers(module: nn.Module, targets: str | Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The `Linear` and `Conv2d` layers of a network with one of these names, or inside modules that have one.

    Args:
        module: the network.
        targets: dotted names or parts of them, as for `LoRA`; None means all layers.

    Raises:
        InputError: a name that no layer answers to, or a layer that its owner uses without calling it.
    """
    wanted = None if targets is None else (targets,) if isinstance(targets, str) else tuple(targets)
    every: dict[str, nn.Module] = {name: layer for name, layer in module.named_modules() if isinstance(layer, ADAPTED)}
    uncalled = {id(owner.out_proj) for owner in module.modules() if isinstance(owner, nn.MultiheadAttention)}
    if wanted is None:
        found = {name: layer for name, layer in every.items() if id(layer) not in uncalled}
    else:
        for target in wanted:
            if not any(_answers(name, target) for name in every):
                raise InputError(
                    f"no Linear or Conv2d layer is called {target!r} or lies inside one; there are {_some(every)}"
                )
        found = {name: layer for name, layer in every.items() if any(_answers(name, target) for target in wanted)}
        for name, layer in found.items():
            if id(layer) in uncalled:
                raise InputError(
                    f"{name!r} belongs to nn.MultiheadAttention, which uses its weight without calling it; "
                    "name other layers, or use attention that is made of Linear layers"
                )
    if not found:
        raise InputError("the network has no Linear or Conv2d layer that could be adapted")
    return found


def _answers(name: str, target: str) -> bool:
    return f".{target}." in f".{name}."


def _some(names: Iterable[str]) -> str:
    shown = [repr(name) for name in names]
    return (", ".join(shown[:6]) or "none") + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _key(name: str) -> str:
    """A layer's name as a ModuleDict can hold it."""
    return name.replace(".", "/") or "/"
