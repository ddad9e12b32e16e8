"""Several things on one optimizer: a gradient filter, a weight average and mixed precision with a loss scaler."""

import torch
from torch import nn

from hasten.optim import GrokfastEMA, LatestWeightAverage, compose

torch.manual_seed(0)
inputs = torch.randn(512, 8)
labels = (inputs[:, :3].sum(1) > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

average = LatestWeightAverage(model, k=5, every=10)
optimizer = compose(torch.optim.AdamW(model.parameters(), lr=3e-3), GrokfastEMA(lamb=1.0), average)
scaler = torch.amp.GradScaler("cpu")

for _ in range(200):
    rows = torch.randint(len(inputs), (64,))
    optimizer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(inputs[rows]), labels[rows])
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()

accuracy = (average.averaged_model(inputs).argmax(1) == labels).float().mean().item()
print(f"accuracy of the averaged network {accuracy:.3f}")
assert accuracy > 0.9
