"""The float64 kernels against ONNX Runtime, torch and closed forms; the evaluator's order, memory and noise."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser

from bnfold.arrays import Array
from bnfold.verify import control
from bnfold.verify.kernels import KERNELS, Call, Unsupported
from bnfold.verify.reference import Evaluator, Noise, fixed_values, unsupported
from tests.kernel_cases import CASES, UNCOMPARED, X, f, pos

TORCH = importlib.util.find_spec("torch") is not None


def single(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> onnx.ModelProto:
    """A model of one node whose inputs are graph inputs."""
    names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{n}" for n in range(outputs)], **attrs)
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.asarray(x).shape)
        for n, x in zip(names, inputs, strict=True)
        if x is not None
    ]
    results = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "g", given, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def runtime_outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_kernel_agrees_with_onnx_runtime(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> None:
    model = single(op, inputs, attrs, opset, outputs)
    feeds = {f"x{n}": np.asarray(x) for n, x in enumerate(inputs) if x is not None}
    expected = runtime_outputs(model, feeds)
    found = Evaluator(ir.from_proto(model)).run(feeds)
    for want, have in zip(expected, found.values(), strict=True):
        assert have.shape == want.shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(have, want)
            continue
        assert have.dtype == np.float64
        scale = np.max(np.abs(want), initial=0.0, where=np.isfinite(want))
        # float32 rounding of sums of some fifty terms; anything wrong is of the order of the values themselves
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=5e-6 * scale)


def test_every_kernel_was_compared() -> None:
    assert set(KERNELS) - {case[0] for case in CASES} == UNCOMPARED


def test_what_has_no_kernel_is_written_down() -> None:
    page = (Path(__file__).parent.parent / "docs" / "verification.md").read_text(encoding="utf-8")
    operators = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    missing = operators - {*KERNELS, *control.CONTROL}
    assert missing and all(re.search(rf"\b{name}\b", page) for name in missing), missing


# ONNX Runtime's CPU provider has double kernels for these.
DOUBLE = ("Gemm", "MatMul", "Softmax", "BatchNormalization", "ReduceMean", "Exp", "Tanh", "LayerNormalization", "Add")


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"), [case for case in CASES if case[0] in DOUBLE]
)
def test_kernel_is_double_where_the_runtime_has_doubles(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> None:
    wide = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    feeds = {f"x{n}": x for n, x in enumerate(wide) if x is not None}
    model = single(op, wide, attrs, opset, outputs)
    found = Evaluator(ir.from_proto(model)).run(feeds)
    for want, have in zip(runtime_outputs(model, feeds), found.values(), strict=True):
        if want.dtype == np.float64:  # LayerNormalization gives its mean in float32
            np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-13)


# Their outputs are rounded or chosen by intent, or do not depend on the floats' low bits.
STEPS = {"Ceil", "Floor", "Round", "Sign", "Hardmax", "Shape", "Size", "EyeLike", "QuantizeLinear", "CastLike",
    "MelWeightMatrix",
}


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"), [case for case in CASES if case[0] not in STEPS]
)
def test_no_kernel_takes_a_float32_step(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> None:
    """Inputs moved by 2⁻⁴⁰, far below float32's resolution, must show in the output, but only as they should."""
    wide = {f"x{n}": np.asarray(x) for n, x in enumerate(inputs) if x is not None}
    near = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in wide.items()}
    scales = near.keys() - {"x0"} if op in ("Resize", "Upsample") else set()
    moved = {n: x * (1 + 2.0**-40) if x.dtype == np.float64 and n not in scales else x for n, x in near.items()}
    e = Evaluator(ir.from_proto(single(op, inputs, attrs, opset, outputs)))
    for have, want in zip(e.run(moved).values(), e.run(near).values(), strict=True):
        if have.dtype == np.float64 and any(x.dtype == np.float64 for x in near.values()):
            finite = np.isfinite(want)
            change = np.abs(have[finite] - want[finite])
            assert change.max() < 1e-8 * max(np.abs(want[finite]).max(), 1.0)
            if op not in ("Softmax", "LogSoftmax", "LpNormalization", "IsInf"):  # invariant, or nearly so
                assert change.max() > 0


def test_erf_and_what_is_made_of_it_are_double() -> None:
    """onnx's Erf computes in float32; so do the bodies of its function operators."""
    x = np.linspace(-3, 3, 41)
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(KERNELS["Erf"](Call("Erf"), [x])[0], exact, rtol=1e-15)
    gelu = 0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    np.testing.assert_allclose(KERNELS["Gelu"](Call("Gelu"), [x])[0], gelu, rtol=1e-15)
    swish = x / (1 + np.exp(-0.7 * x))
    np.testing.assert_allclose(KERNELS["Swish"](Call("Swish", {"alpha": 0.7}), [x])[0], swish, rtol=1e-14)


def test_sequences_agree_with_onnx_runtime() -> None:
    text = f"""{HEAD} g (float[6,2] x) => (float[p,2] y, int64 n, float[2,2] z, int64 m, bool there) {{
        one = Constant <value = int64 {{1}}> ()
        two = Constant <value = int64 {{2}}> ()
        s = SplitToSequence <axis=0> (x, two)
        a = SequenceAt (s, one)
        t = SequenceInsert (s, a)
        u = SequenceErase (t, one)
        v = SequenceConstruct (a, a)
        y = ConcatFromSequence <axis=0> (u)
        n = SequenceLength (v)
        none = SequenceEmpty ()
        m = SequenceLength (none)
        o = Optional (a)
        there = OptionalHasElement (o)
        z = OptionalGetElement (o)
    }}"""
    expected = runtime_outputs(parser.parse_model(text), {"x": f(6, 2)})
    for want, have in zip(expected, evaluator(text).run({"x": f(6, 2)}).values(), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_samples_agree_with_torch_in_double(padding: str, rank: int) -> None:
    """Far outside of the image too, where onnx's reference clips cubic samples at the border."""
    import torch

    rng = np.random.default_rng(rank)
    x = rng.standard_normal((2, 3, 5, 6, 4)[: rank + 2])
    grid = rng.uniform(-3.5, 3.5, (2, *(4, 5, 3)[:rank], rank))
    for mode, theirs in (("linear", "bilinear"), ("nearest", "nearest"), ("cubic", "bicubic")):
        for aligned in (0, 1) if rank == 2 or mode != "cubic" else ():  # torch's cubic is two-dimensional
            call = Call("GridSample", {"mode": mode, "padding_mode": padding, "align_corners": aligned})
            exact = torch.nn.functional.grid_sample(
                torch.tensor(x), torch.tensor(grid), theirs, padding, bool(aligned)
            ).numpy()
            np.testing.assert_allclose(KERNELS["GridSample"](call, [x, grid])[0], exact, atol=1e-12)


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
@pytest.mark.parametrize("seed", range(30))
def test_convolutions_and_pools_agree_with_torch_in_double(seed: int) -> None:
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(seed)
    rank, group = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
    size = [int(n) for n in rng.integers(6, 10, rank)]
    kernel, stride, dilation = ([int(n) for n in rng.integers(1, top, rank)] for top in (4, 3, 3))
    pad = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
    inside, outside = group * int(rng.integers(1, 3)), group * int(rng.integers(1, 3))
    x = rng.standard_normal((2, inside, *size))
    attrs = {"strides": stride, "dilations": dilation, "pads": pad * 2, "group": group}
    w = rng.standard_normal((outside, inside // group, *kernel))
    exact = getattr(F, f"conv{rank}d")(torch.tensor(x), torch.tensor(w), None, stride, pad, dilation, group).numpy()
    np.testing.assert_allclose(KERNELS["Conv"](Call("Conv", attrs), [x, w])[0], exact, atol=1e-12)
    w = rng.standard_normal((inside, outside // group, *kernel))
    extra = [int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True)]
    extra = [min(e, max(s, d) - 1) for e, s, d in zip(extra, stride, dilation, strict=True)]
    exact = getattr(F, f"conv_transpose{rank}d")(
        torch.tensor(x), torch.tensor(w), None, stride, pad, extra, group, dilation
    ).numpy()
    found = KERNELS["ConvTranspose"](Call("ConvTranspose", {**attrs, "output_padding": extra}), [x, w])[0]
    np.testing.assert_allclose(found, exact, atol=1e-12)
    pooled = getattr(F, f"max_pool{rank}d")(torch.tensor(x), kernel, stride, pad, dilation).numpy()
    found = KERNELS["MaxPool"](Call("MaxPool", {**attrs, "kernel_shape": kernel}), [x])[0]
    np.testing.assert_array_equal(found, pooled)
    pooled = getattr(F, f"avg_pool{rank}d")(torch.tensor(x), kernel, stride, pad, count_include_pad=False).numpy()
    call = Call("AveragePool", {"kernel_shape": kernel, "strides": stride, "pads": pad * 2})
    np.testing.assert_allclose(KERNELS["AveragePool"](call, [x])[0], pooled, atol=1e-12)


def evaluator(text: str, constants: dict[str, Array] | None = None, **kwargs: Any) -> Evaluator:
    model = parser.parse_model(text)
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return Evaluator(ir.from_proto(model), **kwargs)


HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_epsilon_is_the_stored_float32_value() -> None:
    text = f"{HEAD} g (float[1,1] x) => (float[1,1] y) {{ y = BatchNormalization <epsilon=0.1> (x, s, b, m, v) }}"
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    e = evaluator(text, {"s": one, "b": zero, "m": zero, "v": zero})
    assert e.run({"x": np.ones((1, 1), np.float32)})["y"].item() == 1 / np.sqrt(np.float64(np.float32(0.1)))


def test_if_takes_the_branch_and_sees_outer_values() -> None:
    e = evaluator(
        f"""{HEAD} g (float[2] x, bool c) => (float[2] y) {{
        z = Neg (x)
        y = If (c) <then_branch = t () => (float[2] a) {{ a = Add (x, z) }},
                    else_branch = f () => (float[2] b) {{ b = Mul (z, w) }}>
        }}""",
        {"w": np.array([2, 3], np.float32)},
    )
    x = np.array([1, 2], np.float32)
    assert e.run({"x": x, "c": np.array(True)})["y"].tolist() == [0, 0]
    assert e.run({"x": x, "c": np.array(False)})["y"].tolist() == [-2, -6]


def test_loop_carries_stacks_and_stops() -> None:
    e = evaluator(
        f"""{HEAD} g (float[2] x, int64 n) => (float[2] last, float[k,2] all) {{
        t = Constant <value = bool {{1}}> ()
        last, all = Loop (n, t, x) <body = b (int64 step, bool go, float[2] s) => (bool on, float[2] r, float[2] o) {{
            on = Identity (go)
            r = Mul (s, w)
            o = Identity (r) }}>
        }}""",
        {"w": np.array([2, 3], np.float32)},
    )
    found = e.run({"x": np.ones(2, np.float32), "n": np.array(3)})
    assert found["last"].tolist() == [8, 27]
    assert found["all"].tolist() == [[2, 3], [4, 9], [8, 27]]


def test_scan_agrees_with_onnx_runtime() -> None:
    text = f"""{HEAD} g (float[2] s, float[4,2] x) => (float[2] last, float[4,2] all) {{
        last, all = Scan <num_scan_inputs=1, scan_input_directions=[1], body = b (float[2] i, float[2] e)
            => (float[2] o, float[2] z) {{ o = Add (i, e)  z = Mul (o, e) }}> (s, x)
        }}"""
    feeds = {"s": f(2), "x": f(4, 2)}
    expected = runtime_outputs(parser.parse_model(text), feeds)
    for want, have in zip(expected, evaluator(text).run(feeds).values(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5)


def test_local_functions_are_evaluated() -> None:
    e = evaluator(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[2] x) => (float[2] y) { y = own.twice (x) }
        <opset_import: ["": 17], domain: "own"> twice (a) => (b) { b = Add (a, a) }"""
    )
    assert e.run({"x": np.array([1, 2], np.float32)})["y"].tolist() == [2, 4]


def test_unknown_operators_are_named() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ z = RandomNormalLike (x) y = Bernoulli (z) }}"
    )
    assert unsupported(ir.from_proto(model)) == ["Bernoulli", "RandomNormalLike"]
    with pytest.raises(Unsupported, match="Bernoulli, RandomNormalLike"):
        Evaluator(ir.from_proto(model))


def test_training_mode_is_no_inference() -> None:
    model = single("BatchNormalization", [f(*X), f(3), f(3), f(3), pos(3)], {"training_mode": 1}, 15, 3)
    with pytest.raises(Unsupported, match="training mode"):
        Evaluator(ir.from_proto(model)).run({f"x{n}": x for n, x in enumerate([f(*X), f(3), f(3), f(3), pos(3)])})


def test_values_are_freed_after_their_last_use() -> None:
    """A chain of thirty layers never holds more than a few of their outputs."""
    body = "\n".join(f"v{n + 1} = Neg (v{n})" for n in range(30))
    e = evaluator(f"{HEAD} g (float[1000] v0) => (float[1000] v30) {{ {body} }}")
    held: list[int] = []
    env: dict[ir.Value, Any] = {e.model.graph.inputs[0]: np.ones(1000)}
    e.run_graph(e.model.graph, env, lambda node, inputs, results: held.append(len(env)))
    assert max(held) <= 2


def test_inputs_are_never_changed() -> None:
    """Kernels work out of place: a view of a weight or an input must survive them."""
    for op, inputs, attrs, opset, outputs in CASES:
        feeds = {f"x{n}": np.array(x) for n, x in enumerate(inputs) if x is not None}
        wide = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in feeds.items()}
        for x in wide.values():
            x.setflags(write=False)
        Evaluator(ir.from_proto(single(op, inputs, attrs, opset, outputs))).run(wide)


NOISY = f"""{HEAD} g (float[N,4] x) => (float[N,4] y) {{
    a = MatMul (x, w)
    n = Constant <value = float[4] {{1.0, 2.0, 3.0, 4.0}}> ()
    b = Mul (a, n)
    c = Pow (b, two)
    d = Clip (c, low, high)
    r = Shape (d)
    f = Cast <to = 1> (r)
    h = Mul (f, half)
    k = Cast <to = 7> (h)
    m = Mul (k, i2)
    y = Reshape (d, m)
}}"""


def test_noise_moves_weights_and_nothing_else() -> None:
    """Exponents, Clip bounds and arithmetic on shapes stay: perturbing them would change more than rounding does."""
    constants = {
        "w": f(4, 4), "two": np.float32(2), "low": np.float32(-1e9), "high": np.float32(1e9),
        "half": np.float32(0.5), "i2": np.array(2, np.int64),
    }  # fmt: skip
    x = {"x": f(2, 4)}
    constants = {k: np.asarray(v) for k, v in constants.items()}
    y = evaluator(NOISY, constants).run(x)["y"]
    u = 2.0**-24
    changes = []
    for seed in range(3):
        z = evaluator(NOISY, constants, noise=Noise(seed, lambda value: u)).run(x)["y"]
        assert z.shape == y.shape
        changes.append(np.abs(z - y).max() / np.abs(y).max())
    assert all(0 < change < 20 * u for change in changes)
    assert len(set(changes)) == 3


def test_fixed_values_are_those_no_input_reaches() -> None:
    constants = {name: np.ones(1, np.float32) for name in ("w", "two", "low", "high", "half", "i2")}
    fixed = fixed_values(evaluator(NOISY, constants).model.graph)
    assert {v.name for v in fixed} - constants.keys() == {"n", "r", "f", "h", "k", "m"}


def test_control_flow_has_its_own_table() -> None:
    assert not set(control.CONTROL) & set(KERNELS)
