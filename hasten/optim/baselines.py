"""PyTorch's own optimizers as baselines: registered as they are, nothing is wrapped."""

from __future__ import annotations

from typing import Any

import torch

from hasten.core.card import Card, Choice, LogReal, Range
from hasten.optim.adapter import KINDS, optimizer


def _card(name: str, title: str, authors: str, year: int, arxiv: str, cost: str, when: str, **search: Range) -> Card:
    cls = {"adam": "Adam", "adamw": "AdamW", "nadam": "NAdam", "rmsprop": "RMSprop", "sgd": "SGD"}[name]
    space: dict[str, Range] = {"lr": LogReal(1e-4, 1e-1), **search}
    return Card(
        name=name,
        family="optim",
        title=title,
        authors=authors,
        year=year,
        arxiv=arxiv,
        summary=f"PyTorch's own {cls}, a baseline.",
        cost=cost,
        when=when,
        kinds=KINDS,
        search_space=space,
        use=f"optimizer = torch.optim.{cls}(model.parameters(){{hyper}})",
    )


BASELINES: dict[type[Any], Card] = {
    torch.optim.Adam: _card(
        "adam",
        "Adam: A Method for Stochastic Optimization",
        "Kingma, Ba",
        2014,
        "1412.6980",
        "two tensors of state per parameter",
        "as the yardstick without weight decay",
    ),
    torch.optim.AdamW: _card(
        "adamw",
        "Decoupled Weight Decay Regularization",
        "Loshchilov, Hutter",
        2017,
        "1711.05101",
        "two tensors of state per parameter",
        "as the yardstick: with its learning rate tuned it is hard to beat",
    ),
    torch.optim.NAdam: _card(
        "nadam",
        "Incorporating Nesterov Momentum into Adam",
        "Dozat",
        2016,
        "",
        "two tensors of state per parameter",
        "where Adam does well and a look ahead might help",
    ),
    torch.optim.RMSprop: _card(
        "rmsprop",
        "Lecture 6.5: divide the gradient by a running average of its recent magnitude",
        "Tieleman, Hinton",
        2012,
        "",
        "one tensor of state per parameter",
        "on non-stationary problems where momentum hurts",
    ),
    torch.optim.SGD: _card(
        "sgd",
        "Some methods of speeding up the convergence of iteration methods",
        "Polyak",
        1964,
        "",
        "one tensor of state per parameter with momentum, none without",
        "on well-scaled problems, with time to tune",
        lr=LogReal(1e-3, 1.0),
        momentum=Choice(0.9, 0.0),
    ),
}

for _cls, _found in BASELINES.items():
    optimizer(_found)(_cls)
