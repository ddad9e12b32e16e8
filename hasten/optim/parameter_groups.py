"""Parameter groups that people make again and again: no decay for vectors, rates by layer, hidden matrices apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from hasten.core import check
from hasten.core.errors import InputError

NORMS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)


def no_decay(
    model: nn.Module,
    weight_decay: float,
    *,
    skip: Callable[[str, nn.Parameter], bool] | None = None,
    embeddings: bool = False,
) -> list[dict[str, Any]]:
    """Two groups of named parameters: with weight decay, and without it for biases, norms and vectors.

        optimizer = hasten.optim.ADOPT(hasten.optim.no_decay(model, 0.1), lr=1e-3, decouple=True)

    Args:
        model: the network; parameters that do not require gradients are left out, tied ones come once.
        weight_decay: of the first group, at least 0.
        skip: `(name, parameter)` -> True for further parameters that are not to decay.
        embeddings: whether embeddings, too, are not to decay.

    Returns:
        Groups with `params` as (name, parameter) pairs, so that errors and checkpoints name the parameters.

    Raises:
        InputError: nothing in the network is trained.
    """
    check.nonnegative("weight_decay", weight_decay)
    trained = _trained(model)
    exempt = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(False)}
    if embeddings:
        kinds = (nn.Embedding, nn.EmbeddingBag)
        exempt |= {id(p) for module in model.modules() if isinstance(module, kinds) for p in module.parameters(False)}
    with_decay, without = [], []
    for name, param in trained:
        free = param.ndim < 2 or id(param) in exempt or (skip is not None and skip(name, param))
        (without if free else with_decay).append((name, param))
    groups = [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def layerwise(
    model: nn.Module, lr: float, decay: float, *, layers: Iterable[nn.Module] | None = None
) -> list[dict[str, Any]]:
    """One group per layer, with a learning rate that falls from the output to the input: `lr * decay**depth`.

    For fine-tuning, where early layers should change less than late ones.

    Args:
        model: the network.
        lr: rate of the last layer.
        decay: factor from a layer to the one before it, in (0, 1].
        layers: the layers from input to output; the direct children of the network if not given. Parameters outside
            of all layers get the rate of the last one.

    Returns:
        Groups with `params` as (name, parameter) pairs and their `lr`.

    Raises:
        InputError: nothing in the network is trained, or a layer holds no part of it.
    """
    check.nonnegative("lr", lr)
    if not 0 < decay <= 1:
        raise InputError(f"decay must be in (0, 1], got {decay}; 0.65 to 0.95 are usual")
    trained = _trained(model)
    ordered = list(model.children() if layers is None else layers)
    depth_of: dict[int, int] = {}
    for place, layer in enumerate(ordered):
        for param in layer.parameters():
            depth_of.setdefault(id(param), len(ordered) - 1 - place)
    groups: dict[int, list[tuple[str, nn.Parameter]]] = {}
    found = set()
    for name, param in trained:
        found.add(id(param))
        groups.setdefault(depth_of.get(id(param), 0), []).append((name, param))
    if layers is not None and not set(depth_of) & found:
        raise InputError("layers has no trained parameter of this model; give submodules of it, from input to output")
    return [{"params": params, "lr": lr * decay**depth} for depth, params in sorted(groups.items())]


def hidden_matrices(model: nn.Module, *, output: nn.Module | None = None, **rest: Any) -> list[dict[str, Any]]:
    """Two groups of named parameters: hidden matrices, and all others: embeddings, the output layer, vectors, kernels.

    For methods that are meant for the first, and are told by options to leave the second as it is:

        optimizer = hasten.optim.Frugal(hasten.optim.hidden_matrices(model, density=None))

    Args:
        model: the network; parameters that do not require gradients are left out, tied ones come once.
        output: its output layer; the last `nn.Linear` in the order of its modules if not given.
        rest: options of the second group.

    Returns:
        Groups with `params` as (name, parameter) pairs; one without parameters is left out.

    Raises:
        InputError: nothing in the network is trained, or `output` is not a part of it.
    """
    trained = _trained(model)
    modules = list(model.modules())
    if output is not None and not any(output is module for module in modules):
        raise InputError(f"output must be a module of the model, got a {type(output).__name__} that is not in it")
    last = output or next((module for module in reversed(modules) if isinstance(module, nn.Linear)), None)
    apart = [module for module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    apart += [] if last is None else [last]
    exempt = {id(param) for module in apart for param in module.parameters()}
    hidden, others = [], []
    for name, param in trained:
        (others if param.ndim != 2 or id(param) in exempt else hidden).append((name, param))
    return [group for group in ({"params": hidden}, {"params": others, **rest}) if group["params"]]


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if not named:
        raise InputError("model has no parameter that requires gradients")
    return named
