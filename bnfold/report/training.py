"""A training as one HTML page: how it learnt, what BN's statistics did, and what BN does to the activations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bnfold.report.charts import Series, chart
from bnfold.report.html import figure, render

Story = dict[str, Any]

SHOWN = 6
"""Layers that are drawn of each training, spread evenly from the first to the last."""


def html(story: Story) -> str:
    """The page of `bnfold.models.story.story`."""
    runs = story["runs"]
    view = {
        "title": title(story),
        "runs": [{**run, "colour": i % 8, "facts": list(_facts(run))} for i, run in enumerate(runs)],
        "curves": list(_curves(runs)),
        "convergence": [_convergence(run) for run in runs if run["statistics"]],
        "activations": [_activations(run) for run in runs],
    }
    return render("training.html", view)


def title(story: Story) -> str:
    """The trainings by name."""
    return ", ".join(run["name"] for run in story["runs"])


def _facts(run: Story) -> Iterator[tuple[str, str]]:
    yield run["architecture"], "architecture"
    yield run["norm"], f"norm, {run['position']} the activation"
    if run["score"] is not None:
        yield f"{run['score']:.2%}", f"{run['metric']} on held-out data" if run["finished"] else "score so far"
    if run["batch_size"]:
        yield str(run["batch_size"]), "examples a step"
    if run["norm"] == "batch":
        yield f"{run['momentum']:g}", f"momentum, decay {1 - run['momentum']:.4g}"


def _curves(runs: Sequence[Story]) -> Iterator[Story]:
    """Loss and score of all trainings in one figure each."""
    logged = [(i, run) for i, run in enumerate(runs) if run["epochs"]]
    metrics = {run["metric"] for _, run in logged}
    score = metrics.pop() if len(metrics) == 1 else "score"
    for name, text, log in (("loss", "loss", True), ("score", score, False)):
        series = [Series(_column(run["epochs"], "number"), _column(run["epochs"], name), i) for i, run in logged]
        if series:
            label = f"{text} by epoch"
            yield {"plot": chart(series, x_label="epoch", y_label=text, label=label, log_y=log, whole_x=True)}


def _column(rows: Sequence[Story], name: str) -> list[float]:
    return [row[name] for row in rows]


def _convergence(run: Story) -> Story:
    """Distance of the running from the batch statistics, and the first and last layer's own course."""
    layers = _spread(run["statistics"])
    figures = []
    for name, text in (("gap", "|batch − running mean| / σ"), ("ratio", "batch / running variance")):
        series = [Series(_steps(layer), layer[name], i) for i, layer in enumerate(layers)]
        label = f"{text} by step, one line a layer"
        figures.append(chart(series, x_label="step", y_label=text, label=label, log_x=True, log_y=name == "ratio"))
    followed = []
    for layer in dict.fromkeys((0, len(layers) - 1)):
        one = layers[layer]
        for name, text in (("mean", "mean"), ("var", "variance")):
            series = [
                Series(_steps(one), one[f"batch_{name}"], 4, "dots"),
                Series(_steps(one), one[f"running_{name}"], layer),
            ]
            label = f"{text} of channel 0 of {one['layer']}: dots of the batches, line of the running average"
            plot = chart(series, x_label="step", y_label=text, label=label, log_x=True)
            followed.append({"layer": one["layer"], "what": text, "plot": plot})
    return {
        "name": run["name"],
        "momentum": run["momentum"],
        "half": half_life(run["momentum"]),
        "layers": [{"layer": layer["layer"], "colour": i % 8} for i, layer in enumerate(layers)],
        "total": len(run["statistics"]),
        "figures": figures,
        "followed": followed,
        "end": _end(layers),
    }


def half_life(momentum: float) -> float:
    """Steps after which half of what the running statistics hold is new."""
    return math.log(0.5) / math.log(1 - momentum) if momentum < 1 else 1.0


def _end(layers: Sequence[Story]) -> list[Story]:
    """What is left of gap and ratio in the last records: the noise of a batch, if the statistics have converged."""
    return [
        {"layer": layer["layer"], **{name: statistics.median(layer[name][-5:]) for name in ("gap", "ratio")}}
        for layer in layers
    ]


def _steps(layer: Story) -> list[float]:
    # From 1, since a logarithmic axis has no 0.
    return [step + 1 for step in layer["step"]]


_SIDES = {
    False: (("before", 1, "value before the norm"), ("after", 0, "value after the norm")),
    True: (("before", 1, "value where a norm would stand"),),
}


def _activations(run: Story) -> Story:
    rows = []
    sides = _SIDES[run["norm"] == "none"]
    for layer in _spread(run["activations"]):
        plots = []
        for name, colour, text in sides:
            spread = layer[name]
            series = [Series(spread["centres"], spread["density"], colour, "area")]
            plots.append(chart(series, x_label=text, y_label="density", label=f"{layer['layer']}: {text}"))
        rows.append({"layer": layer["layer"], "plots": plots, "text": _channels(layer, [name for name, *_ in sides])})
    return {"name": run["name"], "rows": rows, "total": len(run["activations"]), "why_none": run["why_none"]}


def _channels(layer: Story, sides: Sequence[str]) -> str:
    """How far apart the channels are, before and after."""
    parts = []
    for name in sides:
        means, deviations = layer[name]["means"], layer[name]["deviations"]
        low, high = figure(min(means), 2), figure(max(means), 2)
        parts.append(f"{name}: channel means {low} … {high}, deviations {figure(min(deviations), 2)} …"
                     f" {figure(max(deviations), 2)}")  # fmt: skip
    return "; ".join(parts)


def _spread(layers: Sequence[Story]) -> list[Story]:
    """At most `SHOWN` layers, the first and the last among them."""
    if len(layers) <= SHOWN:
        return list(layers)
    return [layers[round(i * (len(layers) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
