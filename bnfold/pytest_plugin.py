"""pytest: the fixture `bnfold_verify`, by which a test holds a model against the one that it was made from.

    def test_folded_is_the_same(bnfold_verify):
        bnfold_verify("model.onnx", "folded.onnx", samples=16)

A mismatch fails the test with one line that says what differs and where. An inconclusive verification is an error: it
is no evidence against the model, and none for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from bnfold.verify import Verdict


class Inconclusive(Exception):
    """The verification could not have seen a fault, or could not be carried out."""


@pytest.fixture
def bnfold_verify(request: pytest.FixtureRequest) -> Callable[..., Verdict]:
    """Verify a candidate against its reference: `bnfold_verify(reference, candidate, **options)`.

    The options are those of `bnfold.verify`. Returns the verdict of a pass; `allow_inconclusive=True` returns it too
    where nothing could be proven. The test's JUnit record gets the status and the worst error ratio.
    """

    def verify(reference: Any, candidate: Any, *, allow_inconclusive: bool = False, **options: Any) -> Verdict:
        from bnfold.verify import verify as prove

        verdict = prove(reference, candidate, **options)
        # Not `record_property`, which warns where JUnit files are written in pytest's default family.
        request.node.user_properties += [("bnfold_status", verdict.status), ("bnfold_ratio", verdict.ratio)]
        if verdict.status == "mismatch":
            pytest.fail(str(verdict), pytrace=False)
        if verdict.status == "inconclusive" and not allow_inconclusive:
            raise Inconclusive(str(verdict))
        return verdict

    return verify


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call" and call.excinfo is not None and call.excinfo.errisinstance(Inconclusive):
        # pytest counts as errors, on the terminal and in its JUnit file, what fails outside the test itself.
        report.when, report.longrepr = "setup", str(call.excinfo.value)
    return report
