"""One small random graph per operator: what `tests/test_laws.py` reads the laws on.

A maker draws a text in the notation of `tests.graphs` whose node of that operator is to be judged. Sizes are small and
several of them equal, so that an axis taken for another of the same size shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass
class Draw:
    """A source of random choices."""

    rng: np.random.Generator

    def size(self, low: int = 1, high: int = 4) -> int:
        return int(self.rng.integers(low, high + 1))

    def of(self, *choices: T) -> T:
        return choices[int(self.rng.integers(len(choices)))]

    def some(self, items: Sequence[T], least: int = 1) -> list[T]:
        """A random part of `items`, in order."""
        count = self.size(least, max(least, len(items)))
        return [items[k] for k in sorted(self.rng.choice(len(items), count, replace=False))]

    def shape(self, rank: int, low: int = 1, high: int = 4) -> list[int]:
        return [self.size(low, high) for _ in range(rank)]

    def perm(self, rank: int) -> list[int]:
        return [int(axis) for axis in self.rng.permutation(rank)]


@dataclass(frozen=True)
class Made:
    """A text with what else it takes to build it, and how far the evaluation of both sides may differ.

    At most 10³ operations on values below 10³: rounding in float64 stays below 10⁶·2⁻⁵³.
    """

    text: str
    opset: int = 21
    constants: dict[str, Any] = field(default_factory=dict)
    checked: bool = True
    tolerance: float = 1e-9


Maker = Callable[[Draw], Made]


def dims(shape: Sequence[int]) -> str:
    return ",".join(map(str, shape))


def value(name: str, shape: Sequence[int]) -> str:
    return f"T[{dims(shape)}] {name}"


def graph(call: str, *inputs: str, outputs: str = "", rank: int = 4, **options: Any) -> Made:
    """A graph of one call that assigns to y (of any shape of `rank`)."""
    named = ",".join(f"d{axis}" for axis in range(rank))
    output = f"T[{named}] y" if rank else "T y"
    return Made(f"({', '.join(inputs)}) => ({outputs or output}) {{ {call} }}", **options)


def _quantized(draw: Draw, shape: Sequence[int], op: str, call: str, *inputs: str, rank: int) -> Made:
    """`call` with its weight w dequantized per tensor, per axis or per block."""
    rng, kind = draw.rng, draw.of(np.int8, np.uint8, np.int16)
    limits = np.iinfo(kind)
    constants: dict[str, Any] = {"q": rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)}
    axis, how = draw.size(0, len(shape) - 1), draw.of("tensor", "axis", "block")
    sizes: list[int] = [] if how == "tensor" else [shape[axis]] if how == "axis" else list(shape)
    attributes = "" if how == "tensor" else f" <axis = {axis}>"
    if how == "block":
        sizes[axis] = -(-shape[axis] // 2)
        attributes = f" <axis = {axis}, block_size = 2>"
    constants["step"] = rng.uniform(0.01, 0.1, sizes)
    zero = draw.of(True, False)
    if zero:
        constants["zero"] = rng.integers(limits.min, limits.max, sizes, dtype=kind, endpoint=True)
    dequantize = f"w = DequantizeLinear{attributes} (q, step{', zero' if zero else ''})"
    return graph(f"{dequantize}  y = {op} {call}", *inputs, rank=rank, constants=constants)


def _weight(draw: Draw, shape: Sequence[int], op: str, call: str, *inputs: str, rank: int) -> Made:
    if draw.size(0, 3) == 0:
        return _quantized(draw, shape, op, call, *inputs, rank=rank)
    return graph(f"y = {op} {call.replace('w', f'w[{dims(shape)}]', 1)}", *inputs, rank=rank)


def conv(draw: Draw) -> Made:
    space, group = draw.size(1, 3), draw.of(1, 1, 2)
    cin, cout, kernel = draw.size(1, 2), draw.size(1, 2), draw.shape(space, 1, 3)
    attributes = [f"group = {group}"]
    border = draw.of("none", "none", "pads", "auto", "stretched")
    if border == "pads":
        attributes.append(f"pads = [{dims(draw.shape(2 * space, 0, 1))}]")
    if border == "auto":
        attributes.append(f'auto_pad = "{draw.of("SAME_UPPER", "SAME_LOWER", "VALID")}"')
    if border == "stretched":
        attributes.append(f"strides = [{dims(draw.shape(space, 1, 2))}], dilations = [{dims(draw.shape(space, 1, 2))}]")
    bias = draw.of("", f", b[{cout * group}]")
    return _weight(draw, [cout * group, cin, *kernel], "Conv", f"<{', '.join(attributes)}> (x, w{bias})",
                   value("x", [2, cin * group, *[6] * space]), rank=space + 2)  # fmt: skip


def conv_transpose(draw: Draw) -> Made:
    space, group = draw.size(1, 2), draw.of(1, 2)
    cin, cout, kernel = draw.size(1, 2), draw.size(1, 2), draw.of([1] * space, draw.shape(space, 1, 3))
    attributes = [f"group = {group}"]
    if draw.of(True, False):
        attributes.append(f"strides = [{dims([2] * space)}]")
        attributes.append(f"output_padding = [{dims(draw.shape(space, 0, 1))}]")
    if draw.size(0, 3) == 0:
        attributes.append(f"pads = [{dims([0] * space + [1] * space)}]")
    bias = draw.of("", f", b[{cout * group}]")
    return _weight(draw, [cin * group, cout, *kernel], "ConvTranspose", f"<{', '.join(attributes)}> (x, w{bias})",
                   value("x", [2, cin * group, *[4] * space]), rank=space + 2)  # fmt: skip


def gemm(draw: Draw) -> Made:
    m, k, n, ta, tb = draw.size(), draw.size(), draw.size(), draw.of(0, 1), draw.of(0, 1)
    a, b = [k, m] if ta else [m, k], [n, k] if tb else [k, n]
    bias = draw.of("", f", c[{n}]", f", c[1,{n}]", f", c[{m},1]", f", c[{m},{n}]", ", c[]", ", c[1]", ", u")
    computed = [value("u", draw.of([m, n], [n], [m, 1], [1, n]))] if bias == ", u" else []
    attributes = f"<transA = {ta}, transB = {tb}, alpha = {draw.of(1.0, 0.5, -2.0)}, beta = {draw.of(1.0, 0.25)}>"
    if draw.of(True, True, False):
        return _weight(draw, b, "Gemm", f"{attributes} (x, w{bias})", value("x", a), *computed, rank=2)
    return _weight(draw, a, "Gemm", f"{attributes} (w, x{bias})", value("x", b), *computed, rank=2)


def matmul(draw: Draw) -> Made:
    m, k, n, batch = draw.size(), draw.size(), draw.size(), draw.shape(draw.size(0, 2))
    shorter = [draw.of(size, 1) for size in batch][draw.size(0, len(batch)) :]
    left, right = draw.of((batch, shorter), (shorter, batch))
    a, b, rank = [*left, m, k], [*right, k, n], len(batch) + 2
    kind = draw.of("left", "right", "right", "both", "attention", "vector", "vector")
    if kind == "vector":
        call, held, moved = draw.of(("(w, x)", [k], b), ("(w, x)", a, [k]), ("(x, w)", [k], a), ("(x, w)", b, [k]))
        if draw.of(True, False):
            left, right = (held, moved) if call == "(w, x)" else (moved, held)
            return graph("y = MatMul(x, z)", value("x", left), value("z", right), rank=len(held) + len(moved) - 2)
        return _weight(draw, held, "MatMul", call, value("x", moved), rank=len(held) + len(moved) - 2)
    if kind == "left":
        return _weight(draw, a, "MatMul", "(w, x)", value("x", b), rank=rank)
    if kind == "right":
        return _weight(draw, b, "MatMul", "(x, w)", value("x", a), rank=rank)
    if kind == "both":
        return graph("y = MatMul(x, z)", value("x", a), value("z", b), rank=rank)
    return _attention(draw, a, b, rank)


def _attention(draw: Draw, a: list[int], b: list[int], rank: int) -> Made:
    """A product with a Softmax, over the contracted axis or another, on either side, directly or transposed."""
    if draw.of(True, False):
        over, between = draw.of(-1, -1, -2), draw.of("Identity", "Neg")
        if draw.size(0, 3) == 0:  # the default is all axes but the first before opset 13, then the last
            return graph("p = Softmax(s)  y = MatMul(p, x)", value("s", a), value("x", b), rank=rank,
                         opset=draw.of(21, 11))  # fmt: skip
        return graph(f"p = Softmax <axis = {over}> (s)  i = {between}(p)  y = MatMul(i, x)", value("s", a),
                     value("x", b), rank=rank, opset=draw.of(21, 11) if over == -1 else 21)  # fmt: skip
    if draw.of(True, False):
        return graph(f"p = Softmax <axis = {draw.of(-2, -2, -1)}> (s)  y = MatMul(x, p)", value("x", a), value("s", b),
                     rank=rank, opset=draw.of(21, 11))  # fmt: skip
    flipped = [*b[:-2], b[-1], b[-2]]
    perm = [*range(len(b) - 2), len(b) - 1, len(b) - 2]
    return graph(f"p = Softmax <axis = {draw.of(-1, -1, -2)}> (s)  t = Transpose <perm = [{dims(perm)}]> (p)"
                 "  y = MatMul(x, t)", value("x", a), value("s", flipped), rank=rank)  # fmt: skip


def einsum(draw: Draw) -> Made:
    equation = draw.of(
        "bij,jk->bik", "bij,bjk->bik", "ij,jk->ki", "bhid,hde->bhie", "ij,kj->ik", "bic,c->bic", "ab,b->a", "ab,ab->",
        "abc,cd->ad", "aa,a->a", "aab,b->a", "a,aab->b",
    )  # fmt: skip
    if draw.size(0, 3) == 0:
        return _einsum_of_two(draw)
    terms, y = equation.split("->")
    x, w = terms.split(",")
    sizes = {label: draw.size(1, 3) for label in "abcdehijk"}
    if draw.size(0, 3) == 0:
        xs, w = draw.shape(draw.size(1, 3)), [draw.size(), draw.size()]
        call = f'y = Einsum <equation = "...j,jk{draw.of("->...k", "")}"> (x, w[{dims([xs[-1], w[1]])}])'
        return graph(call, value("x", xs), rank=len(xs))
    short = {label: draw.of(*[size] * 4, 1) for label, size in sizes.items()}  # which broadcasts
    lengths = (sizes, short)[:: draw.of(1, -1)]
    xs, ws = ([of[label] for label in term] for term, of in zip((x, w), lengths, strict=True))
    if draw.of(True, False):
        swapped = f"{w},{x}->{y}"
        return graph(f'y = Einsum <equation = "{swapped}"> (w[{dims(ws)}], x)', value("x", xs), rank=len(y))
    return graph(f'y = Einsum <equation = "{equation}"> (x, w[{dims(ws)}])', value("x", xs), rank=len(y))


def _einsum_of_two(draw: Draw) -> Made:
    """A product of two values, one of them now and then a Softmax over the label that is summed."""
    equation = draw.of("bij,bjk->bik", "bij,bkj->bik", "bhij,bhjd->bhid", "bi,bi->b", "ij,jk", "bi,bj->bij",
                       "bij,bij->b", "bi,bij->bi", "bij,bi->bij")  # fmt: skip
    sizes = {label: draw.size(1, 3) for label in "bhijkd"}
    short = {label: draw.of(*[size] * 4, 1) for label, size in sizes.items()}
    of = (sizes, short)[:: draw.of(1, -1)]
    left, right = ([of[k][label] for label in term] for k, term in enumerate(equation.split("->")[0].split(",")))
    rank = len(equation.split("->")[1]) if "->" in equation else 2
    call = f'Einsum <equation = "{equation}">'
    if draw.of(True, False):
        body = f"p = Softmax <axis = {draw.of(-1, -1, 0, -2 if len(left) > 1 else 0)}> (s)  y = {call} (p, x)"
        return graph(body, value("s", left), value("x", right), rank=rank)
    return graph(f"y = {call} (x, z)", value("x", left), value("z", right), rank=rank)


def reshape(draw: Draw) -> Made:
    source, target = draw.of(
        ([2, 6, 4], [2, 4, 6]), ([2, 3, 4], [6, 4]), ([2, 12], [2, 3, 4]), ([2, 3, 4], [2, 12]), ([4, 4], [2, 8]),
        ([2, 3, 1, 4], [2, 3, 4]), ([3, 2, 2], [3, 4]), ([2, 2, 6], [4, 2, 3]), ([24], [2, 3, 4]), ([2, 4], [2, 1, 4]),
    )  # fmt: skip
    return graph(f"y = Reshape(x, {{{dims(target)}}})", value("x", source), rank=len(target))


def transpose(draw: Draw) -> Made:
    rank = draw.size(2, 4)
    return graph(f"y = Transpose <perm = [{dims(draw.perm(rank))}]> (x)", value("x", draw.shape(rank)), rank=rank)


def flatten(draw: Draw) -> Made:
    rank = draw.size(2, 4)
    return graph(f"y = Flatten <axis = {draw.size(-rank, rank)}> (x)", value("x", draw.shape(rank)), rank=2)


def squeeze(draw: Draw) -> Made:
    shape = draw.of([2, 1, 3], [1, 3, 1], [2, 3, 1, 1])
    axes = draw.some([axis for axis, size in enumerate(shape) if size == 1])
    return graph(f"y = Squeeze(x, {{{dims(axes)}}})", value("x", shape), rank=len(shape) - len(axes))


def unsqueeze(draw: Draw) -> Made:
    axes = draw.some([0, 1, 2, -1])[:2]
    return graph(f"y = Unsqueeze(x, {{{dims(axes)}}})", value("x", draw.shape(2)), rank=2 + len(axes))


def depth_to_space(draw: Draw) -> Made:
    call = f'y = DepthToSpace <blocksize = 2, mode = "{draw.of("DCR", "CRD")}"> (x)'
    return graph(call, value("x", [2, 4 * draw.size(1, 3), 2, 3]))


def space_to_depth(draw: Draw) -> Made:
    return graph("y = SpaceToDepth <blocksize = 2> (x)", value("x", [2, draw.size(1, 3), 4, 2]))


def gather(draw: Draw) -> Made:
    shape, axis = draw.shape(3, 2), draw.size(0, 2)
    index = draw.rng.integers(-shape[axis], shape[axis], draw.of((), (2,), (4,), (2, 2)))
    call = f"y = Gather <axis = {axis}> (x, i)"
    if index.ndim and draw.size(0, 3) == 0:
        return graph(call, value("x", shape), f"int64[{dims(index.shape)}] i", rank=2 + index.ndim)
    return graph(call, value("x", shape), rank=2 + index.ndim, constants={"i": index})


def slice_(draw: Draw) -> Made:
    axes = draw.some([0, 1, 2])
    starts, ends = draw.shape(len(axes), -4, 3), draw.shape(len(axes), -4, 5)
    steps = [draw.of(1, 1, 2, -1) for _ in axes]
    for k, step in enumerate(steps):
        starts[k], ends[k] = (draw.size(-2, 3), -9) if step < 0 else (draw.size(-4, 1), draw.of(-1, 3, 9))
    call = f"y = Slice(x, {{{dims(starts)}}}, {{{dims(ends)}}}, {{{dims(axes)}}}, {{{dims(steps)}}})"
    return graph(call, value("x", [3, 4, 4]), rank=3)


def expand(draw: Draw) -> Made:
    target = draw.shape(3, 2)
    source = [draw.of(size, 1) for size in target][draw.size(0, 1) :]
    return graph(f"y = Expand(x, {{{dims(target)}}})", value("x", source), rank=3)


def tile(draw: Draw) -> Made:
    return graph(f"y = Tile(x, {{{dims(draw.shape(3, 1, 2))}}})", value("x", draw.shape(3)), rank=3)


def split(draw: Draw) -> Made:
    axis, first, second = draw.size(-3, 2), draw.size(1, 3), draw.size(1, 3)
    shape = [2, 4, 4]
    shape[axis] = first + second
    outputs = "T[a,b,c] y, T[d,e,f] z"
    if first >= second and draw.of(True, False) and first - second <= 1:
        return graph(f"y, z = Split <axis = {axis}, num_outputs = 2> (x)", value("x", shape), outputs=outputs)
    return graph(f"y, z = Split <axis = {axis}> (x, {{{first},{second}}})", value("x", shape), outputs=outputs)


MAKERS: dict[str, Maker] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul, "Einsum": einsum,
    "Reshape": reshape, "Transpose": transpose, "Flatten": flatten, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
    "DepthToSpace": depth_to_space, "SpaceToDepth": space_to_depth, "Gather": gather, "Slice": slice_,
    "Expand": expand, "Tile": tile, "Split": split,
}  # fmt: skip
