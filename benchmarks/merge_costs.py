"""The constants of the merge's cost model, and its prediction against the time that merging saves.

    python benchmarks/merge_costs.py

Times on one thread of ONNX Runtime's CPU provider, in CPU time, which other work on the machine disturbs least.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser
from timing import timed

from bnfold.graph import annotate
from bnfold.merging.costs import DEPTHWISE, MOVE
from bnfold.merging.merge import merge

SIZES = ((16, 56), (32, 56), (64, 28), (128, 28), (256, 14))
Array = np.ndarray[Any, np.dtype[np.float32]]
Weights = Mapping[str, tuple[int, ...]]

# What stands between two Relus, with C channels, and the shapes of its weights.
SAME, WIDE, DEEP = "pads = [1,1,1,1]", "pads = [2,2,2,2], dilations = [2,2]", "group = C"
TWO = "strides = [2,2]"
POOL = f"kernel_shape = [2,2], {TWO}"
PATTERNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "3×3 + 1×1": (f"a = Conv <{SAME}> (z, w)  d = Conv(z, v)  b = Add(a, d)", ("C,C,3,3", "C,C,1,1")),
    "3×3 + x": (f"a = Conv <{SAME}> (z, w)  b = Add(a, z)", ("C,C,3,3",)),
    "1×1 + x": ("a = Conv(z, w)  b = Add(a, z)", ("C,C,1,1",)),
    "1×3 + 3×1": ("a = Conv <pads = [0,1,0,1]> (z, w)  d = Conv <pads = [1,0,1,0]> (z, v)  b = Add(a, d)",
                  ("C,C,1,3", "C,C,3,1")),
    "dilated 3×3 + 1×1": (f"a = Conv <{WIDE}> (z, w)  d = Conv(z, v)  b = Add(a, d)", ("C,C,3,3", "C,C,1,1")),
    "4 groups + 1 group": ("a = Conv <group = 4> (z, w)  d = Conv(z, v)  b = Add(a, d)", ("C,C/4,1,1", "C,C,1,1")),
    "depthwise 3×3 + 1×1": (f"a = Conv <{SAME}, {DEEP}> (z, w)  d = Conv <{DEEP}> (z, v)  b = Add(a, d)",
                            ("C,1,3,3", "C,1,1,1")),
    "depthwise 3×3 + dilated": (f"a = Conv <{SAME}, {DEEP}> (z, w)  d = Conv <{WIDE}, {DEEP}> (z, v)  b = Add(a, d)",
                                ("C,1,3,3", "C,1,3,3")),
    "depthwise 3×3 + dense 1×1": (f"a = Conv <{SAME}, {DEEP}> (z, w)  d = Conv(z, v)  b = Add(a, d)",
                                  ("C,1,3,3", "C,C,1,1")),
    "average pool − x": (
        f"a = AveragePool <kernel_shape = [3,3], {SAME}, count_include_pad = 1> (z)  b = Sub(a, z)", ()
    ),
    "transposed 4×4 + 2×2": (f"a = ConvTranspose <{SAME}, {TWO}>(z, w)  d = ConvTranspose <{TWO}>(z, v)  b = Add(a, d)",
                             ("C,C,4,4", "C,C,2,2")),
    "1×1, 3×3": ("a = Conv(z, w)  b = Conv(a, v)", ("C,C,1,1", "C,C,3,3")),
    "1×1 to a quarter, 1×1": ("a = Conv(z, w)  b = Conv(a, v)", ("C/4,C,1,1", "C,C/4,1,1")),
    "3×3, 1×1": (f"a = Conv <{SAME}> (z, w)  b = Conv(a, v)", ("C,C,3,3", "C,C,1,1")),
    "depthwise 3×3, 1×1": (f"a = Conv <{SAME}, {DEEP}> (z, w)  b = Conv(a, v)", ("C,1,3,3", "C,C,1,1")),
    "depthwise 3×3, depthwise 3×3": (f"a = Conv <{SAME}, {DEEP}> (z, w)  b = Conv <{DEEP}> (a, v)",
                                     ("C,1,3,3", "C,1,3,3")),
    "1×1, average pool": (f"a = Conv(z, w)  b = AveragePool <{POOL}> (a)", ("C,C,1,1",)),
    "3×3, average pool": (f"a = Conv <{SAME}> (z, w)  b = AveragePool <{POOL}> (a)", ("C,C,3,3",)),
    "average pool, 3×3": (f"a = AveragePool <{POOL}> (z)  b = Conv(a, w)", ("C,C,3,3",)),
    "transposed 2×2, 1×1": ("a = ConvTranspose <strides = [2,2]> (z, w)  b = Conv(a, v)", ("C,C,2,2", "C,C,1,1")),
}  # fmt: skip


def main() -> None:
    """Print both tables, in Markdown."""
    print("| channels | size | dense 3×3 | depthwise 3×3 | value moved | MOVE | DEPTHWISE |\n|" + "---|" * 7)
    for channels, size in SIZES:
        mac, deep, value = constants(channels, size)
        figures = (f"{mac * 1e12:.0f} ps", f"{deep * 1e12:.0f} ps", f"{value * 1e12:.0f} ps")
        print("|", " | ".join(map(str, (channels, size, *figures, f"{value / mac:.1f}", f"{deep / mac:.1f}"))), "|")
    print(f"\nIn use: MOVE {MOVE:g}, DEPTHWISE {DEPTHWISE:g}.\n")
    print("| pattern | cost apart / one, 16 channels | CPU time | 64 channels | CPU time |\n|" + "---|" * 5)
    for name, (body, shapes) in PATTERNS.items():
        cells = [cell for channels, size in ((16, 56), (64, 28)) for cell in compared(body, shapes, channels, size)]
        print("|", " | ".join((name, *cells)), "|")


def constants(channels: int, size: int) -> tuple[float, float, float]:
    """Seconds per accumulate of a dense and of a depthwise 3×3, and per value that an addition moves."""
    # Ten in a row: the call itself and the layout at both ends weigh little then.
    chain = {"dense": "Conv <pads = [1,1,1,1]> (a{k}, w)", "add": "Add(a{k}, z)"}
    chain["deep"] = f"Conv <pads = [1,1,1,1], group = {channels}> (a{{k}}, v)"
    shape = f"float[1,{channels},{size},{size}]"
    held = {"dense": {"w": (channels, channels, 3, 3)}, "deep": {"v": (channels, 1, 3, 3)}, "add": {}}
    models = [
        model(f"({shape} x, {shape} z) => (float[n,c,h,w] y) {{ a0 = Relu(x) "
              + " ".join(f"a{k + 1} = {chain[name].format(k=k)}" for k in range(10)) + " y = Relu(a10) }", held[name])
        for name in ("dense", "deep", "add")
    ]  # fmt: skip
    dense, deep, add = timed(*models)
    values = 10 * channels * size * size
    return dense / (values * channels * 9), deep / (values * 9), add / (3 * values)


def compared(body: str, shapes: tuple[str, ...], channels: int, size: int) -> tuple[str, str]:
    """The cost model's ratio and the measured one, of the pattern as it is to the pattern merged."""
    x = f"(float[1,{channels},{size},{size}] x) => (float[n,c,h,w] y)"
    sizes = {"C": channels, "C/4": channels // 4}
    weights = {
        name: tuple(sizes[part] if part in sizes else int(part) for part in each.split(","))
        for name, each in zip("wv", shapes, strict=False)
    }
    apart = model(f"{x} {{ z = Relu(x)  {body.replace('= C>', f'= {channels}>')}  y = Relu(b) }}", weights)
    whole = apart.clone()
    annotate(whole)
    found = merge(whole)
    result = next((each for each in found if each.into is not None), found[-1])
    predicted = f"{result.before.total / result.after.total:.2f}"
    if result.into is None:
        return predicted, "left apart"
    before, after = timed(apart, whole)
    return predicted, f"{before / after:.2f}"


def model(text: str, weights: Weights) -> ir.Model:
    """A checked model with seeded weights of these shapes."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    onnx.checker.check_model(proto)
    return ir.from_proto(proto)


if __name__ == "__main__":
    main()
