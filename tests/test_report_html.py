"""The page: it opens offline, and says what the document says."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bnfold.errors import UsageError
from bnfold.report import svg, writing
from bnfold.report.html import figure, html
from tests.reports import EVERY, LAYERS, document


class Page(HTMLParser):
    """Collects what a page refers to, and whether its elements close."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.unlabelled = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.refers += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        if tag == "svg" and "aria-label" not in found and found.get("aria-hidden") != "true":
            self.unlabelled += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style",):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@EVERY
def test_the_page_opens_offline_and_says_it(name: str) -> None:
    doc = document(name)
    layers = LAYERS if doc["status"] == "mismatch" else [{**layer, "status": "pass"} for layer in LAYERS]
    text = html({**doc, "layers": layers, "seconds": {"float64": 3.0, "sessions": 1.0}})
    page = Page(text)
    assert page.open == [] and page.refers == [] and page.unlabelled == 0
    assert page.tags & {"script", "link", "img", "iframe", "object"} == set()
    assert not re.search(r"url\(|@import|https?://", text.partition("<pre>")[0])
    assert f'class="verdict {doc["status"]}"' in text
    for words in (*doc["reasons"], *doc["warnings"], "/layer1/conv1/Conv"):
        assert words in page.text
    for cell in doc["cells"]:
        assert figure(cell["ratio"]) in page.text and figure(cell["limit"]) in page.text
    assert "75 %" in page.text
    if doc["certificate"].get("worst_case"):
        assert doc["certificate"]["worst_case"]["witness"] in page.text


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.9999, "99.9 %"), (0.43, "43 %"), (0.004, "0.4 %"), (0.0, "0 %")]
)
def test_a_hundred_per_cent_is_all(share: float, text: str) -> None:
    from bnfold.report.html import _percent

    assert _percent(share) == text


def test_a_layer_that_was_not_checked_is_no_infinite_error() -> None:
    layer = {"node": "conv", "status": "inconclusive", "ratio": None, "reason": "its values are no numbers"}
    page = Page(html(document("pass", layers=[layer, LAYERS[0]])))
    assert "not checked its values are no numbers" in page.text and "∞" not in page.text


def test_the_page_prints_names_as_they_are() -> None:
    doc = document("mismatch", reference="<b>&.onnx")
    doc["cells"][0]["output"] = "</td><script>alert(1)</script>"
    page = Page(html(doc))
    assert "script" not in page.tags and "b" not in page.tags
    assert "</td><script>alert(1)</script>" in page.text and "<b>&.onnx" in page.text


@EVERY
def test_the_json_in_the_page_is_the_document(name: str) -> None:
    doc = document(name)
    found = re.search(r"<pre><code>(.*)</code></pre>", html(doc), re.S)
    assert found is not None
    from html import unescape

    assert json.loads(unescape(found[1])) == json.loads(json.dumps(doc))


def test_many_layers_are_shown_worst_first_and_none_is_lost() -> None:
    layers = [{"node": f"conv{i}", "status": "pass", "ratio": i / 1000} for i in range(100)]
    text = html(document("pass", layers=layers))
    first, _, rest = text.partition("The other 70 layers")
    assert all(f">conv{i}<" in first for i in range(70, 100))
    assert all(f">conv{i}<" in rest for i in range(70))


def test_without_jinja2_the_page_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r'pip install "bnfold\[report\]"'):
        writing.check({"html": str(tmp_path / "r.html")})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "∞"), (math.inf, "∞"), (0.0, "0"), (0.25, "0.25"), (41.23, "41.2"), (4.7e-7, "4.70·10⁻⁷"),
        (1218.4, "1,218"), (9.996, "10"), (0.0304, "0.0304"), (12.0, "12"),
        (3e12, "3.00·10¹²"),
    ],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_the_axis_holds_the_limit_and_what_is_off_it_lies_at_its_end() -> None:
    axis = svg.LogAxis.around([0.003, 0.5, None])
    assert (axis.low, axis.high) == (-3, 1)
    assert axis.at(1.0) == 75.0 and axis.at(0.1) == 50.0
    assert axis.at(None) == axis.at(math.inf) == axis.at(1e9) == 100.0
    assert axis.at(0.0) == axis.at(1e-12) == 0.0
    assert [label for _, label in axis.ticks] == ["0.001", "0.01", "0.1", "limit", "10×"]
    assert svg.LogAxis.around([1e30, 1e-30]).ticks[-1][1] == "10⁶×"


@pytest.mark.parametrize(("value", "width"), [(None, "100.0%"), (0.1, "50.0%"), (1.0, "75.0%"), (0.0, None)])
def test_an_infinite_error_fills_its_bar_and_none_has_no_bar(value: float | None, width: str | None) -> None:
    drawn = svg.ratio(svg.LogAxis(-3, 1), value, "mismatch", "it", {"noise": 1.0, "sensitivity": None})
    bars = re.findall(r'<rect class="bar mismatch" [^>]*width="([^"]*)"', drawn)
    assert bars == ([] if width is None else [width])
    assert drawn.count("<circle") == 1 and 'x1="75.0%"' in drawn
