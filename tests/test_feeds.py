"""Inputs: seeded and diverse, of sizes that the model takes, and the user's own checked before anything runs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from bnfold.arrays import Array
from bnfold.errors import InputError, UsageError
from bnfold.inputs import feeds, kinds
from tests import nets

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def model(text: str, **constants: Any) -> ir.Model:
    made = parser.parse_model(f"{HEAD} g {text}")
    for name, value in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return ir.from_proto(made)


IMAGE = "(float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu (x) }"


def test_sixteen_samples_of_every_kind() -> None:
    drawn = feeds.generated(model(IMAGE))
    once = dict.fromkeys(("zero", "constant", "smooth", "impulses", "matched"), 1)
    assert Counter(s.kind for s in drawn) == {"normal": 6, "mixed": 3, "uniform": 2, **once}
    assert len({s.feeds["x"].tobytes() for s in drawn}) == 16
    assert all(s.feeds["x"].dtype == np.float32 and np.isfinite(s.feeds["x"]).all() for s in drawn)


def test_seeds_repeat_and_differ() -> None:
    first, again, other = (feeds.generated(model(IMAGE), seed=s, samples=2) for s in (1, 1, 2))
    assert all(np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].feeds["x"], other[0].feeds["x"])


def test_shapes_are_small_odd_large_and_of_two_batches() -> None:
    shapes = {s.feeds["x"].shape for s in feeds.generated(model(IMAGE))}
    assert shapes == {(1, 3, 16, 16), (3, 3, 16, 16), (1, 3, 25, 27), (1, 3, 32, 32)}


def test_sizes_the_model_refuses_are_not_used() -> None:
    def attempt(arrays: Any) -> Any:
        n, _, h, w = arrays["x"].shape
        return () if n == 1 and h % 32 == 0 and h == w else f"height {h} is no multiple of 32"

    assert {s.feeds["x"].shape for s in feeds.generated(model(IMAGE), attempt=attempt)} == {
        (1, 3, 32, 32),
        (1, 3, 64, 64),
    }
    with pytest.raises(InputError, match=r"no size tried for N, H, W runs.*H=16 is refused"):
        feeds.generated(model(IMAGE), attempt=lambda arrays: "H=16 is refused")


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ({"H": 5, "W": 6}, (1, 3, 5, 6)),
        ({"x:2": 5, "W": 6, "N": 2}, (2, 3, 5, 6)),
    ],
)
def test_given_dims_are_kept(dims: dict[str, int], shape: tuple[int, ...]) -> None:
    assert feeds.generated(model(IMAGE), dims=dims, samples=1)[0].feeds["x"].shape == shape


def test_the_models_own_constants_say_how_many_features_it_reads() -> None:
    made = model("(float[N,T,F] x) => (float[N,T,5] y) { y = MatMul (x, w) }", w=np.ones((7, 5), np.float32))

    def attempt(arrays: Any) -> Any:
        return () if arrays["x"].shape[2] == 7 else "the inner sizes differ"

    shapes = {s.feeds["x"].shape for s in feeds.generated(made, attempt=attempt)}
    assert shapes == {(1, 64, 7), (3, 64, 7), (1, 97, 7), (1, 128, 7)}


def test_a_leading_axis_may_count_steps_of_time() -> None:
    made = model("(float[T,F] x) => (float[T,5] y) { y = MatMul (x, w) }", w=np.ones((7, 5), np.float32))

    def attempt(arrays: Any) -> Any:
        steps, features = arrays["x"].shape
        return () if features == 7 and steps >= 9 else "too few steps for the kernel"

    assert {s.feeds["x"].shape for s in feeds.generated(made, attempt=attempt)} == {(64, 7), (97, 7), (128, 7)}


def test_a_batch_may_have_another_place() -> None:
    made = model("(float[?,S] x, float[2,?,4] state) => (float[?,S] y) { y = Relu (x) }")

    def attempt(arrays: Any) -> Any:
        fits = arrays["state"].shape[1] == arrays["x"].shape[0] and arrays["x"].shape[1] >= 256
        return () if fits else "the state has another batch"

    shapes = [(s.feeds["x"].shape, s.feeds["state"].shape) for s in feeds.generated(made, attempt=attempt)]
    assert shapes[0] == ((1, 256), (2, 1, 4))


def test_sizes_at_which_nothing_is_left_are_a_last_resort() -> None:
    made = model(IMAGE)

    def attempt(arrays: Any) -> Any:
        return (np.full((1, 2), np.nan if arrays["x"].shape[2] < 64 else 1.0),)

    assert {s.feeds["x"].shape[2] for s in feeds.generated(made, attempt=attempt)} == {64, 97, 128}
    frames = feeds.generated(
        model("(float[S] x) => (float[F] y) { y = Relu (x) }"),
        attempt=lambda arrays: (np.ones(arrays["x"].size // 400),),
    )
    assert {s.feeds["x"].size for s in frames} == {512, 769, 1024}
    always = feeds.generated(made, attempt=lambda arrays: (np.zeros((0,)),))
    assert {s.feeds["x"].shape[2] for s in always} == {16, 25, 32}


def test_a_size_of_minus_one_means_any() -> None:
    made = model("(float[N,3] x) => (float[N,3] y) { y = Relu (x) }")
    made.graph.inputs[0].shape = ir.Shape([-1, 3])
    assert {s.feeds["x"].shape for s in feeds.generated(made)} == {(1, 3), (3, 3)}
    assert feeds.batch_dims(made) == ["x:0"]


@pytest.mark.parametrize("dims", [{"K": 3}, {"x:1": 3}, {"z:0": 3}, {"H": 0}])
def test_dims_that_do_not_fit_are_a_usage_error(dims: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="dimension"):
        feeds.generated(model(IMAGE), dims=dims)


def test_one_symbol_has_one_size() -> None:
    text = "(float[N,K] x, float[K,N] z) => (float[N,N] y) { y = MatMul (x, z) }"
    for sample in feeds.generated(model(text)):
        assert sample.feeds["x"].shape == sample.feeds["z"].shape[::-1]


def test_integers_stay_within_the_axis_they_index() -> None:
    text = """(int64[1,T] ids, int64[1,T] mask) => (float[1,T,4] y) {
        i = Cast <to = 6> (ids)
        e = Gather (table, i)
        m = Cast <to = 1> (mask)
        u = Unsqueeze (m, two)
        y = Mul (e, u) }"""
    m = model(text, table=np.zeros((7, 4), np.float32), two=np.array([2]))
    drawn = feeds.generated(m)
    ids = np.concatenate([s.feeds["ids"].ravel() for s in drawn])
    assert set(ids) == set(range(7))
    masks = [s.feeds["mask"] for s in drawn]
    assert set(np.unique(masks[0])) <= {0, 1} and all(mask[..., 0].all() for mask in masks)
    assert any((mask == 0).any() for mask in masks) and any((mask == 1).all() for mask in masks)


def test_overridable_initializers_are_no_inputs() -> None:
    m = model("(float[1,4] x, float[4] w) => (float[1,4] y) { y = Mul (x, w) }", w=np.ones(4, np.float32))
    assert [v.name for v in feeds.inputs(m)] == ["x"]
    assert set(feeds.generated(m, samples=1)[0].feeds) == {"x"}


def test_matched_inputs_give_the_batch_norm_its_statistics() -> None:
    """What leaves the first convolution has about the running mean and variance."""
    net = ir.from_proto(nets.perceptron(0))
    assert kinds.matched(net.graph.inputs[0]) is None  # no BN behind a Conv
    w = np.random.default_rng(0).standard_normal((2, 3, 3, 3)).astype(np.float32)
    mean, var = np.array([2, -1], np.float32), np.array([9, 4], np.float32)
    text = """(float[64,3,16,16] x) => (float[64,2,14,14] y) {
        c = Conv (x, w)
        y = BatchNormalization (c, one, zero, mean, var) }"""
    m = model(text, w=w, one=np.ones(2, np.float32), zero=np.zeros(2, np.float32), mean=mean, var=var)
    found = kinds.matched(m.graph.inputs[0])
    assert found is not None
    np.testing.assert_allclose(np.tensordot(w.sum(axis=(2, 3)), found[0], 1), mean, rtol=1e-6)


def test_an_input_without_elements_is_drawn_as_it_is() -> None:
    empty = model("(float[1,3,0,8] x) => (float[1,3,0,8] y) { y = Relu (x) }")
    assert {sample.feeds["x"].shape for sample in feeds.generated(empty)} == {(1, 3, 0, 8)}


def test_impulses_reach_every_corner() -> None:
    x = next(s for s in feeds.generated(model(IMAGE)) if s.kind == "impulses").feeds["x"]
    assert (x[..., [0, 0, -1, -1], [0, -1, 0, -1]] != 0).all()
    assert (x == 0).mean() > 0.9


FIXED = "(float[2,3] x, float[2] z) => (float[2,3] y) { y = Identity (x) }"
DYNAMIC = "(float[N,3] x) => (float[N,3] y) { y = Identity (x) }"


@pytest.mark.parametrize(
    ("text", "arrays", "shapes"),
    [
        (FIXED, {"x": (2, 3), "z": (2,)}, [(2, 3)]),
        (FIXED, {"x": (6, 3), "z": (6,)}, [(2, 3)] * 3),
        (FIXED, {"x": (5, 2, 3), "z": (5, 2)}, [(2, 3)] * 5),
        (DYNAMIC, {"x": (4, 3)}, [(1, 3)] * 4),
        (DYNAMIC, {"x": (40, 3)}, [(3, 3)] * 8 + [(2, 3)] * 8),
    ],
)
def test_given_arrays_are_cut_into_sets(text: str, arrays: dict[str, Any], shapes: list[Any]) -> None:
    given = {n: np.arange(np.prod(s), dtype=np.float32).reshape(s) for n, s in arrays.items()}
    sets = feeds.given(model(text), given)
    assert [s.feeds["x"].shape for s in sets] == shapes
    together = np.concatenate([s.feeds["x"].ravel() for s in sets])
    np.testing.assert_array_equal(together, given["x"].ravel())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3), np.float32)}, "no array named 'z'; the model's inputs are x (float32 2×3), z"),
        ({"x": np.zeros((2, 3), np.float32), "z": np.zeros(2, np.float32), "q": np.zeros(1)}, "'q' is no input"),
        ({"x": np.zeros((2, 3)), "z": np.zeros(2, np.float32)}, "'x' is float64, the model wants float32"),
        ({"x": np.zeros((2, 4), np.float32), "z": np.zeros(2, np.float32)}, "'x' has shape 2×4"),
        ({"x": np.zeros((3, 3), np.float32), "z": np.zeros(2, np.float32)}, "'x' has shape 3×3"),
        ({"x": np.zeros((0, 3), np.float32), "z": np.zeros(2, np.float32)}, "'x' has shape 0×3"),
    ],
)
def test_arrays_that_do_not_fit_are_one_clear_line(arrays: dict[str, Array], message: str) -> None:
    with pytest.raises(InputError) as caught:
        feeds.given(model(FIXED), arrays)
    assert message in str(caught.value) and "\n" not in str(caught.value)
