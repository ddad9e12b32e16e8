"""One thread per test process: tests run in parallel, and small tensors are slower with several threads."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("hasten", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("hasten")
