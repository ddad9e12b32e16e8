"""Training over many workers or clients: compression, error feedback, federated averaging; bytes are counted."""

from hasten.core.kinds.federate import Federation, federation
from hasten.distributed.base import FederatedMethod, RoundState
from hasten.distributed.compressors import (
    QSGD,
    Compose,
    Compressor,
    Identity,
    LowRank,
    Payload,
    PermK,
    RandK,
    Sign,
    Ternary,
    TopK,
)
from hasten.distributed.dp_sgd import DataParallelSGD
from hasten.distributed.econtrol import EControl, econtrol_strength
from hasten.distributed.ef14 import EF14
from hasten.distributed.ef21 import EF21, ef21_stepsize
from hasten.distributed.engines import Client, DistEngine, Engine, SimEngine, Wire
from hasten.distributed.fedavg import FedAvg
from hasten.distributed.naive import NaiveCompression
from hasten.distributed.smoothness import smoothness
from hasten.distributed.terngrad import TernGrad

__all__ = [
    "EF14",
    "EF21",
    "QSGD",
    "Client",
    "Compose",
    "Compressor",
    "DataParallelSGD",
    "DistEngine",
    "EControl",
    "Engine",
    "FedAvg",
    "FederatedMethod",
    "Federation",
    "Identity",
    "LowRank",
    "NaiveCompression",
    "Payload",
    "PermK",
    "RandK",
    "RoundState",
    "Sign",
    "SimEngine",
    "TernGrad",
    "Ternary",
    "TopK",
    "Wire",
    "econtrol_strength",
    "ef21_stepsize",
    "federation",
    "smoothness",
]
