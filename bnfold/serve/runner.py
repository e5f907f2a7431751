"""A session that is run again and again, by any thread."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.serve.errors import INTERNAL, Refused, overloaded

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


BF16 = np.dtype(ml_dtypes.bfloat16)
# What in a failed run's message says that it is not the request's fault.
_OURS = ("alloc", "cuda", "cudnn", "cublas", "out of memory", "device")


class Runner:
    """Calls an ONNX Runtime session: outputs by name. What it can't run is `Refused`.

    On a device the inputs and outputs are bound, so that each is copied once. numpy has no bfloat16: such tensors
    are bound on the CPU too.
    """

    def __init__(self, session: InferenceSession, *, bind: bool) -> None:
        self._session = session
        self._options = runtime.run_options()
        self._outputs = [output.name for output in session.get_outputs()]
        types = {port.type for port in (*session.get_inputs(), *session.get_outputs())}
        bind = bind and "tensor(string)" not in types  # text has no place on a device, and can't be bound
        self._run = self._bound if bind or "tensor(bfloat16)" in types else self._plain

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises `Refused`: 400 if the model does not run on these inputs, 500 if the machine failed."""
        try:
            return self._run(feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            if self._options.terminate:
                raise overloaded("the server is going down", "draining") from None
            text = " ".join(str(error).split())[-240:]
            if any(sign in text.lower() for sign in _OURS):
                raise Refused(f"the model failed: {text}", INTERNAL, "failed") from error
            raise Refused(f"the model does not run on these inputs: {text}") from error

    def stop(self) -> None:
        """End the runs that are under way, and let none begin: the process is about to end."""
        self._options.terminate = True

    def _plain(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds, self._options), strict=True))

    def _bound(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if array.dtype == BF16:
                place = np.ascontiguousarray(array)
                pointer = place.ctypes.data
                binding.bind_input(name, "cpu", 0, onnx.TensorProto.BFLOAT16, list(place.shape), pointer)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding, self._options)
        return {name: _numpy(value) for name, value in zip(self._outputs, binding.get_outputs(), strict=True)}


def _numpy(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = value.shape()
    size = int(np.prod(shape)) * BF16.itemsize
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), BF16).reshape(shape)
