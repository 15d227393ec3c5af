"""Products with counts of p-bits: a reference, and kernels for TPUs and GPUs that equal it."""

from fflax.kernels.binary_matmul.api import binary_matmul, sampled_matmul
from fflax.kernels.binary_matmul.packing import Packed, pack, planes_of, unpack
from fflax.kernels.binary_matmul.shapes import IMPLEMENTATIONS, Implementation

__all__ = [
  "IMPLEMENTATIONS",
  "Implementation",
  "Packed",
  "binary_matmul",
  "pack",
  "planes_of",
  "sampled_matmul",
  "unpack",
]
