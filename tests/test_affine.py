"""The monoid of affines: laws for any coefficients, zero and negative scales included, and where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bnfold.affine import IDENTITY, Affine, along, collapsed, ranked

SHAPE = (2, 3, 4)

# Multiples of 1/4 up to 16: products of three and their sums are exact in float64, so that laws hold with `==`.
numbers = st.integers(-64, 64).map(lambda n: n / 4.0)


def coefficients() -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(*(st.sampled_from([1, size]) for size in SHAPE))
    lower = st.integers(0, len(SHAPE)).flatmap(lambda drop: shapes.map(lambda shape: shape[drop:]))
    return lower.flatmap(lambda shape: arrays.arrays(np.float64, shape, elements=numbers))


affines = st.builds(Affine.of, coefficients(), coefficients())
values = arrays.arrays(np.float64, SHAPE, elements=numbers)


@given(affines, affines, values)
def test_composition_is_application_after_application(a: Affine, b: Affine, x: np.ndarray) -> None:
    assert np.array_equal((a @ b)(x), a(b(x)))


@given(affines, affines, affines)
def test_composition_is_associative(a: Affine, b: Affine, c: Affine) -> None:
    assert (a @ b) @ c == a @ (b @ c)


@given(affines)
def test_the_identity_is_neutral_and_parts_make_the_whole(a: Affine) -> None:
    assert IDENTITY @ a == a == a @ IDENTITY
    assert a.shifting @ a.scaling == a
    assert a.is_identity == (a == IDENTITY)
    assert a.cost == a.scaling.cost + a.shifting.cost
    assert a.scales == (not a.scaling.is_identity) and a.shifts == (not a.shifting.is_identity)


@given(affines)
def test_it_varies_along_the_axes_where_its_arrays_are_not_one(a: Affine) -> None:
    full = [np.broadcast_to(array, SHAPE) for array in (a.scale, a.shift)]
    varying = {
        axis for axis in range(len(SHAPE)) for array in full if (array != array.take([0], axis=axis)).any()
    }  # fmt: skip
    assert a.axes(len(SHAPE)) == varying
    assert a.axes(len(SHAPE) + 2) == {axis + 2 for axis in varying}


@given(affines)
def test_rank_does_not_change_the_map(a: Affine) -> None:
    x = np.arange(24.0).reshape(SHAPE)
    assert np.array_equal(a.at(3)(x), a(x))
    assert a.at(5) == a
    assert a.at(3).scale.ndim == a.at(3).shift.ndim == 3


def test_uniform_axes_collapse() -> None:
    assert collapsed(np.full((3, 4), 2.0)).shape == (1, 1)
    assert collapsed([[1.0, 1.0], [2.0, 2.0]]).shape == (2, 1)
    assert collapsed([[np.nan, np.nan]]).shape == (1, 2)  # what is not a number equals nothing


def test_scales_of_zero_are_no_special_case() -> None:
    zero = Affine.of([[0.0], [2.0]], [[3.0], [0.0]])
    assert (zero @ Affine.of(5.0, 7.0))(np.ones((2, 1))).tolist() == [[3.0], [24.0]]
    assert zero.nonnegative and not Affine.of([-1.0, 1.0], 0.0).nonnegative


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_finite(bad: float) -> None:
    assert not Affine.of([1.0, bad], 0.0).finite and not Affine.of(1.0, [bad, 0.0]).finite
    assert Affine.of([1.0, 2.0], 3.0).finite


def test_a_coefficient_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        ranked(np.ones((2, 3)), 1)
    assert ranked(np.ones((1, 3)), 1).shape == (3,)
    assert along([1.0, 2.0], 1, 4).shape == (1, 2, 1, 1)


def test_equality_is_of_maps() -> None:
    assert Affine.of(2.0, [[1.0]]) == Affine.of([[2.0]], 1.0)
    assert Affine.of([2.0, 2.0], 0.0) == Affine.of(2.0, 0.0)
    assert Affine.of([2.0, 3.0], 0.0) != Affine.of([[2.0], [3.0]], 0.0)
    assert Affine.of(1.0, 0.0) != 1.0
