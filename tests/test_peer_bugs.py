"""Bugs of other tools that fold: each is ruled out here, on the smallest graph that showed it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.graphs import Array, at_runtime, build, exact, feeds, folded, operators

_CONV = "(T[N,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }"


def reasons(model: onnx.ModelProto) -> list[str]:
    return [entry.reason.code for entry in folded(model)[1].entries if entry.reason is not None]


def same(model: onnx.ModelProto, **options: bool) -> onnx.ModelProto:
    """Fold, compare with the original in float64 and at run time, and return the result."""
    result, _ = folded(model, **options)
    onnx.checker.check_model(result, full_check=True)
    inputs = feeds(model)
    for run in (exact, at_runtime):
        before, after = run(model, inputs), run(result, inputs)
        for name, array in before.items():
            assert np.array_equal(after[name], array), name
    return result


# 1


@pytest.mark.parametrize("opset", [14, 15, 21])
def test_training_mode_is_not_frozen(opset: int) -> None:
    text = _CONV.replace("y = BN(a, A.4)", "y, m, v = BN(a, A.4, training_mode=1)")
    model = build(text, opset=opset, ir_version=10 if opset > 20 else 8)
    assert reasons(model) == ["training-mode"]


@pytest.mark.parametrize("opset", [6, 9])
def test_training_of_old_opsets_is_not_frozen(opset: int) -> None:
    """Before opset 7 BatchNormalization trains unless is_test; until 13, where its other outputs are used."""
    call = "y = BN(a, A.4)" if opset == 6 else "y, m, v, o, p = BN(a, A.4)"
    assert reasons(build(_CONV.replace("y = BN(a, A.4)", call), opset=opset)) == ["training-mode"]


# 2


@pytest.mark.parametrize(("gamma", "largest"), [(60000.0, "beyond float16"), (2.0**-23, "below float16")])
def test_a_weight_out_of_the_range_of_its_type_is_refused(gamma: float, largest: str) -> None:
    scale = {"A_gamma": np.full(4, gamma), "A_beta": np.ones(4), "A_mean": np.zeros(4), "A_var": np.full(4, 0.9375)}
    model = build(_CONV, dtype="float16", constants={**scale, "w": np.full((4, 3, 3, 3), 2.0)})
    result, report = folded(model)
    assert operators(result) == ["Conv", "BatchNormalization"]
    assert [(entry.reason.code, entry.blocking) for entry in report.entries if entry.reason] == [("out-of-range", "w")]
    assert largest in (report.entries[0].detail or "")


def test_one_channel_out_of_range_is_enough() -> None:
    """The largest value of the others hides nothing, in whatever slice it is found."""
    gamma = np.array([1.0, 60000.0, 1.0, 1.0])
    weight = np.full((4, 3, 3, 3), 2.0)
    model = build(_CONV, dtype="float16", constants={"A_gamma": gamma, "A_var": np.full(4, 0.9375), "w": weight})
    assert reasons(model) == ["out-of-range"]


def test_a_small_weight_beside_a_large_one_is_no_lost_channel() -> None:
    """In a float16 among the subnormals a weight loses digits, which its channel does not notice."""
    text = "(T[N,4,6,6] x) => (T[n,c,h,w] y) { a = BN+(x, A.4)  y = Conv(a, w) }"
    weight = np.full((2, 4, 1, 1), 0.5)
    weight[0, 0] = 2.0**-14
    gamma = np.array([0.5, 1.0, 1.0, 1.0])
    scale = {"A_gamma": gamma, "A_beta": np.zeros(4), "A_mean": np.zeros(4), "A_var": np.full(4, 0.9375)}
    assert operators(folded(build(text, dtype="float16", constants={**scale, "w": weight}))[0]) == ["Conv"]
    weight[:, 0] = 2.0**-14
    assert reasons(build(text, dtype="float16", constants={**scale, "w": weight})) == ["out-of-range"]


def test_a_new_bias_of_a_gemm_is_a_vector() -> None:
    model = build("(T[N,3] x) => (T[n,c] y) { a = Gemm(x, w[3,4])  y = BN(a, A.4) }")
    assert [list(tensor.dims) for tensor in same(model).graph.initializer] == [[3, 4], [4]]


def test_a_bias_out_of_range_is_refused() -> None:
    beta = np.array([0.0, 0.0, 60000.0, 0.0])
    mean = np.array([0.0, 0.0, -60000.0, 0.0])
    parameters = {"A_beta": beta, "A_mean": mean, "A_gamma": np.ones(4), "A_var": np.full(4, 0.9375)}
    assert reasons(build(_CONV, dtype="float16", constants=parameters)) == ["out-of-range"]
    (entry,) = folded(build(_CONV, dtype="float16", constants=parameters))[1].entries
    assert entry.blocking == "a"  # there is no bias yet


# 3


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1, 1)])
def test_a_constant_along_an_axis_of_equal_size_is_no_channel(shape: tuple[int, ...]) -> None:
    """N = C = H = W = 4: only the axis says which is meant."""
    text = "(T[4,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = Mul(a, s) }"
    model = build(text, constants={"s": np.arange(1.0, 5.0).reshape(shape)})
    assert operators(same(model)) == ["Conv", "Mul"]


# 4


@pytest.mark.parametrize(
    ("move", "left"),
    [
        ("t = Identity(a)", ["MatMul", "Identity", "BatchNormalization"]),
        ("t = Reshape(a, {0, 4, 4})", ["MatMul", "Reshape", "BatchNormalization"]),
        ("t = Transpose <perm = [0,2,1]> (a)", ["MatMul", "Add", "Transpose"]),
        ("t = Transpose <perm = [1,2,0]> (a)", ["MatMul", "Add", "Transpose"]),
    ],
)
def test_matmul_and_bn_meet_on_the_same_axis_or_not_at_all(move: str, left: list[str]) -> None:
    """All sizes are 4, so that every axis could be taken for the channel."""
    model = build(f"(T[4,4,4] x) => (T[n,c,t] y) {{ a = MatMul(x, w[4,4])  {move}  y = BN(t, A.4) }}")
    assert operators(same(model)) == left


# 5


def test_an_empty_optional_bias_is_no_bias() -> None:
    model = build(_CONV.replace("w[4,3,3,3])", 'w[4,3,3,3], "")'))
    assert operators(same(model)) == ["Conv"]


def test_a_clip_without_lower_bound() -> None:
    model = build(_CONV.replace("y = BN(a, A.4)", 'd = Clip(a, "", 6.0)  y = BN+1(d, A.4)'))
    result = same(model)
    assert operators(result) == ["Conv", "Clip"]
    assert result.graph.node[1].input[1] == ""


def test_bfloat16_stays_bfloat16() -> None:
    model = build(_CONV, dtype="bfloat16", opset=22, ir_version=10)
    result, report = folded(model)
    onnx.checker.check_model(result, full_check=True)
    assert report.folded == 1
    assert {tensor.data_type for tensor in result.graph.initializer} == {onnx.TensorProto.BFLOAT16}
    inputs = feeds(model)
    assert np.array_equal(exact(result, inputs)["y"], exact(model, inputs)["y"])


def test_float32_statistics_of_a_float16_model_leave_float16_weights() -> None:
    """Opset 15 lets BatchNormalization hold its parameters in a wider type than its input."""
    model = build(_CONV, dtype="float16")
    for tensor in model.graph.initializer:
        if tensor.name.startswith("A_"):
            wide = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
            tensor.CopyFrom(wide)
    result, report = folded(model)
    onnx.checker.check_model(result, full_check=True)
    assert report.folded == 1
    assert {tensor.data_type for tensor in result.graph.initializer} == {onnx.TensorProto.FLOAT16}


# 6


def test_new_names_clash_with_nothing() -> None:
    """Every name that folding would choose first is taken, by a value, an initializer, a node or in a body."""
    text = (
        "(T[N,3,6,6] x, T[N,4,4,4] w_folded, bool p) => (T[n,c,h,w] y, T[i,j,k,l] a_folded, T[m,o,q,r] z) {"
        " a = Conv(x, w[4,3,3,3], b[4])  t = Relu(a)  y = Identity(t)  d = Conv(x, w, b)  u = Sigmoid(d)"
        " e = Conv(x, w, b)  s = BN(e, A.4)  z = Relu(s)  a_folded = Add(w_folded, b_folded[4,1,1])"
        " v = If (p) <then_branch = g1 () => (T[n1,c1,h1,w1] e_folded) { e_folded = Neg(z) },"
        " else_branch = g2 () => (T[n2,c2,h2,w2] b_folded_1) { b_folded_1 = Abs(z) }> }"
    )
    model = build(text)
    result = same(model)
    names = [tensor.name for tensor in result.graph.initializer]
    names += [name for node in result.graph.node for name in node.output]
    names += [name for node in result.graph.node for a in node.attribute for n in a.g.node for name in n.output]
    assert len(names) == len(set(names))
    assert "BatchNormalization" not in operators(result)


def test_a_shared_bias_is_overwritten_for_nobody() -> None:
    text = (
        "(T[N,3,6,6] x) => (T[n,c,h,w] y, T[i,j,k,l] z) { a = Conv(x, w[4,3,3,3], b[4])  y = BN(a, A.4)"
        "  d = Conv(x, v[4,3,1,1], b)  z = BN(d, B.4) }"
    )
    assert operators(same(build(text))) == ["Conv", "Conv"]


# 7


@pytest.mark.parametrize("value", [0.0, 1.5, -2.0])
@pytest.mark.parametrize("opset", [10, 11, 18])
def test_padding_writes_what_it_wrote(value: float, opset: int) -> None:
    """BN behind a Pad of any value, and before one: equal, whatever is folded."""
    pads = "{0, 0, 1, 1, 0, 0, 1, 1}"
    call = f"Pad <pads = [0,0,1,1,0,0,1,1], value = {value}> (IN)" if opset < 11 else f"Pad(IN, {pads}, {value})"
    for kind in ("BN", "BN0", "BN1"):
        behind = f"d = {call.replace('IN', 'a')}  y = {kind}(d, A.4)"
        same(build(_CONV.replace("y = BN(a, A.4)", behind), opset=opset))
        before = f"e = {kind}(x, A.3)  d = {call.replace('IN', 'e')}  y = Conv(d, w[4,3,3,3])"
        same(build(f"(T[N,3,6,6] x) => (T[n,c,h,w] y) {{ {before} }}", opset=opset))


# 8


def test_overridable_initializers_stay_inputs() -> None:
    model = build(_CONV)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result, report = folded(model)
    assert list(result.graph.input) == list(model.graph.input)
    assert [entry.reason.code for entry in report.entries if entry.reason] == ["overridable"]

    frozen, report = folded(model, freeze_initializers=True)
    assert (report.folded, report.frozen) == (1, 5)
    assert [value.name for value in frozen.graph.input] == ["x"]
    inputs = feeds(model)
    assert np.array_equal(exact(frozen, inputs)["y"], exact(model, inputs)["y"])


def test_an_unused_graph_input_stays() -> None:
    model = build(_CONV.replace("(T[N,3,6,6] x)", "(T[N,3,6,6] x, T[1] unused)"))
    assert [value.name for value in same(model).graph.input] == ["x", "unused"]


# 9


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("bias", ["", ", c[4]", ", c[]", ", c[2,4]", ", c[2,1]"])
def test_gemm_keeps_alpha_and_beta(alpha: float, beta: float, bias: str) -> None:
    attributes = f"<alpha = {alpha}, beta = {beta}, transB = 1>"
    behind = f"a = Gemm {attributes} (x, w[4,3]{bias})  y = BN(a, A.4)"
    before = f"a = BN(x, A.3)  y = Gemm {attributes} (a, w[4,3]{bias})"
    for body in (behind, before):
        assert operators(same(build(f"(T[2,3] x) => (T[n,c] y) {{ {body} }}"))) == ["Gemm"]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_grouped_conv_transpose_is_scaled_on_its_output_axis(group: int) -> None:
    call = f"ConvTranspose <group = {group}, strides = [2,2]> (x, w[4,3,2,2])"
    model = build(f"(T[N,4,4,4] x) => (T[n,c,h,w] y) {{ a = {call}  y = BN(a, A.{3 * group}) }}")
    assert operators(same(model)) == ["ConvTranspose"]


def test_the_default_epsilon_is_that_of_the_standard() -> None:
    """A variance of zero leaves nothing but epsilon: 1e-5, as float32."""
    text = _CONV.replace("BN(a, A.4)", "BatchNormalization(a, g[4], b[4], m[4], v)")
    model = build(text, dtype="double", constants={"v": np.zeros(4)})
    result, _ = folded(model)
    inputs = feeds(model)
    before, after = exact(model, inputs)["y"], exact(result, inputs)["y"]
    assert np.allclose(after, before, rtol=1e-12, atol=1e-9)


# 10


def _read(extra: str, outputs: str = "", inputs: str = "") -> onnx.ModelProto:
    text = f"(T[N,3,6,6] x{inputs}) => (T[n,c,h,w] y{outputs}) {{ a = Conv(x, w[4,3,3,3])  y = BN(a, A.4)  {extra} }}"
    return build(text)


def test_weights_of_two_convolutions_are_each_scaled_once() -> None:
    model = _read("d = Conv(y, v[4,4,1,1])  e = BN(d, B.4)  f = Conv(e, v)  z = BN(f, C.4)", ", T[i,j,k,l] z")
    result = same(model)
    assert operators(result) == ["Conv"] * 3
    assert len(result.graph.initializer) == 6  # three weights, three biases


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (_read("z = Relu(a)", ", T[i,j,k,l] z"), "other-readers"),
        (_read("", ", T[i,j,k,l] a"), "graph-output"),
        (
            _read(
                "z = If (p) <then_branch = g1 () => (T[i,j,k,l] t) { t = Neg(a) },"
                " else_branch = g2 () => (T[i,j,k,l] e) { e = Abs(y) }>",
                ", T[i,j,k,l] z", ", bool p",
            ),
            "body",
        ),
    ],
    ids=["reader", "output", "body"],
)  # fmt: skip
def test_another_reader_of_a_convolution_sees_it_unscaled(model: onnx.ModelProto, reason: str) -> None:
    assert reasons(model) == [reason]
    same(model)


def test_a_weight_read_in_a_body_keeps_its_value() -> None:
    extra = (
        "z = If (p) <then_branch = g1 () => (T[i,j,k,l] t) { t = Conv(x, w) },"
        " else_branch = g2 () => (T[i,j,k,l] e) { e = Neg(y) }>"
    )
    result = same(_read(extra, ", T[i,j,k,l] z", ", bool p"))
    assert operators(result) == ["Conv", "If", "Conv", "Neg"]
    assert "w" in {tensor.name for tensor in result.graph.initializer}


def test_a_weight_that_is_a_graph_output_keeps_its_value() -> None:
    model = _read("")
    model.graph.output.append(helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3, 3, 3]))
    assert operators(same(model)) == ["Conv"]


# 11


@pytest.mark.parametrize("op", ["Relu", "Abs", "MaxPool <kernel_shape = [2,2]>", "GlobalMaxPool", "LeakyRelu"])
@pytest.mark.parametrize("kind", ["BN", "BN0", "BN+", "BN+0", "BN1", "BN+1"])
def test_signs_and_shifts_at_what_orders_values(op: str, kind: str) -> None:
    """Behind and before: whatever folds, the function is the same, zeros and negative gammas included."""
    same(build(_CONV.replace("y = BN(a, A.4)", f"d = {op} (a)  y = {kind}(d, A.4)")))
    same(build(f"(T[N,3,6,6] x) => (T[n,c,h,w] y) {{ a = {kind}(x, A.3)  d = {op} (a)  y = Conv(d, w[4,3,1,1]) }}"))


@pytest.mark.parametrize("border", ["pads = [1,0,0,0]", 'auto_pad = "SAME_UPPER"', "pads = [1,1,1,1], strides = [2,2]"])
def test_a_shift_stops_at_padding(border: str) -> None:
    text = f"(T[N,3,6,6] x) => (T[n,c,h,w] y) {{ a = KIND(x, A.3)  y = Conv <{border}> (a, w[4,3,2,2]) }}"
    assert reasons(build(text.replace("KIND", "BN"))) == ["padding"]
    assert operators(same(build(text.replace("KIND", "BN0")))) == ["Conv"]


# 12


def test_what_is_not_finite_is_not_folded() -> None:
    model = build(_CONV, constants={"A_var": np.array([1.0, -2.0, 1.0, 1.0])})
    result, report = folded(model)
    assert operators(result) == ["Conv", "BatchNormalization"]
    assert [entry.reason.code for entry in report.entries if entry.reason] == ["non-finite"]
    assert "1 channel" in (report.entries[0].detail or "")


def test_an_infinite_weight_is_not_folded() -> None:
    weight = np.ones((4, 3, 3, 3))
    weight[1, 0, 0, 0] = np.inf
    assert reasons(build(_CONV, constants={"w": weight})) == ["out-of-range"]


# 13


@pytest.mark.parametrize("group", [2, 4])
def test_the_exact_evaluator_agrees_with_onnx_runtime_on_grouped_conv_transpose(group: int) -> None:
    model = build(
        f"(T[N,4,4,4] x) => (T[n,c,h,w] y) {{ y = ConvTranspose <group = {group}, strides = [2,1]> (x, w[4,2,3,2]) }}"
    )
    inputs: dict[str, Array] = feeds(model)
    assert np.array_equal(exact(model, inputs)["y"], at_runtime(model, inputs)["y"])


# Beyond the list: found while looking for more.


def test_legacy_broadcasting_is_no_numpy_broadcasting() -> None:
    """Before opset 7 an Add says itself along which axis its second operand lies."""
    text = (
        "(T[2,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])"
        "  d = Add <broadcast = 1, axis = 1> (a, s[4])  y = BN(d, A.4, is_test=1) }"
    )
    model = build(text, opset=6)
    result, _ = folded(model)
    assert operators(result) == ["Conv", "Add", "BatchNormalization"]


def test_bounds_of_a_clip_that_are_out_of_order() -> None:
    """min > max makes every value max; mapped and sorted they would do something else."""
    same(build(_CONV.replace("y = BN(a, A.4)", "d = Clip(a, 2.0, -1.0)  y = BN1(d, A.4)")))
    same(build(_CONV.replace("y = BN(a, A.4)", "d = Clip(a, 2.0, -1.0)  y = BN+1(d, A.4)")))


@pytest.mark.parametrize("crop", [(0.0, 1.0), (0.3, 0.9)])
def test_a_crop_of_the_channels(crop: tuple[float, float]) -> None:
    """tf_crop_and_resize moves channels where its region does, even at a scale of one."""
    roi = np.array([0, crop[0], 0, 0, 1, crop[1], 1, 1], np.float32)
    call = 'd = Resize <mode = "nearest", coordinate_transformation_mode = "tf_crop_and_resize"> (a, q, r)'
    text = f"(T[N,4,4,4] x) => (T[n,c,h,w] y) {{ a = BN0(x, A.4)  {call}  y = Conv(d, w[2,4,1,1]) }}"
    model = build(text, constants={"q": roi, "r": np.array([1, 1, 2, 2], np.float32)})
    result, report = folded(model)
    assert report.affines + report.folded == 1
    inputs = feeds(model)
    assert np.array_equal(exact(result, inputs)["y"], exact(model, inputs)["y"])
    assert ("Mul" in operators(result)) == (crop != (0.0, 1.0))


@pytest.mark.parametrize(
    ("call", "left"),
    [
        ("Mul(a, s)", ["GroupNormalization", "Mul"]),
        ("Add(a, s)", ["GroupNormalization", "Add"]),
        ("Mul(a, g)", ["GroupNormalization"]),
        ("Add(a, g)", ["GroupNormalization"]),
    ],
)
def test_group_normalization_before_opset_21_takes_what_agrees_within_groups(call: str, left: list[str]) -> None:
    """There gamma and beta are one for each group. That operator was withdrawn; the files are still there."""
    text = f"(T[N,4,6] x) => (T[n,c,w] y) {{ a = GroupNormalization <num_groups = 2> (x, k[2], b[2])  y = {call} }}"
    constants = {"s": np.arange(1.0, 5.0).reshape(4, 1), "g": np.array([2.0, 2.0, 3.0, 3.0]).reshape(4, 1)}
    model = build(text, dtype="double", opset=18, checked=False, constants=constants)
    result, _ = folded(model)
    assert operators(result) == left
    inputs = feeds(model)
    assert np.allclose(exact(result, inputs)["y"], exact(model, inputs)["y"], rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("(T[N,3] x) => (T[n,k] y, T[n,l] z) { a = MatMul(x, w[3,4])  y = Mul(a, s[4])  z = my.Shape(a) }", "u"),
        ("(T[N,3] x) => (T[n,k] y) { c = my.CastLike(s[4], x)  a = MatMul(x, w[3,4])  y = Mul(a, c) }", "u, v"),
        ("(T[3] x) => (T[k] y) { q = my.DequantizeLinear(w[3,4], c[])  a = MatMul(x, q)  y = Mul(a, 2.0) }", "u, v"),
        ("(T[N,3] x) => (T[n,k] y) { a = MatMul(x, w[3,4])  y = my.BatchNormalization(a) }", "u"),
    ],
)
def test_a_name_means_nothing_in_another_domain(text: str, inputs: str) -> None:
    """A function may be called as a standard operator is and compute something else."""
    name = text.partition("my.")[2].partition("(")[0]
    function = f'<opset_import: ["" : 17], domain: "my"> {name} ({inputs}) => (r) {{ r = Sin(u) }}'
    same(build(f"{text} {function}", domains=', "my" : 1'))
