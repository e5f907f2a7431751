"""Weights seen through affines: float64 until the end, one rounding to nearest even, in slices or at once."""

from __future__ import annotations

import io
from fractions import Fraction

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold import derived
from bnfold.affine import Affine
from bnfold.derived import Derived, rounded, values
from bnfold.graph import derive

TYPES = [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE]
PRECISION = {ir.DataType.FLOAT16: 11, ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT: 24}


def nearest(value: float, bits: int) -> float:
    """The number of `bits` significant bits nearest to `value`, ties to even, by exact arithmetic."""
    if value == 0:
        return 0.0
    _, exponent = np.frexp(value)
    unit = Fraction(2) ** (int(exponent) - bits)
    steps = Fraction(value) / unit
    return float(round(steps) * unit)  # `round` of a Fraction is to even


@given(st.floats(0.01, 100.0), st.sampled_from(list(PRECISION)), st.booleans())
def test_rounding_is_to_nearest_even(value: float, dtype: ir.DataType, negative: bool) -> None:
    signed = -value if negative else value
    assert float(rounded(np.array(signed), dtype)) == nearest(signed, PRECISION[dtype])


@pytest.mark.parametrize("tiny", [2.0**-40, -(2.0**-40)])
def test_bfloat16_is_not_rounded_twice(tiny: float) -> None:
    """Just beside a tie of bfloat16, float32 would round onto the tie, which then goes to even."""
    tie = 1.0 + 2.0**-8
    assert float(rounded(np.array(tie + tiny), ir.DataType.BFLOAT16)) == (1.0 if tiny < 0 else 1.0 + 2.0**-7)
    assert float(rounded(np.array(tie), ir.DataType.BFLOAT16)) == 1.0


@pytest.mark.parametrize("dtype", PRECISION, ids=lambda dtype: dtype.name)
def test_steps_are_applied_before_the_only_rounding(dtype: ir.DataType) -> None:
    """Scaled by 1/3 and by 3: what was stored comes back, though a third is no number of any type."""
    stored = np.arange(1.0, 41.0).reshape(5, 8).astype(dtype.numpy())
    third, thrice = Affine.of(1.0 / 3.0, 0.0), Affine.of(3.0, 0.0)
    tensor = Derived(ir.tensor(stored, dtype=dtype), dtype).then(third).then(thrice)
    assert np.array_equal(tensor.numpy(), stored)
    assert tensor.numpy().dtype == stored.dtype


def test_the_base_is_untouched_and_the_identity_is_no_step() -> None:
    base = np.ones((2, 3), np.float32)
    tensor = Derived(ir.tensor(base), ir.DataType.FLOAT)
    assert tensor.then(Affine.of(1.0, 0.0)) is tensor
    assert tensor.then(Affine.of(2.0, 1.0)).numpy().tolist() == [[3.0] * 3] * 2
    assert (base == 1.0).all() and (tensor.numpy() == 1.0).all()
    assert repr(tensor.then(Affine.of(2.0, 1.0))) == "Derived(FLOAT[2, 3], 1 steps)"


def test_a_step_may_enlarge() -> None:
    tensor = Derived(np.array(2.0), ir.DataType.FLOAT).then(Affine.of([[1.0], [2.0]], [0.0, 1.0, 2.0]))
    assert tensor.shape == ir.Shape((2, 3))
    assert tensor.numpy().tolist() == [[2.0, 3.0, 4.0], [4.0, 5.0, 6.0]]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (7, 3), (1, 7), (3, 2, 5)])
def test_slices_are_the_whole(dtype: ir.DataType, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows hold the same bytes as the tensor computed at once."""
    rng = np.random.default_rng(0)
    base = ir.tensor(rng.normal(size=shape).astype(dtype.numpy()), dtype=dtype)
    step = Affine.of(rng.normal(size=shape[-1:]), rng.normal(size=(*shape[:1], *[1] * (len(shape) - 1))))
    whole = Derived(base, dtype, (step, step)).numpy().tobytes()
    monkeypatch.setattr(derived, "SLICE_BYTES", 40)
    monkeypatch.setattr(derived, "KEPT_BYTES", 0)
    sliced = Derived(base, dtype, (step, step))
    assert len(list(sliced.slices())) > 1 or not shape or shape[0] == 1
    file = io.BytesIO()
    sliced.tofile(file)
    assert sliced.tobytes() == whole == file.getvalue()


def test_bytes_are_little_endian() -> None:
    assert Derived(np.array([1.0]), ir.DataType.FLOAT).tobytes() == b"\x00\x00\x80\x3f"
    assert Derived(np.array([1.0]), ir.DataType.BFLOAT16).tobytes() == b"\x80\x3f"


@pytest.mark.parametrize("small", [1 << 25, 16])
@pytest.mark.parametrize(
    ("scale", "fault"),
    [
        ([1.0, 1.0, 1.0], None),
        ([1.0, 70000.0, 1.0], "beyond float16's largest"),
        ([1.0, 1.0, 1e-6], "below float16's smallest normal"),
        ([1.0, 0.0, 1.0], None),  # a channel of zeros is exact
        ([1.0, np.nan, 1.0], "not finite"),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_channel_out_of_range(
    scale: list[float], fault: str | None, axis: int, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One channel is enough, along whichever axis the scale varies and in whichever slice it lies."""
    monkeypatch.setattr(derived, "SLICE_BYTES", small)
    monkeypatch.setattr(derived, "KEPT_BYTES", 0 if small == 16 else derived.KEPT_BYTES)
    step = Affine.of(np.reshape(scale, (3, 1) if axis == 0 else (1, 3)), 0.0)
    found = Derived(ir.tensor(np.ones((3, 3), np.float16)), ir.DataType.FLOAT16, (step,)).range_fault()
    assert found is None if fault is None else fault in (found or "")


def test_the_largest_number_is_no_overflow() -> None:
    largest = float(ml_dtypes.finfo(np.float16).max)
    tensor = Derived(ir.tensor(np.ones(2, np.float16)), ir.DataType.FLOAT16)
    assert tensor.then(Affine.of(largest, 0.0)).range_fault() is None
    assert tensor.then(Affine.of(largest + 15.9, 0.0)).range_fault() is None  # rounds down to it
    assert "beyond" in (tensor.then(Affine.of(largest + 16.0, 0.0)).range_fault() or "")  # a tie, to even: infinity


def test_small_biases_are_kept() -> None:
    """A bias among the subnormals is lost in absolute terms only, and so is nothing."""
    tensor = Derived(np.array([0.0, 0.0, 1.0]), ir.DataType.FLOAT16).then(Affine.of(1.0, [1e-7, 1.0, -1.0 + 1e-7]))
    assert tensor.range_fault() is None


def test_what_is_new_is_no_subnormal() -> None:
    assert "smallest normal" in (Derived(np.array([1e-7]), ir.DataType.FLOAT16).range_fault() or "")


def test_what_was_subnormal_may_stay_so() -> None:
    tensor = Derived(ir.tensor(np.array([1e-7, 1.0], np.float16)), ir.DataType.FLOAT16).then(Affine.of([0.5, 2.0], 0.0))
    assert tensor.range_fault() is None


def test_nothing_is_out_of_range_where_nothing_is() -> None:
    assert Derived(np.zeros((0, 3)), ir.DataType.FLOAT, (Affine(np.zeros((0, 1)), np.zeros(())),)).range_fault() is None


def test_integers_hold_no_affine() -> None:
    fault = Derived(ir.tensor(np.ones(2, np.int8)), ir.DataType.INT8).range_fault()
    assert fault == "int8 is no floating-point type that could hold the result"


def test_a_weight_folded_again_is_still_what_was_stored_and_its_steps() -> None:
    """And what reads it on the way reads it before it is rounded."""
    stored, third = ir.tensor(np.ones((2, 3), np.float32)), Affine.of(1.0 / 3.0, 0.0)
    value = ir.Value(name="w", const_value=Derived(stored, ir.DataType.FLOAT, (third,)))
    ir.Graph([], [], nodes=[], initializers=[value])
    again = derive(value, third, ((), ir.DataType.FLOAT))
    assert again.base is stored and again.steps == (third, third)
    assert (values(value.const_value) == 1.0 / 3.0).all()


def test_what_was_not_stored_is_sliced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = Derived(np.arange(6.0).reshape(3, 2), ir.DataType.FLOAT, (Affine.of(2.0, 1.0),))
    monkeypatch.setattr(derived, "SLICE_BYTES", 32)
    assert [part.tolist() for part in tensor.slices()] == [[[1.0, 3.0], [5.0, 7.0]], [[9.0, 11.0]]]
