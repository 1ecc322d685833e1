import json
import re
import shutil
import subprocess
from base64 import b64encode
from hashlib import sha256
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest

from whence.errors import WrongVersion
from whence.report import render, tell, write_report

HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


class Page(HTMLParser):
    """The elements of a page, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.path: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):  # these have no end tag
            self.path.append(tag)

    def handle_endtag(self, tag):
        while self.path and self.path.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self.path[-1] if self.path else ""
        self.text[inside] = self.text.get(inside, "") + data

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(key) == value for key, value in wanted.items())
        ]


@pytest.fixture
def story(make_problem, make_scores, make_verification):
    problem = make_problem()
    scores = make_scores(problem)
    return tell(problem, scores, verification=make_verification(scores))


@pytest.fixture
def folded(make_problem, make_scores):
    problem = make_problem()
    return tell(problem, make_scores(problem, 300))


def poisoned(value):
    """The same story with hostile text for every text that comes from a user."""
    if isinstance(value, dict):
        names = {"id", "query", "example"}  # numbers here, but a user may give text
        kept = {"format", "kind", "png", "level", "created", "whence"}
        return {
            name: v if name in kept else poisoned(str(v) if name in names else v)
            for name, v in value.items()
        }
    if isinstance(value, list):
        return [poisoned(entry) for entry in value]
    return HOSTILE + value if isinstance(value, str) else value


# ------------------------------------------------------------------------- safety


def test_hostile_text_stays_text_everywhere(story):
    story["warnings"] = ["careful"]
    harmless, hostile = Page(render(story)), Page(render(poisoned(story)))
    tags = [[tag for tag, _ in page.elements] for page in (harmless, hostile)]
    for tag in ("script", "style", "img"):
        assert tags[1].count(tag) == tags[0].count(tag)
    assert not [a for _, attributes in hostile.elements for a in attributes if a.startswith("on")]
    assert hostile.text["script"] == harmless.text["script"]
    assert hostile.text["style"] == harmless.text["style"]
    for place in ("title", "h1", "li", "th", "td", "caption", "h2"):
        assert HOSTILE in hostile.text[place]


@pytest.mark.parametrize("kind", ["text", "row", "none"])
def test_hostile_training_examples_stay_text(make_problem, make_scores, kind):
    shown = {"kind": kind, "text": HOSTILE * 10, "cells": [[HOSTILE, HOSTILE], ["age", None]]}
    problem = make_problem(show_input=lambda inputs: shown)
    page = Page(render(tell(problem, make_scores(problem, 1))))
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert HOSTILE in page.text["dd" if kind == "row" else "p"]


def test_the_page_loads_nothing_from_outside(story):
    source = render(story)
    assert "http:" not in source
    assert "https:" not in source
    assert "@import" not in source
    for tag, attributes in Page(source).elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or tag != "img"
        assert attributes.get("href", "#").startswith("#")
        assert "style" not in attributes


def test_the_policy_allows_this_style_and_script_and_nothing_else(story):
    page = Page(render(story))
    (meta,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    rules = dict(rule.strip().split(" ", 1) for rule in meta["content"].split(";"))
    for name in ("style", "script"):
        digest = b64encode(sha256(page.text[name].encode()).digest()).decode()
        assert rules[f"{name}-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"


# ------------------------------------------------------------------------ content


def test_every_query_shows_its_sentence_and_its_examples(story):
    source = render(story)
    page = Page(source)
    assert len(page.all("section", class_="query")) == 4
    assert len(page.all("li", class_="effect is-image")) == 4 * 12
    for query in story["queries"]:
        assert query["sentence"].replace(">", "&gt;") in source
    assert len(page.all("svg", class_="chart scatter")) == 1
    assert len(page.all("svg", class_="chart distribution")) == 4


def test_the_longest_bar_of_a_query_is_full(story):
    widths = [float(bar["width"]) for bar in Page(render(story)).all("rect", height="1")]
    for start in range(0, len(widths), 12):
        assert max(widths[start : start + 12]) == 100
        assert min(widths[start : start + 12]) > 0


def test_the_verdict_is_told_in_words_and_not_by_colour_alone(story):
    source = render(story)
    assert story["trust"]["title"] in source
    assert story["trust"]["sentence"] in source
    assert "✓" in source


def test_without_verification_the_page_says_how_to_check(make_problem, make_scores):
    problem = make_problem()
    source = render(tell(problem, make_scores(problem, 1)))
    assert "Not checked by retraining" in source
    assert "whence.verify(problem, scores)" in source
    assert "chart scatter" not in source


def test_arbitrary_units_are_said_and_not_printed_beside_numbers(make_problem, make_scores):
    problem = make_problem()
    page = Page(render(tell(problem, make_scores(problem, 1, is_calibrated=False))))
    assert "Arbitrary units: only the order means something." in page.text["strong"]
    assert "logits" not in page.text.get("span", "").replace("logits", "", 1)  # the value's own


def test_a_side_without_examples_says_so(make_problem, make_scores):
    problem = make_problem()
    scores = make_scores(problem, 1, values=-np.ones((1, 120)))
    source = render(tell(problem, scores))
    assert source.count("No training example has an effect in this direction.") == 1


def test_no_effects_at_all_make_a_page_too(make_problem, make_scores):
    problem = make_problem()
    scores = make_scores(problem, 1, values=np.zeros((1, 120)))
    assert "No training example moves the margin" in render(tell(problem, scores))


def test_the_page_is_built_of_meaningful_parts(story):
    page = Page(render(story))
    for tag in ("main", "header", "footer", "nav", "h1", "h2", "h3", "figure", "table", "caption"):
        assert page.all(tag)
    assert len(page.all("h1")) == 1
    assert page.all("html") == [{"lang": "en"}]
    assert all("alt" in image for image in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"][1:] for attributes in page.all("a")}
    assert links <= set(ids)


def test_three_hundred_queries_are_folded_and_stay_small(folded):
    source = render(folded)
    page = Page(source)
    assert len(page.all("details", class_="query")) == 300
    assert "chart distribution" not in source
    assert len(source) < 4_000_000


def test_a_story_survives_json_on_its_way_to_the_page(story):
    assert render(json.loads(json.dumps(story))) == render(story)


@pytest.mark.parametrize("change", [{"version": 3}, {"version": None}, {"format": "other"}])
def test_other_formats_are_refused(story, change):
    with pytest.raises(WrongVersion):
        render(story | change)


def test_a_report_is_one_whole_file(tmp_path, make_problem, make_scores):
    problem = make_problem()
    path = write_report(
        problem, make_scores(problem), tmp_path / "why.html", queries=[0], title="T"
    )
    assert path == tmp_path / "why.html"
    assert list(tmp_path.iterdir()) == [path]
    source = path.read_text(encoding="utf-8")
    assert source.lstrip().startswith("<!doctype html>")
    assert source.rstrip().endswith("</html>")
    assert "<title>T</title>" in source


# --------------------------------------------------------------------- in a browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

MEASURE = """<script>
const root = document.documentElement;
const wide = [...document.querySelectorAll("body *:not(.skip)")].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > root.clientWidth + 1 && box.left >= 0;
});
const names = wide.map((element) => `${element.tagName}.${element.getAttribute("class")}`);
parent.document.title = JSON.stringify([root.clientWidth, root.scrollWidth, names.slice(0, 5)]);
</script>"""


WALK = """<script>
const plot = document.querySelector(".chart.scatter");
const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key }));
const words = () => document.querySelector(".tip").textContent;
const keys = ["ArrowRight", "ArrowRight", "ArrowLeft", "Escape"];
const told = keys.map((key) => (press(key), words()));
document.title = JSON.stringify(told);
</script>"""


def browse(source, folder):
    """The page as the browser sees it after its scripts have run."""
    if not BROWSER:
        pytest.skip("needs chromium or chrome on the path")
    path = folder / "page.html"
    path.write_text(source, encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=1500,900",
        "--dump-dom",
        path.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def scripted(story, script):
    """The page with one more script, which its policy would not let run."""
    source = re.sub(r'<meta http-equiv="Content[^>]*>', "", render(story))
    return source.replace("</body>", script + "</body>")


def title(dom):
    return re.search(r"<title>(.*?)</title>", dom)[1]


def lengthened(story):
    """The same story with a name that no line can hold."""
    endless = "x" * 200
    changed = json.loads(json.dumps(story))
    changed["title"] = changed["problem"]["name"] = endless
    for query in changed["queries"]:
        query["id"] = query["label"] = endless
        query["proponents"][0]["id"] = query["opponents"][0]["label"] = endless
        query["proponents"][1]["display"] = {
            "kind": "row",
            "cells": [[endless, 1.0], ["a", endless]],
        }
        query["proponents"][2]["display"] = {"kind": "text", "text": endless * 3}
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("change", [dict, lengthened])
def test_nothing_overflows_sideways(story, tmp_path, width, change):
    inner = escape(scripted(change(story), MEASURE))
    # a window has a least width, a frame has none
    frame = f'<title></title><iframe srcdoc="{inner}" width="{width}" frameborder="0"></iframe>'
    available, used, wide = json.loads(title(browse(frame, tmp_path)))
    assert (available, used, wide) == (width, width, [])


@pytest.mark.slow
def test_the_browser_runs_the_pages_own_script_and_no_other(story, tmp_path):
    attack = "<script>document.title = 'attacked'</script></body>"
    dom = browse(render(story).replace("</body>", attack), tmp_path)
    assert '<div class="tip" role="status">' in dom
    assert title(dom) == story["title"]
    assert 'class="chart scatter"' in dom
    assert 'role="group"' in dom


@pytest.mark.slow
def test_arrow_keys_walk_through_the_points_of_a_chart_from_left_to_right(story, tmp_path):
    first, second, back, closed = json.loads(title(browse(scripted(story, WALK), tmp_path)))
    points = sorted(story["verification"]["points"], key=lambda point: point["predicted"])
    assert f"without example {points[0]['example']}:" in first
    assert f"without example {points[1]['example']}:" in second
    assert (back, closed) == (first, "")
