"""Execution providers by name, and what a gating session asks of each so that two runs of one model agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TF32_UNIT = 2.0**-11


@dataclass(frozen=True)
class Provider:
    """`name` for the command line and `full`, ONNX Runtime's; `gate` holds its options where results are compared.

    `tf32` says that it multiplies float32 in TF32 unless told otherwise, `tellable` that its options can tell it.
    """

    name: str
    full: str
    gate: Mapping[str, str] = field(default_factory=dict)
    tf32: bool = False
    tellable: bool = True

    @property
    def on_cpu(self) -> bool:
        return self.name == "cpu"

    @property
    def unit(self) -> float:
        """The unit roundoff of its arithmetic that remains in a gating session; 0.0 where that is the type's own."""
        return TF32_UNIT if self.tf32 and not self.tellable else 0.0


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("cpu", "CPUExecutionProvider"),
        # TF32 would hide faults below 2⁻¹¹, and an exhaustive algorithm search makes two runs of one model differ.
        Provider(
            "cuda", "CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}, tf32=True
        ),
        # Its options hold float16, bfloat16 and int8, which are off by default, but not TF32.
        Provider("tensorrt", "TensorrtExecutionProvider", tf32=True, tellable=False),
        Provider("rocm", "ROCMExecutionProvider"),
        Provider("migraphx", "MIGraphXExecutionProvider"),
        Provider("openvino", "OpenVINOExecutionProvider"),
        Provider("dml", "DmlExecutionProvider"),
        Provider("coreml", "CoreMLExecutionProvider"),
        Provider("qnn", "QNNExecutionProvider"),
        Provider("xnnpack", "XnnpackExecutionProvider"),
    )
}
_BY_ANY_NAME = {name.lower(): provider for provider in PROVIDERS.values() for name in (provider.name, provider.full)}

# What a gating session asks for, as reports state it.
DETERMINISM: dict[str, Any] = {
    "deterministic_compute": True, "spinning": False,
    **{provider.name: dict(provider.gate) for provider in PROVIDERS.values() if provider.gate},
}  # fmt: skip


def named(name: str) -> Provider:
    """Return the provider of a name, short or ONNX Runtime's, in any case; an unknown one is called what it was."""
    return _BY_ANY_NAME.get(name.lower()) or Provider(name, name)


def short(name: str) -> str:
    """Return the short name of a provider, or the name itself where it has none."""
    return named(name).name
