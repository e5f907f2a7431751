"""If, Loop and Scan for the float64 evaluator; bodies see the values around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bnfold.verify.kernels.base import Unsupported

if TYPE_CHECKING:
    from bnfold.verify.reference import Evaluator, Observer

Env = dict[ir.Value, Any]
Control = Callable[["Evaluator", ir.Node, Sequence[Any], Env, "Observer | None"], Sequence[Any]]


def _if(evaluator: Evaluator, node: ir.Node, inputs: Sequence[Any], env: Env, observe: Observer | None) -> list[Any]:
    branch = "then_branch" if bool(np.all(inputs[0])) else "else_branch"
    return evaluator.run_graph(node.attributes[branch].as_graph(), env, observe)


def _loop(
    evaluator: Evaluator, node: ir.Node, inputs: Sequence[Any], env: Env, observe: Observer | None
) -> list[Any]:
    body = node.attributes["body"].as_graph()
    limit = None if inputs[0] is None else int(np.asarray(inputs[0]).reshape(()))
    go = inputs[1] is None or bool(np.all(inputs[1]))
    carried = list(inputs[2:])
    scans: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    step = 0
    while go and (limit is None or step < limit):
        env.update(zip(body.inputs, [np.asarray(step, np.int64), np.asarray(True), *carried], strict=True))
        condition, *rest = evaluator.run_graph(body, env, observe)
        carried = rest[: len(carried)]
        for collected, value in zip(scans, rest[len(carried) :], strict=True):
            collected.append(value)
        go, step = bool(np.all(condition)), step + 1
    if step == 0 and scans:
        raise Unsupported("Loop without an iteration but with scan outputs")
    return carried + [np.stack(collected) for collected in scans]


def _scan(
    evaluator: Evaluator, node: ir.Node, inputs: Sequence[Any], env: Env, observe: Observer | None
) -> list[Any]:
    if evaluator.opset < 9:
        raise Unsupported("Scan before opset 9")
    body = node.attributes["body"].as_graph()
    count = node.attributes["num_scan_inputs"].as_int()
    states, streams = list(inputs[: len(inputs) - count]), list(inputs[len(inputs) - count :])
    outputs = len(body.outputs) - len(states)

    def listed(name: str, size: int) -> list[int]:
        return list(node.attributes[name].as_ints()) if name in node.attributes else [0] * size

    axes, backward = listed("scan_input_axes", count), listed("scan_input_directions", count)
    streams = [np.moveaxis(s, a, 0)[:: -1 if b else 1] for s, a, b in zip(streams, axes, backward, strict=True)]
    if len(streams[0]) == 0 and outputs:
        raise Unsupported("Scan over an empty sequence")
    collected: list[list[Any]] = [[] for _ in range(outputs)]
    for step in range(len(streams[0])):
        env.update(zip(body.inputs, [*states, *(s[step] for s in streams)], strict=True))
        results = evaluator.run_graph(body, env, observe)
        states = results[: len(states)]
        for target, value in zip(collected, results[len(states) :], strict=True):
            target.append(value)
    axes, backward = listed("scan_output_axes", outputs), listed("scan_output_directions", outputs)
    stacked = [np.stack(c[:: -1 if b else 1], axis=a) for c, a, b in zip(collected, axes, backward, strict=True)]
    return states + stacked


CONTROL: dict[str, Control] = {"If": _if, "Loop": _loop, "Scan": _scan}
