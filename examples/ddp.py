"""Data parallel in several processes: the optimizer is made as always, over the parameters of the wrapped network.

torchrun --nproc-per-node 2 examples/ddp.py
"""

import gc

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hasten.optim


def main() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    labels = (inputs[:, :3].sum(1) > 0).long()
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)))
    optimizer = hasten.optim.CAME(model.parameters(), lr=3e-3)

    own = torch.arange(rank, len(inputs), world)
    for step in range(200):
        rows = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(step))[:32]]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()

    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    all_weights = [torch.empty_like(weights) for _ in range(world)]
    dist.all_gather(all_weights, weights)
    assert all(torch.equal(weights, other) for other in all_weights), "the processes have drifted apart"
    accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
    if rank == 0:
        print(f"accuracy {accuracy:.3f}")
    assert accuracy > 0.9


if __name__ == "__main__":
    dist.init_process_group("gloo")
    main()
    # Whatever is spread over the processes must go before what connects them does.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
