"""New statistics for an ONNX model: those of the given data, exactly, layer by layer.

What a layer sees depends on the statistics of the layers before it. So the BatchNorms are taken in order: all those at
one depth, that is with equally many others on the longest way to them, are measured in one pass over the data and set
before the next. The result is what one batch of all the data would give in training mode, with variances divided by n.

A BatchNorm that was folded into the layer before it is moved too: its output y is still there, and with the mean m and
the variance v that y has now

    y′ = k·(y − m) + beta        k = √((var + epsilon)/(v/scale² + epsilon))

which is an affine of y that folding absorbs like any other.

New statistics undo x → a·x + b where a > 0. Where a < 0 they turn every normalised value's sign, hence `negate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Float64
from bnfold.audit.data import Data
from bnfold.audit.health import dead_gamma
from bnfold.audit.moments import Moments
from bnfold.audit.observe import Site, observe, sites
from bnfold.errors import ModelError, UsageError
from bnfold.folding.frozen import Frozen, nodes, recorded, write
from bnfold.folding.report import FOLD_MAP, SOURCE_DIGEST
from bnfold.graph import bodies, dtype, label, nodes_within, shape
from bnfold.graph.surgery import Names
from bnfold.inputs import feeds
from bnfold.rewrite import rewrite

MEAN, VAR = 3, 4


def recalibrate(
    model: ir.Model, data: Data, *, provider: str = "cpu", progress: Callable[[str], None] = lambda text: None
) -> tuple[str, ...]:
    """Give every BatchNorm of `model` the statistics of `data`, in place; return the names of those that have them.

    Those in control-flow bodies, or with statistics from run time, stay as they are. Raises `ModelError` where folding
    left nothing to move a BatchNorm by.
    """
    found, hidden = sites(model)
    standing = {label(node): node for node in nodes(model)}
    folded = [site for site in found if site.frozen.name not in standing]
    _require_movable(folded, [site.name for site in hidden], recorded(model))
    moved: dict[str, Frozen] = {}
    levels = list(_levels(model, found))
    for number, level in enumerate(levels):
        progress(f"measuring depth {number + 1} of {len(levels)}")
        for site, seen in zip(level, observe(model, level, data, only=True, provider=provider), strict=True):
            moved[site.frozen.name] = frozen = _renewed(site, seen)
            if site.frozen.name in standing:
                _set(standing[site.frozen.name], frozen)
            else:
                _move(model, site, seen, frozen)
    if any(name not in standing for name in moved):
        rewrite(model, merge=False)
        write(model, [moved.get(frozen.name, frozen) for frozen in recorded(model)])
    # It no longer is what was folded from that source, and nobody should try to prove that it is.
    for key in (FOLD_MAP, SOURCE_DIGEST):
        model.metadata_props.pop(key, None)
    return tuple(moved)


def negate(model: ir.Model) -> None:
    """Put a minus sign in front of the model's input, in place; folding takes it into the first layer.

    Raises `UsageError` unless just one of the inputs is floating-point.
    """
    floats = [value for value in feeds.inputs(model) if (kind := dtype(value)) and kind.is_floating_point()]
    if len(floats) != 1:
        raise UsageError(f"--negate needs a model of one floating-point input; this one has {len(floats)}")
    (value,) = floats
    names = Names.of(model)
    node = ir.Node("", "Neg", [value], name=names.fresh(f"{value.name}_Neg"))
    node.outputs[0].name = names.fresh(f"{value.name}_negated")
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    for use in list(value.uses()):
        if use.node is not node:
            use.node.replace_input_with(use.idx, node.outputs[0])
    model.graph.insert_before(model.graph[0], node)


def _require_movable(folded: Sequence[Site], hidden: Sequence[str], notes: Sequence[Frozen]) -> None:
    stuck = [site.frozen.name for site in folded if site.side == "x"]
    # Where gamma is 0 there is nothing to move.
    stuck += [frozen.name for frozen in notes if frozen.name in hidden and not dead_gamma(frozen.gamma).all()]
    if stuck:
        more = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
        raise ModelError(
            f"{stuck[0]}{more} went into layers that can't be told from it any more; recalibrate the model that this"
            " one was folded from, and fold the result"
        )


def _levels(model: ir.Model, found: Sequence[Site]) -> Iterator[list[Site]]:
    """The sites by the number of other sites on the longest way to them, fewest first."""
    ends = {site.frozen.output if site.side == "x" else site.value for site in found}
    before: dict[str | None, int] = {}
    after: dict[str | None, int] = {}
    for node in model.graph:
        depth = max((after.get(value.name, 0) for value in _reads(node)), default=0)
        for value in node.outputs:
            before[value.name], after[value.name] = depth, depth + (value.name in ends)
    places = [(after.get(site.value, 0) if site.side == "x" else before[site.value], site) for site in found]
    for level in sorted({place for place, _ in places}):
        yield [site for place, site in places if place == level]


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        for inner in nodes_within(body):
            yield from (value for value in inner.inputs if value is not None)
        yield from body.outputs


def _renewed(site: Site, seen: Moments) -> Frozen:
    at_input = site.at_input(seen)
    mean = np.where(site.live, at_input.mean, site.frozen.mean)
    return replace(site.frozen, mean=mean, var=np.where(site.live, at_input.var, site.frozen.var))


def _set(node: ir.Node, frozen: Frozen) -> None:
    """Give a node constants of its own: what it shared with others stays theirs."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for slot, array in ((MEAN, frozen.mean), (VAR, frozen.var)):
        old = node.inputs[slot]
        assert old is not None
        kind = dtype(old) or ir.DataType.FLOAT
        tensor = _stored(array, kind, frozen.name)
        if old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
            old.const_value = tensor
            continue
        names = {value.name for value in graph.initializers.values()} | {v.name for n in graph for v in n.outputs}
        name = next(n for i in range(len(names) + 1) if (n := f"{old.name}_recalibrated_{i}") not in names)
        node.replace_input_with(slot, _registered(tensor, name, graph))


def _move(model: ir.Model, site: Site, seen: Moments, frozen: Frozen) -> None:
    """Put y′ = k·(y − m) + beta behind the value y, under y's name."""
    old = site.frozen
    factor = np.where(site.live, np.sqrt((old.var + old.epsilon) / (frozen.var + frozen.epsilon)), 1.0)
    shift = np.where(site.live, old.beta - factor * seen.mean, 0.0)
    value = next(v for node in model.graph for v in node.outputs if v.name == site.value)
    producer = value.producer()
    sizes = shape(value)
    if producer is None or sizes is None:
        raise ModelError(f"{old.name}: the rank of {site.value!r} is unknown; recalibrate the unfolded model")
    kind, column = dtype(value) or ir.DataType.FLOAT, (-1, *[1] * (len(sizes) - 2))
    names = Names.of(model)
    readers = list(value.uses())
    current, last = value, producer
    for op, array in (("Mul", factor), ("Add", shift)):
        tensor = _stored(array.reshape(column), kind, old.name)
        constant = _registered(tensor, names.fresh(f"{site.value}_{op.lower()}"), model.graph)
        node = ir.Node("", op, [current, constant], name=names.fresh(f"{site.value}_{op}"))
        node.outputs[0].name = names.fresh(f"{site.value}_{op.lower()}_out")
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(kind), value.shape
        model.graph.insert_after(last, node)
        current, last = node.outputs[0], node
    for use in readers:
        use.node.replace_input_with(use.idx, current)
    for index, output in enumerate(model.graph.outputs):
        if output is value:
            model.graph.outputs[index] = current
    value.name, current.name = names.fresh(f"{site.value}_before"), site.value


def _registered(tensor: ir.TensorProtocol, name: str, graph: ir.Graph) -> ir.Value:
    tensor.name = name
    sizes, kind = ir.Shape(tensor.numpy().shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=sizes, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


def _stored(array: Float64, kind: ir.DataType, name: str) -> ir.TensorProtocol:
    with np.errstate(over="ignore"):
        narrow = array.astype(kind.numpy())
    if not np.isfinite(narrow.astype(np.float64)).all():
        raise ModelError(f"{name}: its statistics on this data do not fit into {kind.name}; scale the input")
    return ir.Tensor(narrow, dtype=kind)
