"""Shapes that are computed at run time: what is known of them before, and that it is true."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnfold.graph import annotate, shape
from bnfold.graph.shapes import Size
from tests.graphs import SIZES, build, exact, feeds

_PARTS = "s = Shape(x)  n = Gather(s, {0})  c = Gather(s, {1})  h = Gather(s, {2})  w = Gather(s, {3})  "


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        # A view as exporters write it.
        ("s = Shape(x)  n = Gather(s, k)  u = Unsqueeze(n, {0})  t = Concat <axis = 0> (u, {-1})  y = Reshape(x, t)",
         ("B", "3*T*W")),
        (_PARTS + "t = Concat <axis = 0> (n, c, {-1})  y = Reshape(x, t)", ("B", 3, "T*W")),
        (_PARTS + "m = Mul(h, w)  t = Concat <axis = 0> (n, c, m)  y = Reshape(x, t)", ("B", 3, "T*W")),
        (_PARTS + "m = Mul(h, w)  t = Concat <axis = 0> (m, {-1})  y = Reshape(x, t)", ("T*W", "3*B")),
        ("t = Identity({0, -1})  y = Reshape(x, t)", ("B", "3*T*W")),
        ("s = Shape <start = 2> (x)  t = Concat <axis = 0> ({-1, 3}, s)  y = Reshape(x, t)", ("B", 3, "T", "W")),
        # And back again: what was multiplied is divided out.
        (_PARTS + "m = Mul(n, h)  t = Concat <axis = 0> (m, c, w)  r = Reshape(x, t)  q = Shape(r)  a = Gather(q, {0})"
         "  d = Div(a, h)  e = Concat <axis = 0> (d, h, {-1})  y = Reshape(r, e)", ("B", "T", "3*W")),
        (_PARTS + "d = Div(h, {2})  t = Concat <axis = 0> (n, {-1}, d)  y = Expand(o[1,1,1], t)", None),
        (_PARTS + "z = Size(x)  d = Div(z, n)  t = Concat <axis = 0> (n, d)  y = Reshape(x, t)", ("B", "3*T*W")),
        ("s = Shape(x)  r = ReduceProd <keepdims = 1> (s)  y = Reshape(x, r)", ("3*B*T*W",)),
        (_PARTS + "a, b = Split <axis = 0> (s, {2,2})  m = ReduceProd <keepdims = 1> (b)"
         "  t = Concat <axis = 0> (a, m)  y = Reshape(x, t)", ("B", 3, "T*W")),
        # Sums are numbers of their own, which cancel only as a whole.
        (_PARTS + "a = Add(h, w)  t = Concat <axis = 0> (a, n)  y = Expand(o[1,1], t)", ("(T+W)", "B")),
        (_PARTS + "a = Sub(c, {1})  t = Concat <axis = 0> (a, n)  y = Expand(o[1,1], t)", (2, "B")),
        # What comes after it follows.
        (_PARTS + "t = Concat <axis = 0> (n, c, {-1})  r = Reshape(x, t)  p = Transpose <perm = [0,2,1]> (r)"
         "  y = MatMul(p, v[3,5])", ("B", "T*W", 5)),
        (_PARTS + "t = Concat <axis = 0> (n, {-1})  r = Slice(x, {0, 0}, {1, 2}, {2, 3})  q = Reshape(r, t)"
         "  y = Gemm(q, v[6,5])", ("B", 5)),
        ("e = ReduceMax(x, {2})  s = Shape(x)  y = Expand(e, s)", ("B", 3, "T", "W")),
        ('a = Slice(x, {0}, {1}, {2})  s = Shape(x)  y = Resize <mode = "nearest"> (a, "", "", s)',
         ("B", 3, "T", "W")),
    ],
)  # fmt: skip
def test_what_is_known_of_a_shape(body: str, expected: tuple[int | str, ...] | None) -> None:
    """`None`: the size depends on a division that may leave a rest, and only its rank is known."""
    used = {"k": np.array(0)} if "k)" in body else {}
    ranks = 3 if expected is None else len(expected)
    dims = ",".join(f"d{k}" for k in range(ranks))
    proto = build(f"(T[B,3,T,W] x) => (T[{dims}] y) {{ {body} }}", constants=used, opset=18, ir_version=8)
    for dim in proto.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    model = ir.from_proto(proto)
    annotate(model)
    known = shape(model.graph.outputs[0])
    assert known is not None and len(known) == ranks
    if expected is not None:
        assert known == expected
        found = exact(proto, feeds(proto))["y"].shape
        assert found == tuple(dim if isinstance(dim, int) else eval(dim, {}, {**SIZES, "W": 2}) for dim in known)


def test_a_shape_is_known_inside_a_body() -> None:
    text = """(T[B,3,T,W] x, bool p) => (T[n,c] y) { s = Shape(x)  n = Gather(s, {0})  t = Concat <axis = 0> (n, {-1})
        y = If (p) <then_branch = one () => (T[a,b] u) { u = Reshape(x, t) },
                    else_branch = two () => (T[e,f] v) { v = Reshape(x, t) }> }"""
    proto = build(text)
    for attribute in proto.graph.node[-1].attribute:
        for dim in attribute.g.output[0].type.tensor_type.shape.dim:
            dim.Clear()
    model = ir.from_proto(proto)
    annotate(model)
    inner = [graph.outputs[0] for graph in model.graphs() if graph is not model.graph]
    assert [shape(value) for value in inner] == [("B", "3*T*W")] * 2


def test_the_algebra_of_sizes() -> None:
    a, b, two, six = Size(1, ("a",)), Size(1, ("b",)), Size(2), Size(6)
    assert a * b == b * a and str(six * a * b) == "6*a*b"
    assert (six * a * b) // (two * b) == Size(3) * a
    assert str(a // two) == "(a/2)" and a // two * two != a
    assert a + a == two * a and a - a + six != six  # zero times a name is not yet nothing
    assert str(Size(1)) == "1"
