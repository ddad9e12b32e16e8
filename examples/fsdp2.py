"""FSDP2: parameters and optimizer state are spread over processes; a checkpoint resumes on another number of them.

torchrun --nproc-per-node 2 examples/fsdp2.py checkpoint --save
torchrun --nproc-per-node 1 examples/fsdp2.py checkpoint
"""

import argparse
import gc

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import hasten.optim


def main(folder: str, save: bool, name: str) -> None:
    """Train 50 steps and save, or load; then train 50 more."""
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    labels = (inputs[:, :3].sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(8, 33), nn.ReLU(), nn.Linear(33, 2))
    mesh = init_device_mesh("cpu", (world,))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = hasten.optim.make(name, model.parameters(), lr=3e-3)

    def train(first: int, last: int) -> None:
        # Each batch is spread over the processes, so that their number makes no difference.
        for step in range(first, last):
            rows = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(step))[:64][rank::world]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[rows]), labels[rows]).backward()
            optimizer.step()

    if save:
        train(0, 50)
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)
    else:
        weights, state = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    train(50, 100)

    checksum = sum(parameter.full_tensor().double().abs().sum().item() for parameter in model.parameters())
    accuracy = (model(inputs).argmax(1) == labels).float().mean().item()
    if rank == 0:
        print(f"accuracy {accuracy:.3f}, sum of absolute weights {checksum:.6f}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("folder")
    arguments.add_argument("--save", action="store_true")
    arguments.add_argument("--optimizer", default="adopt")
    options = arguments.parse_args()
    dist.init_process_group("gloo")
    main(options.folder, options.save, options.optimizer)
    # Whatever is spread over the processes must go before what connects them does.
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
