"""Compressors with exact byte counts."""

from hasten.distributed.compressors.base import Codec, Compressor, Identity, Payload, payload
from hasten.distributed.compressors.low_rank import Compose, LowRank
from hasten.distributed.compressors.quantise import QSGD, Sign, Ternary, TernarySum
from hasten.distributed.compressors.sparse import PermK, RandK, TopK

__all__ = [
    "QSGD",
    "Codec",
    "Compose",
    "Compressor",
    "Identity",
    "LowRank",
    "Payload",
    "PermK",
    "RandK",
    "Sign",
    "Ternary",
    "TernarySum",
    "TopK",
    "payload",
]
