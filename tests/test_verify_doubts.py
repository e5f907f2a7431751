"""What proves nothing is inconclusive, by name, and a provider that does not run is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold import runtime
from bnfold.errors import ProviderError
from bnfold.verify import verify
from tests import nets
from tests.verifying import model, normal


def test_all_nan_is_inconclusive() -> None:
    m = model("(float[N,4] x) => (float[N,4] y) { z = Sub (x, x) y = Div (z, z) }")
    assert verify(m, m).exit_code == 3


def test_nan_in_the_weights_is_inconclusive() -> None:
    w = normal(4, 4)
    w[1, 2] = np.nan
    m = model("(float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=w)
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "NaN" in str(verdict)


def test_all_zero_is_inconclusive() -> None:
    m = model("(float[N,4] x) => (float[N,4] y) { y = Mul (x, zero) }", zero=np.zeros(1))
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "zero for every input" in str(verdict)


def test_a_constant_output_is_inconclusive() -> None:
    m = model("(float[N,4] x) => (float[N,4] y) { z = Mul (x, zero) y = Add (z, w) }", zero=np.zeros(1), w=normal(4))
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "same for every input" in str(verdict)


def test_an_output_that_no_input_reaches_is_noted_beside_one_that_varies() -> None:
    text = "(float[1,4] x) => (float[1,4] y, float[4] boxes) { y = Mul (x, w) boxes = Identity (w) }"
    m = model(text, w=normal(4))
    verdict = verify(m, m)
    assert verdict.status == "pass" and any("depends on no input" in w for w in verdict.warnings)
    alone = model("(float[1,4] x) => (float[4] boxes) { boxes = Identity (w) }", w=normal(4))
    assert verify(alone, alone).exit_code == 3


def test_one_given_input_cannot_show_that_the_output_depends_on_it() -> None:
    m = model("(float[1,4] x) => (float[1,4] y) { z = Mul (x, zero) y = Add (z, w) }", zero=np.zeros(1), w=normal(4))
    assert verify(m, m, inputs={"x": normal(1, 4)}).exit_code == 3
    fine = nets.plain(0)
    assert verify(fine, nets.fold(fine), inputs={"x": normal(1, 3, 12, 12)}).status == "pass"


def test_an_operator_without_a_float64_kernel_is_inconclusive_by_name() -> None:
    m = model("(float[2,4] x) => (float[2,4] y) { z = RandomNormalLike (x) y = Add (x, z) }")
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "RandomNormalLike" in str(verdict)


def test_fewer_folds_than_expected_are_inconclusive() -> None:
    original = nets.plain(0)
    assert verify(original, original, expect_folds=1).exit_code == 3
    assert verify(original, nets.fold(original), expect_folds=3).exit_code == 3
    assert verify(original, nets.fold(original), expect_folds=2).status == "pass"


def test_an_optimized_reference_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = runtime.session
    monkeypatch.setattr(runtime, "session", lambda *a, **k: honest(*a, **{**k, "optimize": True}))
    original = nets.plain(0)
    verdict = verify(original, original)
    assert verdict.exit_code == 3 and "optimized" in str(verdict)


def test_a_provider_without_proof_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime does not tell what runs a node, or says that a layer runs elsewhere, the exit code is 4."""
    monkeypatch.setattr(runtime, "unproven", lambda session, provider: f"{provider} is unproven")
    with pytest.raises(ProviderError, match="cpu is unproven"):
        verify(nets.plain(0), nets.plain(0))
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "elsewhere", lambda session, provider: [("Shape", "s"), ("Conv", "c1"), ("Gemm", "")])
    with pytest.raises(ProviderError, match="'c1' and 1 more would not run on cpu"):
        verify(nets.plain(0), nets.plain(0))
    monkeypatch.setattr(runtime, "elsewhere", lambda session, provider: [("Shape", "s")])
    placement = verify(nets.plain(0), nets.plain(0)).settings["placement"]
    assert placement["cpu, reference"]["elsewhere"] == ["s"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "dml", "no such"])
def test_a_provider_that_is_not_there_is_refused(provider: str) -> None:
    if provider in runtime.available_providers() and runtime.usable(provider) is None:
        pytest.skip(f"{provider} works here")
    with pytest.raises(ProviderError) as caught:
        verify(nets.plain(0), nets.plain(0), providers=("cpu", provider))
    assert provider in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 4


def test_weights_that_determine_nothing_are_inconclusive() -> None:
    """A chaotic map: rounding of one weight moves the output by more than a tenth."""
    body = " ".join(
        f"a{n} = Mul (v{n}, w) b{n} = Sub (one, v{n}) v{n + 1} = Mul (a{n}, b{n})" for n in range(60)
    )
    m = model(
        f"(float[8,32] x) => (float[8,32] y) {{ v0 = Sigmoid (x) {body} y = Identity (v60) }}", w=3.99, one=1.0
    )
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "rounding" in str(verdict)
