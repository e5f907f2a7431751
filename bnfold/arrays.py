"""The two kinds of arrays: of whatever type a model stores, and in float64, in which everything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]
