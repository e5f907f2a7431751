"""Float64 kernels for ONNX operators: `KERNELS` maps an operator's name to its kernel.

Written out: convolutions, pools, matrix products, norms, elementwise, recurrent, Fourier transforms. Taken from onnx's
reference implementation where that is exact: `delegate.DELEGATED`. An operator in neither is `Unsupported`, by name.
"""

from bnfold.verify.kernels import (
    delegate,
    elementwise,
    linear,
    moves,
    norms,
    pools,
    quantized,
    recurrent,
    sampling,
    signal,
)
from bnfold.verify.kernels.base import KERNELS, Call, Unsupported, real

__all__ = [
    "KERNELS", "Call", "Unsupported", "delegate", "elementwise", "linear", "moves", "norms", "pools",
    "quantized", "real", "recurrent", "sampling", "signal",
]  # fmt: skip
