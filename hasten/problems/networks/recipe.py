"""How a small network is trained, where its weights are kept, and how it is had: `network("digits-diffusion")`.

A recipe is a module with a function that trains it in minutes on a small machine. Its weights are written once, as
safetensors, to the folder `networks` of the user's cache (`HASTEN_CACHE`, else the system's cache folder).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import torch
from filelock import FileLock
from torch import Tensor, nn

from hasten.core.errors import DataError, DivergedError, unknown
from hasten.core.registry import import_tree
from hasten.problems.cache import cache_folder

Report = Callable[[int, int, float], None]
Trainer = Callable[[nn.Module, Report], float]


@dataclass(frozen=True)
class Recipe:
    """A network with its training.

    Attributes:
        name: what it is called by `hasten train`.
        summary: one line about it.
        build: makes the network with fresh weights.
        train: trains it in place, reporting `(step, steps, loss)`, and returns the final loss.
        version: raised whenever the training changes, so that kept weights of an older one are not used.
    """

    name: str
    summary: str
    build: Callable[[], nn.Module]
    train: Trainer
    version: int = 1

    def fresh(self) -> nn.Module:
        """The network with its first weights, the same at every call; leaves torch's global generator alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build()


_recipes: dict[str, Recipe] = {}


def recipe(
    name: str, build: Callable[[], nn.Module], *, summary: str, version: int = 1
) -> Callable[[Trainer], Trainer]:
    """Decorator of a function that trains: enter it as recipe `name`."""

    def enter(trainer: Trainer) -> Trainer:
        _recipes[name] = Recipe(name, summary, build, trainer, version)
        return trainer

    return enter


def recipes() -> list[Recipe]:
    """All recipes, by name."""
    import_tree("hasten.problems.networks")
    return [_recipes[name] for name in sorted(_recipes)]


def _get(name: str) -> Recipe:
    known = {entry.name: entry for entry in recipes()}
    if name not in known:
        raise unknown("network", name, known, "`hasten list networks` shows all.")
    return known[name]


def cached_file(name: str) -> Path:
    """Where the weights of a network are kept; they change their place when the network or its training changes."""
    made = _get(name)
    shapes = [(key, tuple(value.shape)) for key, value in made.fresh().state_dict().items()]
    digest = hashlib.sha256(repr((made.version, shapes)).encode()).hexdigest()[:10]
    return cache_folder() / "networks" / f"{name}-{digest}.safetensors"


def train(name: str, report: Report = lambda step, steps, loss: None, *, force: bool = False) -> Path:
    """Train a network and keep its weights; does nothing if they are there, unless `force`.

    Several processes may ask at once: one trains, the others wait for its file.

    Raises:
        UnknownNameError: no network has this name.
        DivergedError: the training diverged; nothing is written.
        DataError: the cache cannot be written.
    """
    from safetensors.torch import save_file

    made, path = _get(name), cached_file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        with lock:
            if path.is_file() and not force:
                return path
            net, began = made.fresh(), perf_counter()
            loss = made.train(net, report)
            facts = {"network": name, "loss": f"{loss:.5g}", "seconds": f"{perf_counter() - began:.0f}"}
            part = path.with_suffix(".part")
            save_file({key: value.contiguous() for key, value in net.state_dict().items()}, part, metadata=facts)
            part.replace(path)
    except OSError as error:
        raise DataError(
            f"the weights of {name} cannot be kept in {path.parent} ({error}); set HASTEN_CACHE to a folder that can "
            "be written"
        ) from error
    return path


def network(name: str) -> nn.Module:
    """A trained network in evaluation mode, without gradients by its weights; trained now if it never was.

    Every call returns its own copy, so that one may be changed.

    Raises:
        UnknownNameError: no network has this name.
        DataError: the kept weights are damaged.
    """
    return deepcopy(_loaded(name, str(cached_file(name))))


@cache
def _loaded(name: str, file: str) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(file)
    if not path.is_file():
        print(
            f"hasten: training the network {name} once, a few minutes (`hasten train {name}` does it ahead of time); "
            f"its weights are kept in {path}",
            file=sys.stderr,
        )
        train(name)
    net = _get(name).fresh()
    try:
        net.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise DataError(
            f"the weights of {name} in {path} cannot be read ({error}); delete the file and retry"
        ) from None
    return net.eval().requires_grad_(False)


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    report: Report,
    *,
    steps: int,
    lr: float = 2e-3,
    weight_decay: float = 0.01,
    ema: float = 0.995,
    clip: float = 1.0,
    seed: int = 0,
) -> float:
    """Train in place with AdamW, a one-cycle learning rate and clipped gradients; ends at the average of the weights.

    Args:
        model: the network.
        loss: the loss of a fresh batch, drawn with the generator.
        report: told `(step, steps, loss)` after every step.
        steps: optimizer steps.
        lr: largest learning rate.
        weight_decay: decoupled weight decay.
        ema: share of the average that a step keeps.
        clip: largest norm of the gradient.
        seed: of the batches.

    Returns:
        Mean loss over the last tenth of the steps.

    Raises:
        DivergedError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    average = [value.detach().clone() for value in model.parameters()]
    losses: list[float] = []
    model.train()
    for step in range(steps):
        value = loss(model, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        # The average forgets the first weights: early on it keeps less.
        keep = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, weight in zip(average, model.parameters()):
                mean.lerp_(weight, 1.0 - keep)
        losses.append(value.item())
        if not torch.isfinite(value):
            raise DivergedError(f"training diverged at step {step + 1} of {steps}; nothing was kept")
        report(step + 1, steps, losses[-1])
    with torch.no_grad():
        for weight, mean in zip(model.parameters(), average):
            weight.copy_(mean)
    tail = losses[-max(1, steps // 10) :]
    return sum(tail) / len(tail)
