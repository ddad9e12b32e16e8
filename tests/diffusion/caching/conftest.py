"""What the tests of the caches share: a small transformer with random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.problems.networks.dit import TinyDiT


@pytest.fixture
def dit() -> nn.Module:
    torch.manual_seed(0)
    made = TinyDiT(width=16, depth=3, heads=2)
    for parameter in made.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return made.eval()
