"""The algebra of linear layers on one input: sums and compositions of convolutions and products.

A kernel is a set of taps. On each spatial axis the output at position o reads the input at

    o·stride + first + dilation·j        for tap j, zero outside the input

and there are as many positions as windows fit: (size + slack − 1) // stride + 1. A transposed convolution is the
adjoint: the input at position i is written to i·stride + first + dilation·j. A product is a kernel without spatial
axes. Then

    sum           the taps of all summands on one grid; biases added; equal stride and slack
    composition   taps convolve; a bias before zero padding would differ at the border, so it must be zero there

Grouped weights W[out, in/groups, taps…] become as dense as the greatest common divisor of the groups asks for. What a
layer costs follows from its form alone, so that a merge is priced before any weight is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnfold.arrays import Float64
from bnfold.merging.costs import Cost

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """The geometry of one linear layer: channels, groups, and taps on every spatial axis."""

    outs: int
    ins: int
    groups: int = 1
    taps: Ints = ()
    stride: Ints = ()
    dilation: Ints = ()
    first: Ints = ()
    slack: Ints = ()
    transposed: bool = False

    @property
    def spans(self) -> Ints:
        """The distance between the first and the last tap on every axis."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.taps, strict=True))

    @property
    def pads(self) -> Ints:
        """ONNX's pads: zeros before every axis, then after every axis."""
        before = tuple(-start for start in self.first)
        return before + tuple(t - b + s for t, b, s in zip(self.slack, before, self.spans, strict=True))

    @property
    def padded(self) -> bool:
        """Whether a window may reach outside the input."""
        return any(self.pads)

    @property
    def pointwise(self) -> bool:
        """Whether every position depends on the same position alone."""
        return all(tap == 1 for tap in self.taps) and all(step == 1 for step in self.stride) and not self.padded

    @property
    def bordered(self) -> bool:
        """Whether a constant input gives an output that differs at the border."""
        return not self.pointwise if self.transposed else self.padded

    @property
    def weights(self) -> int:
        """The number of weights."""
        return self.outs * self.ins // self.groups * math.prod(self.taps)

    def cost(self, positions: float) -> Cost:
        """What the layer costs with this many positions of its output: values read or written once, weights once."""
        steps = math.prod(self.stride)
        inputs = positions / steps if self.transposed else positions * steps
        macs = self.weights * (inputs if self.transposed else positions)
        moved = positions * self.outs + inputs * self.ins + self.weights
        deep = 1 < self.groups == self.ins
        return Cost(0.0 if deep else macs, macs if deep else 0.0, moved)


@dataclass(frozen=True)
class Kernel:
    """One linear layer, y = W⊛x + b: weight [out, in/groups, taps…] and bias [out], in float64."""

    form: Form
    weight: Float64
    bias: Float64

    def then(self, scale: Float64, shift: Float64) -> Kernel:
        """Return the layer with an affine of its output channels applied; both are vectors of size 1 or `outs`."""
        wide = scale.reshape(-1, *(1,) * (self.weight.ndim - 1))
        return replace(self, weight=wide * self.weight, bias=scale * self.bias + shift)

    def regrouped(self, groups: int) -> Kernel:
        """Return the same layer written with fewer groups, the blocks between them filled with zeros."""
        form = self.form
        if groups == form.groups:
            return self
        blocks, depth = form.groups // groups, self.weight.shape[1]
        wide = np.zeros((form.outs, depth * blocks, *form.taps))
        for out in range(form.outs):
            start = (out * form.groups // form.outs) % blocks * depth
            wide[out, start : start + depth] = self.weight[out]
        return Kernel(replace(form, groups=groups), wide, self.bias)


def pointwise(form: Form, scale: Float64, shift: Float64) -> Kernel:
    """Return an affine of the channels as a kernel of one tap, for the spatial axes of `form`; vectors as in `then`."""
    ones, zeros = (1,) * len(form.stride), (0,) * len(form.stride)
    channels = form.ins
    weight, bias = (np.broadcast_to(a.reshape(-1), (channels,)).astype(np.float64) for a in (scale, shift))
    flat = Form(channels, channels, channels, ones, ones, ones, zeros, zeros, form.transposed)
    return Kernel(flat, weight.reshape(channels, 1, *ones), bias)


def total_form(summands: Sequence[Form]) -> Form | str:
    """Return the form of the one layer that is the sum of several on the same input, or why there is none."""
    head = summands[0]
    if any(len(f.stride) != len(head.stride) or f.transposed != head.transposed for f in summands):
        return "the branches differ in kind"
    if any((f.outs, f.ins) != (head.outs, head.ins) for f in summands):
        return "the branches differ in channels"
    if any(f.stride != head.stride for f in summands):
        return "the branches differ in stride"
    if any(f.slack != head.slack for f in summands):
        return "the branches' windows are not centred on each other"
    reads = [
        {f.first[axis] + offset for f in summands for offset in _offsets(f, axis)} for axis in range(len(head.stride))
    ]
    grids = [_spacing(found, head.slack[axis]) for axis, found in enumerate(reads)]
    groups = math.gcd(*(f.groups for f in summands))
    return _on(grids, head.outs, head.ins, groups, head.stride, head.slack, head.transposed)


def total(summands: Sequence[Kernel]) -> Kernel:
    """Return the sum of kernels whose forms have a `total_form`."""
    form = total_form([k.form for k in summands])
    assert isinstance(form, Form)
    weight = np.zeros((form.outs, form.ins // form.groups, *form.taps))
    for kernel in summands:
        weight[_at(form, kernel.form, kernel.form.first)] += kernel.regrouped(form.groups).weight
    return Kernel(form, weight, np.sum([k.bias for k in summands], axis=0))


def composed_form(outer: Form, inner: Form) -> Form | str:
    """Return the form of the one layer that is `outer` after `inner`, or why there is none."""
    if len(outer.stride) != len(inner.stride):
        return "the layers differ in kind"
    if outer.ins != inner.outs:
        return "the channels do not meet"
    if outer.transposed or inner.transposed:
        if not (outer.pointwise or inner.pointwise):
            return "a transposed convolution composes with a pointwise one only"
    elif outer.padded and (inner.padded or any(inner.slack)):
        return "zeros are written between them"
    stride = tuple(s * t for s, t in zip(inner.stride, outer.stride, strict=True))
    # Nested floors are one: ((n + t − 1)//s + t′)//s′ = (n + t + s·t′ − 1)//(s·s′).
    slack = tuple(t + s * u for t, s, u in zip(inner.slack, inner.stride, outer.slack, strict=True))
    reads = [
        {start + offset for start in _starts(outer, inner, axis) for offset in _offsets(inner, axis)}
        for axis in range(len(stride))
    ]
    grids = [_spacing(found, slack[axis]) for axis, found in enumerate(reads)]
    transposed = any(f.transposed and not f.pointwise for f in (outer, inner))
    return _on(grids, outer.outs, inner.ins, math.gcd(outer.groups, inner.groups), stride, slack, transposed)


def composed(outer: Kernel, inner: Kernel) -> Kernel:
    """Return the composition of kernels whose forms have a `composed_form`; a bias that meets a border is zero."""
    form = composed_form(outer.form, inner.form)
    assert isinstance(form, Form) and not (outer.form.bordered and np.any(inner.bias != 0.0))
    weight = np.zeros((form.outs, form.ins // form.groups, *form.taps))
    first, second = (kernel.regrouped(form.groups).weight for kernel in (inner, outer))
    blocks = first.reshape(form.groups, inner.form.outs // form.groups, -1)
    rows = (form.groups, form.outs // form.groups, blocks.shape[1])
    starts = [_starts(outer.form, inner.form, axis) for axis in range(len(form.stride))]
    for tap in np.ndindex(*outer.form.taps):
        at = _at(form, inner.form, tuple(starts[axis][place] for axis, place in enumerate(tap)))
        product = np.matmul(second[(slice(None), slice(None), *tap)].reshape(rows), blocks)
        weight[at] += product.reshape(form.outs, form.ins // form.groups, *inner.form.taps)
    response = second.sum(axis=tuple(range(2, second.ndim))).reshape(rows)
    constant = np.matmul(response, inner.bias.reshape(form.groups, -1, 1)).reshape(-1)
    return Kernel(form, weight, constant + outer.bias)


def _starts(outer: Form, inner: Form, axis: int) -> list[int]:
    """Where the first tap of `inner` stands for every tap of `outer`."""
    step, reads = inner.stride[axis], _offsets(outer, axis)
    return [inner.first[axis] + step * (outer.first[axis] + read) for read in reads]


Grid = tuple[int, int, int]


def _on(
    grids: Sequence[Grid], outs: int, ins: int, groups: int, stride: Ints, slack: Ints, transposed: bool
) -> Form:
    """Build the form whose taps are all the places of a grid on every axis."""
    first, dilation, taps = (tuple(grid[part] for grid in grids) for part in range(3))
    return Form(outs, ins, groups, taps, stride, dilation, first, slack, transposed)


def _spacing(reads: set[int], slack: int) -> Grid:
    """Return first tap, spacing and size of the coarsest grid that holds every tap and needs no negative padding."""
    low, high = min(*reads, 0), max(*reads, -slack)
    step = math.gcd(*(read - low for read in (*reads, high))) or 1
    return low, step, (high - low) // step + 1


def _offsets(form: Form, axis: int) -> list[int]:
    return [form.dilation[axis] * tap for tap in range(form.taps[axis])]


def _at(form: Form, part: Form, first: Ints) -> tuple[Any, ...]:
    """Index the taps of `part`, the first of them at `first`, in a weight of `form`, for all channels."""
    places = [
        [(first[axis] + offset - form.first[axis]) // form.dilation[axis] for offset in _offsets(part, axis)]
        for axis in range(len(form.stride))
    ]
    return (slice(None), slice(None), *np.ix_(*places))
