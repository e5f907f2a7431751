"""Whether a window reaches over the border: by the formula of the specification, against counting windows."""

from __future__ import annotations

import itertools

import onnx_ir as ir
import pytest

from bnfold.graph import Op
from bnfold.rules.padding import reaches_over


def window(size: int | None, taps: int, stride: int, dilation: int, **attributes: object) -> Op:
    x = ir.Value(name="x", shape=ir.Shape([1, 1, size]), type=ir.TensorType(ir.DataType.FLOAT))
    given = {"strides": [stride], "dilations": [dilation], **attributes}
    return Op(ir.Node("", "AveragePool", [x], [ir.convenience.convert_attribute(k, v) for k, v in given.items()]))


def reaches(size: int, taps: int, stride: int, dilation: int, *, same: bool, ceil: bool) -> bool:
    """Lay the windows one by one."""
    extent = (taps - 1) * dilation + 1
    starts = range(0, size, stride) if same else range(0, size - extent + stride * ceil, stride) if ceil else ()
    return any(start + extent > size for start in starts)


GRID = list(itertools.product(range(4, 9), (1, 2, 3), (1, 2, 3), (1, 2)))


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("ceil", [False, True])
def test_a_window_reaches_over_where_one_is_laid_there(same: bool, ceil: bool) -> None:
    for size, taps, stride, dilation in GRID:
        if (taps - 1) * dilation + 1 > size:
            continue
        auto = "SAME_UPPER" if same else "NOTSET"
        op = window(size, taps, stride, dilation, auto_pad=auto, ceil_mode=int(ceil))
        assert reaches_over(op, [taps]) == reaches(size, taps, stride, dilation, same=same, ceil=ceil), op.node


@pytest.mark.parametrize("same", [False, True])
def test_of_an_unknown_size_it_may_unless_no_size_would(same: bool) -> None:
    for taps, stride, dilation in itertools.product((1, 2, 3), (1, 2), (1, 2)):
        op = window(None, taps, stride, dilation, auto_pad="SAME_LOWER" if same else "NOTSET", ceil_mode=1)
        assert reaches_over(op, [taps]) == (taps > 1 if same else stride > 1)


def test_pads_reach_over_whatever_the_size() -> None:
    assert reaches_over(window(8, 3, 1, 1, pads=[0, 1]), [3])
    assert not reaches_over(window(8, 3, 1, 1, pads=[0, 0]), [3])
