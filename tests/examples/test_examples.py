"""Every example runs as its reader would run it; each checks its own result."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SEVERAL = {"ddp", "fsdp2"}
DRAWN = {"trajectories"}
ALONE = sorted(file.stem for file in EXAMPLES.glob("*.py") if file.stem not in SEVERAL | DRAWN)

pytestmark = pytest.mark.alone


def run(name: str, *arguments: str, ranks: int = 0) -> str:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    command = [sys.executable, *launch, str(EXAMPLES / f"{name}.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_there_are_examples_for_each_way_to_train() -> None:
    assert {"plain_pytorch", "composed", "lightning_module", "huggingface_trainer", "accelerate_loop"} <= set(ALONE)


@pytest.mark.parametrize("name", ALONE)
def test_example_runs(name: str) -> None:
    assert "accuracy" in run(name)


def test_an_animation_is_written(tmp_path: Path) -> None:
    page = tmp_path / "paths.html"
    assert "largest distance" in run("trajectories", str(page))
    text = page.read_text(encoding="utf-8")
    assert "dpm-solver-3" in text
    assert "Plotly.addFrames" in text


def test_data_parallel_keeps_the_processes_equal() -> None:
    assert "accuracy" in run("ddp", ranks=2)


@pytest.mark.parametrize("optimizer", ["adopt", "came"])
def test_sharded_training_resumes_on_another_number_of_processes(optimizer: str, tmp_path: Path) -> None:
    """An elementwise rule works on the parts, a rule that sees matrices on what it gathers."""
    folder = str(tmp_path / "checkpoint")
    whole = run("fsdp2", folder, "--save", "--optimizer", optimizer, ranks=2)
    resumed = run("fsdp2", folder, "--optimizer", optimizer, ranks=1)
    sums = [float(re.findall(r"weights ([\d.]+)", text)[0]) for text in (whole, resumed)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6)
