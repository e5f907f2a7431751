"""What can't be judged is never a pass: operators without a float64 kernel, and comparisons that prove nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import runtime
from bnfold.arrays import Array
from bnfold.errors import ProviderError
from bnfold.verify import control, verify
from bnfold.verify.kernels import KERNELS
from bnfold.verify.levels import LEVELS
from bnfold.verify.reference import unsupported
from tests import nets
from tests.graphs import build, operators


def cpu_operators() -> list[tuple[str, str]]:
    """Every (domain, operator) that ONNX Runtime's CPU provider has a kernel for."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    found = binding.get_registered_ep_kernel_defs("CPUExecutionProvider")
    return sorted({(kernel.domain, kernel.op_name) for kernel in found})


def test_every_operator_of_the_cpu_provider_is_covered_or_named() -> None:
    operators = cpu_operators()
    assert len(operators) > 200 and ("", "Conv") in operators
    covered = 0
    for domain, op in operators:
        node = ir.node(op, [], domain=domain)
        graph = ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 21})
        missing = unsupported(ir.Model(graph, ir_version=10))
        known = domain == "" and (op in KERNELS or op in control.CONTROL)
        assert missing == ([] if known else [f"{domain}.{op}" if domain else op]), op
        covered += known
    assert covered > 150


def test_a_dynamically_quantized_model_is_folded_and_verified() -> None:
    """The weight's scale takes the BatchNorm: behind the integer product it is what remains in floating point."""
    made = build(
        "(T[N,6] x) => (T[n,c] y) { q, s, z = DynamicQuantizeLinear(x)  p = MatMulInteger(q, w, z)"
        "  a = Cast <to = 1> (p)  t = Mul(s, u[4])  b = Mul(a, t)  y = BN(b, A.4) }",
        constants={"w": np.random.default_rng(0).integers(-127, 128, (6, 4), np.int8)},
    )
    done = bnfold.optimize(made)
    assert done.report.folded == 1 and "BatchNormalization" not in operators(ir.to_proto(done.model))
    assert done.verdict is not None and done.verdict.status == "pass", done.verdict
    wrong = ir.to_proto(done.model)
    tensor = next(t for t in wrong.graph.initializer if t.data_type == TensorProto.FLOAT)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    assert verify(made, wrong).status == "mismatch"


def single(op: str, inputs: list[Array], domain: str = "", **attributes: Any) -> onnx.ModelProto:
    given = [
        helper.make_tensor_value_info(f"x{n}", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in enumerate(inputs)
    ]
    node = helper.make_node(op, [v.name for v in given], ["y"], domain=domain, **attributes)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, inputs[0].shape)
    graph = helper.make_graph([node], "g", given, [output])
    imports = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize(("domain", "op"), [("com.microsoft", "QuickGelu"), ("", "RandomNormalLike")])
def test_an_operator_without_a_kernel_makes_it_inconclusive_by_name(domain: str, op: str) -> None:
    made = single(op, [np.zeros((2, 3), np.float32)], domain)
    verdict = verify(made, made)
    assert verdict.exit_code == 3 and op in str(verdict) and not verdict.cells


def constant_output() -> onnx.ModelProto:
    made = nets.plain(0)
    for tensor in made.graph.initializer:
        if list(tensor.dims) == [10, 8]:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros((10, 8), np.float32), tensor.name))
    return made


def weights(value: float, only: int | None = None) -> onnx.ModelProto:
    """A net all of whose weights, or one of them, hold one value."""
    made = nets.plain(0)
    for number, tensor in enumerate(made.graph.initializer):
        if only in (None, number):
            tensor.CopyFrom(numpy_helper.from_array(np.full(list(tensor.dims), value, np.float32), tensor.name))
    return made


POWERLESS = {
    "all NaN": lambda: weights(float("nan")),
    "NaN in one weight": lambda: weights(float("nan"), 0),
    "infinity in one weight": lambda: weights(float("inf"), 0),
    "all zero": lambda: weights(0.0),
    "constant": constant_output,
}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("case", POWERLESS)
def test_what_shows_no_fault_is_no_pass(case: str, quick: bool) -> None:
    made = POWERLESS[case]()
    assert verify(made, made, quick=quick).exit_code == 3
    folded = nets.fold(made)
    assert verify(made, folded, quick=quick).exit_code in (1, 3)


@pytest.mark.parametrize("arguments", [{"quick": True}, {"keep_going": True}, {"levels": ("off",)}])
def test_no_option_makes_a_fault_or_a_doubt_pass(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    original = nets.plain(0)
    assert verify(original, nets.fold(original, fault="two biases swapped"), **arguments).exit_code == 1
    assert verify(original, original, expect_folds=1, **arguments).exit_code == 3
    honest = runtime.session
    monkeypatch.setattr(runtime, "session", lambda *a, **k: honest(*a, **{**k, "optimize": "all"}))
    assert verify(original, nets.fold(original), **arguments).exit_code == 3


def test_a_provider_that_is_missing_is_refused_before_anything_passes() -> None:
    provider = next(p for p in ("cuda", "rocm", "dml") if runtime.usable(p) is not None)
    for arguments in ({}, {"quick": True}, {"strict": True}):
        with pytest.raises(ProviderError) as caught:
            verify(nets.plain(0), nets.plain(0), providers=(provider,), **arguments)
        assert provider in str(caught.value) and caught.value.exit_code == 4


# --- Levels, quick looks, PyTorch.


def test_a_model_is_compared_with_itself_at_every_level() -> None:
    made = nets.plain(0)
    verdict = verify(made, made, levels=("off", "basic", "extended", "deployed"))
    assert verdict.status == "pass" and [cell.level for cell in verdict.cells] == list(LEVELS)[:4]
    assert verdict.settings["placement"].keys() == {"cpu, reference", *(f"cpu, {cell.level}" for cell in verdict.cells)}


def test_tf32_is_held_to_its_own_precision() -> None:
    """A cell as deployed with TF32 takes u = 2⁻¹¹: weights rounded to it pass there and nowhere else."""
    original = nets.plain(0)
    rounded = nets.fold(original, fault="weights in TF32")
    verdict = verify(original, rounded, levels=("off", "tf32"), keep_going=True)
    assert {cell.level: cell.status for cell in verdict.cells} == {"off": "mismatch", "tf32": "pass"}


def test_a_quick_look_says_what_it_took() -> None:
    original = nets.plain(0)
    verdict = verify(original, nets.fold(original), quick=True)
    assert verdict.status == "pass" and verdict.settings["samples"] == 4 and verdict.settings["quick"]
    assert verdict.coverage["fault_share_95"] > verify(original, original).coverage["fault_share_95"]


def test_a_pytorch_module_is_a_reference() -> None:
    torch = pytest.importorskip("torch")
    import bnfold

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    ).eval()
    module[1].running_mean.uniform_(-1, 1)
    exported = bnfold.export(module, inputs=[torch.zeros(2, 3, 8, 8)], exporter="torchscript")
    state = {name: value.clone() for name, value in module.state_dict().items()}
    assert verify(module, exported).status == "pass"
    assert verify(module, bnfold.optimize(exported, verify=False).model).status == "pass"
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    with torch.no_grad():
        module[1].bias += 0.01
    verdict = verify(module, exported)
    assert verdict.exit_code == 1 and "output" in str(verdict)


# --- With a device only.

needs_cuda = pytest.mark.skipif(
    "cuda" not in runtime.available_providers() or runtime.usable("cuda") is not None, reason="no CUDA device here"
)


@needs_cuda
@pytest.mark.parametrize("net", nets.NETS)
def test_on_cuda_correct_folds_pass_and_faults_do_not(net: str) -> None:
    original = nets.NETS[net](0, 1.0)
    verdict = verify(original, nets.fold(original), providers=("cuda",))
    assert verdict.status == "pass" and {cell.level for cell in verdict.cells} == {"off", "deployed", "tf32"}
    for fault in nets.FAULTS:
        assert verify(original, nets.fold(original, fault=fault, where=1), providers=("cuda",)).exit_code == 1


def test_the_runtime_is_the_one_that_is_compared_with() -> None:
    original = nets.plain(0)
    assert verify(original, original, quick=True).settings["onnxruntime"] == onnxruntime.__version__
