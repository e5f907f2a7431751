"""Every law of the algebra of kernels against a convolution written out by its definition, in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bnfold.arrays import Float64
from bnfold.merging.costs import DEPTHWISE, MOVE, Cost
from bnfold.merging.kernels import Form, Kernel, composed, composed_form, pointwise, total, total_form

# A few roundings of float64 on values below 2^10.
TOLERANCE = 2.0**-38


def applied(kernel: Kernel, x: Float64) -> Float64:
    """What ONNX's Conv, ConvTranspose or MatMul computes with the form's attributes, position by position."""
    form = kernel.form
    rank = len(form.stride)
    before, after = form.pads[:rank], form.pads[rank:]
    assert min(form.pads, default=0) >= 0
    blocks = kernel.weight.reshape(form.groups, -1, *kernel.weight.shape[1:])
    parts = x.reshape(len(x), form.groups, -1, *x.shape[2:])
    sizes = x.shape[2:]
    spans = form.spans
    if form.transposed:
        full = [s * (n - 1) + span + 1 for s, n, span in zip(form.stride, sizes, spans, strict=True)]
        grid = [range(n) for n in sizes]
        result = np.zeros((len(x), form.outs, *full))
    else:
        padded = [n + b + a for n, b, a in zip(sizes, before, after, strict=True)]
        grid = [range((n - span - 1) // s + 1) for n, span, s in zip(padded, spans, form.stride, strict=True)]
        wide = np.zeros((*parts.shape[:3], *padded))
        wide[(..., *(slice(b, b + n) for b, n in zip(before, sizes, strict=True)))] = parts
        result = np.zeros((len(x), form.outs, *(len(axis) for axis in grid)))
    for place in itertools.product(*grid):
        for tap in np.ndindex(*form.taps):
            factor = blocks[(..., *tap)]
            at = tuple(p * s + d * t for p, s, d, t in zip(place, form.stride, form.dilation, tap, strict=True))
            value = parts[(..., *place)] if form.transposed else wide[(..., *at)]
            response = np.einsum("goi,ngi->ngo", factor, value).reshape(len(x), -1)
            result[(slice(None), slice(None), *(at if form.transposed else place))] += response
    if form.transposed:
        window = (slice(b, n - a) for b, n, a in zip(before, full, after, strict=True))
        result = result[(slice(None), slice(None), *window)]
    biased: Float64 = result + kernel.bias.reshape(-1, *(1,) * rank)
    return biased


@st.composite
def forms(draw: st.DrawFn, rank: int, outs: int, ins: int, **fixed: Any) -> Form:
    """A form whose channels are given; every padding, kernel size, stride and dilation."""
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if outs % g == 0 and ins % g == 0]))
    axes = range(rank)
    taps = tuple(draw(st.integers(1, 4)) for _ in axes)
    dilation = tuple(draw(st.integers(1, 3)) if tap > 1 else 1 for tap in taps)
    stride = tuple(draw(st.integers(1, 3)) for _ in axes)
    pads = [(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for _ in axes]
    slack = tuple(sum(pad) - d * (k - 1) for pad, d, k in zip(pads, dilation, taps, strict=True))
    form = Form(outs, ins, groups, taps, stride, dilation, tuple(-b for b, _ in pads), slack)
    return replace(form, **fixed)


def kernel(form: Form, seed: int, biased: bool = True) -> Kernel:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(form.outs, form.ins // form.groups, *form.taps))
    return Kernel(form, weight, rng.normal(size=form.outs) * biased)


def same(ours: Float64, theirs: Float64) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def sample(form: Form, seed: int, size: int = 9) -> Float64:
    return np.random.default_rng(seed).normal(size=(2, form.ins, *(size + axis for axis in range(len(form.stride)))))


def has_positions(form: Form, sizes: tuple[int, ...]) -> bool:
    """Whether the output is more than nothing on every axis."""
    axes = zip(form.stride, sizes, form.slack, strict=True)
    return all(s * (n - 1) + 1 > t if form.transposed else n > 0 and n + t >= 1 for s, n, t in axes)


seeds = st.integers(0, 2**16)
channels = st.sampled_from([1, 2, 4])


# Sums


@settings(max_examples=60)
@given(st.data(), st.integers(0, 2), channels, channels, seeds, st.booleans())
def test_a_sum_of_kernels_is_a_kernel(
    data: st.DataObject, rank: int, outs: int, ins: int, seed: int, transposed: bool
) -> None:
    """Any two or three layers whose windows agree in number, however they are padded, spaced and grouped."""
    head = data.draw(forms(rank, outs, ins, transposed=transposed and rank > 0))
    others = [
        data.draw(forms(rank, outs, ins, stride=head.stride, transposed=head.transposed)) for _ in range(2)
    ]
    # The rear padding is what makes the windows agree; ONNX has none below zero.
    summands = [head] + [replace(form, slack=head.slack) for form in others]
    summands = [form for form in summands if min(form.pads, default=0) >= 0]
    assume(len(summands) > 1)
    form = total_form(summands)
    assert isinstance(form, Form)
    kernels = [kernel(each, seed + index) for index, each in enumerate(summands)]
    x = sample(head, seed)
    assume(has_positions(head, x.shape[2:]))
    result = total(kernels)
    assert result.form == form and result.weight.size == form.weights
    same(applied(result, x), np.sum([applied(each, x) for each in kernels], axis=0))


@settings(max_examples=20)
@given(st.data(), st.integers(0, 2), channels, seeds)
def test_an_affine_of_the_channels_is_a_kernel(data: st.DataObject, rank: int, size: int, seed: int) -> None:
    form = data.draw(forms(rank, size, size))
    rng = np.random.default_rng(seed)
    scale, shift = rng.normal(size=size), rng.normal(size=1)
    x = sample(form, seed)
    wide_scale, wide_shift = (a.reshape(-1, *(1,) * rank) for a in (scale, shift))
    same(applied(pointwise(form, scale, shift), x), wide_scale * x + wide_shift)
    assume(has_positions(form, x.shape[2:]))
    layer = kernel(form, seed)
    same(applied(layer.then(scale, shift), x), wide_scale * applied(layer, x) + wide_shift)
    same(applied(layer.regrouped(1), x), applied(layer, x))


SQUARE = Form(4, 4, 1, (3, 3), (1, 1), (1, 1), (-1, -1), (0, 0))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(SQUARE, taps=(1, 1), first=(0, 0)), Form(4, 4, 1, (3, 3), (1, 1), (1, 1), (-1, -1), (0, 0))),
        (replace(SQUARE, taps=(1, 3), first=(0, -1)), SQUARE),
        (replace(SQUARE, taps=(3, 1), first=(-1, 0), groups=4), SQUARE),
        (replace(SQUARE, dilation=(2, 2), first=(-2, -2)), replace(SQUARE, taps=(5, 5), first=(-2, -2))),
        (replace(SQUARE, taps=(2, 2), first=(0, 0)), replace(SQUARE)),  # padded behind only: off centre, but it fits
        (replace(SQUARE, taps=(2, 2), first=(-1, -1), slack=(1, 1)), "not centred"),
        (replace(SQUARE, stride=(2, 2)), "stride"),
        (replace(SQUARE, outs=8), "channels"),
        (replace(SQUARE, transposed=True), "kind"),
        (Form(4, 4), "kind"),
    ],
)  # fmt: skip
def test_the_form_of_a_sum(other: Form, says: Form | str) -> None:
    found = total_form([SQUARE, other])
    assert found == says if isinstance(says, Form) else says in str(found)


# Compositions


def outer_and_inner(data: st.DataObject, rank: int, sizes: tuple[int, int, int], turned: int) -> tuple[Form, Form]:
    """Two layers one after the other; `turned` makes the inner, the outer or neither of them a transposed one."""
    outs, middle, ins = sizes
    inner, outer = data.draw(forms(rank, middle, ins)), data.draw(forms(rank, outs, middle))
    flat = pointwise(Form(1, 1, 1, stride=(1,) * rank), np.ones(1), np.zeros(1)).form
    if turned == 1:
        inner, outer = replace(inner, transposed=True), replace(flat, outs=outs, ins=middle, groups=1)
    elif turned == 2:
        inner, outer = replace(flat, outs=middle, ins=ins, groups=1), replace(outer, transposed=True)
    elif data.draw(st.booleans()):  # most random pairs pad twice; this one may not
        unpadded = (0,) * rank
        outer = replace(outer, first=unpadded, slack=tuple(-span for span in outer.spans))
    return outer, inner


@settings(max_examples=100)
@given(st.data(), st.integers(0, 2), st.tuples(channels, channels, channels), seeds, st.integers(0, 3))
def test_a_composition_of_kernels_is_a_kernel(
    data: st.DataObject, rank: int, sizes: tuple[int, int, int], seed: int, turned: int
) -> None:
    outer, inner = outer_and_inner(data, rank, sizes, turned if rank else 0)
    form = composed_form(outer, inner)
    assume(isinstance(form, Form))
    assert isinstance(form, Form)
    x = sample(inner, seed, 13)
    assume(has_positions(inner, x.shape[2:]))
    first, second = kernel(inner, seed, biased=not outer.bordered), kernel(outer, seed + 1)
    between = applied(first, x)
    assume(has_positions(outer, between.shape[2:]))
    result = composed(second, first)
    assert result.form == form and result.weight.size == form.weights
    same(applied(result, x), applied(second, between))


@pytest.mark.parametrize(
    ("outer", "inner", "says"),
    [
        (SQUARE, replace(SQUARE, taps=(1, 1), first=(0, 0)), SQUARE),
        (replace(SQUARE, taps=(1, 1), first=(0, 0)), SQUARE, SQUARE),
        (replace(SQUARE, first=(0, 0), slack=(-2, -2)), SQUARE,
         Form(4, 4, 1, (5, 5), (1, 1), (1, 1), (-1, -1), (-2, -2))),
        (SQUARE, replace(SQUARE, taps=(1, 1), first=(0, 0), stride=(2, 2)),
         replace(SQUARE, stride=(2, 2), dilation=(2, 2), first=(-2, -2))),
        (SQUARE, SQUARE, "zeros are written"),
        (SQUARE, replace(SQUARE, first=(0, 0), slack=(-2, -2)), "zeros are written"),
        (SQUARE, replace(SQUARE, outs=8), "channels"),
        (SQUARE, replace(SQUARE, transposed=True), "pointwise"),
        (SQUARE, Form(4, 4), "kind"),
    ],
)  # fmt: skip
def test_the_form_of_a_composition(outer: Form, inner: Form, says: Form | str) -> None:
    found = composed_form(outer, inner)
    assert found == says if isinstance(says, Form) else says in str(found)


def test_a_bias_that_meets_a_border_is_a_bug_of_the_caller() -> None:
    inner = replace(SQUARE, taps=(1, 1), first=(0, 0))
    with pytest.raises(AssertionError):
        composed(kernel(SQUARE, 0), kernel(inner, 1))


# Cost


def test_the_cost_of_a_layer() -> None:
    """Multiply-accumulates, dear ones where it is depthwise; each value moved in, at every stride, and out; weights."""
    assert SQUARE.cost(64) == Cost(dense=64 * 4 * 4 * 9, moved=64 * (4 + 4) + 4 * 4 * 9)
    assert replace(SQUARE, groups=2).cost(64) == Cost(dense=64 * 4 * 2 * 9, moved=64 * (4 + 4) + 4 * 2 * 9)
    assert replace(SQUARE, groups=4).cost(64) == Cost(depthwise=64 * 4 * 9, moved=64 * (4 + 4) + 4 * 9)
    strided = replace(SQUARE, stride=(2, 2))
    assert strided.cost(16) == Cost(dense=16 * 4 * 4 * 9, moved=16 * 4 + 64 * 4 + 4 * 4 * 9)
    assert replace(strided, transposed=True).cost(64) == Cost(16 * 4 * 4 * 9, moved=64 * 4 + 16 * 4 + 4 * 4 * 9)
    assert Form(10, 20).cost(3) == Cost(dense=600, moved=3 * 30 + 200)
    cost = Cost(dense=1.0, depthwise=2.0, moved=4.0) + Cost(dense=8.0)
    assert cost.macs == 11.0 and cost.total == 9.0 + 2.0 * DEPTHWISE + 4.0 * MOVE
