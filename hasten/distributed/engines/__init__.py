"""Where clients live: in this process, or on the ranks of a process group."""

from hasten.distributed.engines.base import Client, Engine, Wire
from hasten.distributed.engines.simulate import SimEngine
from hasten.distributed.engines.torch_dist import DistEngine

__all__ = ["Client", "DistEngine", "Engine", "SimEngine", "Wire"]
