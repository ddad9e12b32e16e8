"""One thread per test process, since small tensors are slower with several; networks that were never trained.

Problems with trained networks find weights in a cache of the test session, drawn at random: training takes minutes.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import tempfile
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from safetensors.torch import save_file

from hasten.problems.networks import cached_file, recipes

torch.set_num_threads(1)
settings.register_profile("hasten", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("hasten")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.stash[CACHE] = tempfile.TemporaryDirectory(prefix="hasten-tests-")
        os.environ["HASTEN_CACHE"] = config.stash[CACHE].name


def pytest_unconfigure(config: pytest.Config) -> None:
    if CACHE in config.stash:
        config.stash[CACHE].cleanup()


CACHE = pytest.StashKey["tempfile.TemporaryDirectory[str]"]()


@pytest.fixture(scope="session", autouse=True)
def untrained_networks() -> None:
    folder = Path(os.environ["HASTEN_CACHE"]) / "networks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "fill.lock"):
        for entry in recipes():
            path = cached_file(entry.name)
            if not path.is_file():
                generator = torch.Generator().manual_seed(0)
                state = entry.fresh().state_dict()
                for value in state.values():
                    if value.is_floating_point():
                        value += 0.02 * torch.randn(value.shape, generator=generator)
                save_file({key: value.contiguous() for key, value in state.items()}, path)
