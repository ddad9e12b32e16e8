"""Plain PyTorch: one changed line, a schedule and a checkpoint."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import hasten.optim

torch.manual_seed(0)
inputs = torch.randn(512, 8)
labels = (inputs[:, :3].sum(1) > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

# No weight decay for biases and norms; names, so that errors say which parameter they are about.
groups = hasten.optim.no_decay(model, weight_decay=0.01)
optimizer = hasten.optim.ADOPT(groups, lr=1e-2, decouple=True)
scheduler = hasten.optim.LinearDecay(optimizer, total_steps=200)


def train(steps: int) -> float:
    """Train on random batches; returns the last loss."""
    for _ in range(steps):
        rows = torch.randint(len(inputs), (64,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return loss.item()


with tempfile.TemporaryDirectory() as folder:
    first = train(100)
    file = Path(folder) / "checkpoint.pt"
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    saved = torch.load(file, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    print(f"loss after 100 steps {first:.3f}, after 200 {train(100):.3f}")
accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.9
