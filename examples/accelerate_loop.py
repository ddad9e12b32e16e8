"""Accelerate: `prepare` takes the optimizer and its schedule as PyTorch's own; gradients are accumulated."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hasten.optim

torch.manual_seed(0)
inputs = torch.randn(512, 8)
labels = (inputs[:, :3].sum(1) > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = hasten.optim.Lion(model.parameters(), lr=3e-3)
data = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
schedule = hasten.optim.LinearDecay(optimizer, total_steps=20 * len(data) // 2)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, optimizer, data, schedule = accelerator.prepare(model, optimizer, data, schedule)
for _ in range(20):
    for batch, target in data:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(batch), target)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
print(f"accuracy {accuracy:.3f}")
assert accuracy > 0.9
