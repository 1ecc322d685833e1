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

from whence.core.display import describe
from whence.errors import WrongVersion
from whence.report import render, tell, tell_sections, write_report, write_sections
from whence.report.blocks import MOST_PICTURES, MOST_ROWS
from whence.sections import Bars, Gallery, Lines, Scatter, Section, Table

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
        kept = {"format", "kind", "png", "wav", "level", "created", "whence"}
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
    assert rules["img-src"] == rules["media-src"] == "data:"


def test_a_sound_has_a_player_with_a_name_and_a_picture_with_words(make_problem, make_scores):
    heard = describe(2 * np.sin(np.arange(4000)), "audio", rate=8000)
    problem = make_problem(show_input=lambda inputs: heard)
    page = Page(render(tell(problem, make_scores(problem, 1))))
    players = page.all("audio")
    pictures = page.all("img")
    assert len(players) == len(pictures) > 2
    assert players[0]["src"] == f"data:audio/wav;base64,{heard['wav']}"
    assert players[0]["aria-label"].startswith("Sound of query ")
    assert {"controls", "preload"} <= players[0].keys()
    assert "autoplay" not in players[0]
    words = "500 ms across, 0 to 4 kHz upwards; the loudest sample, 2, is played as 1"
    assert pictures[0]["alt"].startswith("Spectrogram of query ")
    assert pictures[0]["alt"].endswith(words)
    assert words in page.text["figcaption"]


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


# ----------------------------------------------------------------- what uses have found

PICTURE = describe(np.eye(8), "image")
BLOCKS = [
    Table(
        ["query", "margin now (logits)", "model says"],
        [(1437, -0.123456, "eight"), (7, None, "three")],
        "A table.",
    ),
    Scatter(
        [{"x": 0.5, "y": 0.75, "words": "query 7", "group": g} for g in ("same", "other")],
        "predicted (logits)",
        "actual (logits)",
        "A scatter.",
        is_identity=True,
    ),
    Lines(
        {"loss": {"x": [0, 1], "y": [0.25, 2.5], "error": [0.1, 0.2]}}, "step", "loss", "Curves."
    ),
    Bars([("mean radius", 1.25), ("texture", -0.375)], "derivative (logits)", "Bars."),
    Gallery([(PICTURE, "example 3, label eight")] * 2, "Pictures."),
    Gallery(
        [
            ({"kind": "text", "text": "free money"}, "example 5"),
            ({"kind": "row", "cells": [["age", 41], ["sex", None]]}, "example 6"),
        ],
        "Texts.",
    ),
]
TOLD = {
    "table": ["A table.", "1437", "−0.123", "margin now (logits)", "eight"],
    "scatter": ["A scatter.", "query 7, same: predicted (logits) 0.500", "actual (logits) 0.750"],
    "lines": ["Curves.", "loss: loss 2.50 ± 0.200 at step 1"],
    "bars": ["Bars.", "mean radius: 1.25", "texture: −0.375"],
    "gallery": ["Pictures.", "example 3, label eight"],
}


def found(*blocks, title="Without example 3", warnings=()):
    return Section("remove", title, "The margin would fall by 0.31 logits.", blocks, warnings)


@pytest.fixture
def complete(make_problem, make_scores, make_verification):
    """A story with everything that there is."""
    problem = make_problem()
    scores = make_scores(problem, 2)
    sections = [found(*BLOCKS, warnings=["careful"]), found(BLOCKS[0], title="Another")]
    return tell(problem, scores, verification=make_verification(scores), sections=sections)


@pytest.mark.parametrize("block", BLOCKS[:5], ids=lambda block: block.to_json()["kind"])
def test_every_kind_of_block_shows_its_numbers(block):
    source = render(tell_sections([found(block)]))
    for text in TOLD[block.to_json()["kind"]]:
        assert escape(text, quote=False) in source
    assert "Nothing to show here" not in source


def test_a_gallery_shows_texts_and_rows_too():
    source = render(tell_sections([found(BLOCKS[5])]))
    for text in ("free money", "example 5", "age", "41", "missing"):
        assert text in source


def test_numbers_stand_right_and_ids_as_they_are():
    page = Page(render(tell_sections([found(BLOCKS[0])])))
    assert len(page.all("td")) == 6
    assert len(page.all("td", class_="number")) == 2
    assert len(page.all("th", class_="number")) == 1


def test_a_section_stands_below_the_queries_with_a_link_above_them(complete):
    source = render(complete)
    page = Page(source)
    assert [s["id"] for s in page.all("section", class_="finding")] == ["finding-1", "finding-2"]
    links = [a["href"] for a in page.all("a")]
    assert {"#finding-1", "#finding-2"} <= set(links)
    assert source.index('id="query-1"') < source.index('id="finding-1"')
    assert "careful" in source
    assert "1 warning" in source


def test_a_warning_is_told_once_on_a_page(make_problem, make_scores):
    problem = make_problem()
    sections = [found(warnings=["careful", "own", "own"]), found(title="Another")]
    story = tell(problem, make_scores(problem, 1), sections=sections)
    source = render(story | {"warnings": ["careful"]})
    assert (source.count("<li>careful</li>"), source.count("<li>own</li>")) == (1, 1)
    assert render(story).count("<li>careful</li>") == 1


def test_a_page_of_one_section_is_headed_by_it_and_says_nothing_twice(make_problem):
    source = render(tell_sections([found(*BLOCKS)], problems=[make_problem()]))
    page = Page(source)
    assert page.text["h1"] == "Without example 3"
    assert source.count("The margin would fall by 0.31 logits.") == 1
    assert "Proponents" not in source
    assert "Checked by retraining" not in source
    assert "digits: Linear, 120 training examples, 650 parameters" in source
    assert "What was asked about" in source


def test_a_page_of_sections_loads_nothing_and_allows_nothing(make_problem):
    page = Page(render(tell_sections([found(*BLOCKS)] * 2, problems=[make_problem()])))
    (meta,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in meta["content"]
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("part", ["complete", "alone"])
def test_hostile_sections_stay_text(complete, part):
    story = complete if part == "complete" else tell_sections([found(*BLOCKS)])
    story = json.loads(json.dumps(story))
    series = story["sections"][0]["blocks"][2]["series"]
    series[HOSTILE] = series.pop("loss")
    hostile, harmless = Page(render(poisoned(story))), Page(render(story))
    for tag in ("script", "style", "img", "svg"):
        assert len(hostile.all(tag)) == len(harmless.all(tag))
    assert not [a for _, attributes in hostile.elements for a in attributes if a.startswith("on")]
    assert hostile.text["script"] == harmless.text["script"]
    for place in ("h1", "td", "th", "figcaption", "p", "dt"):
        assert HOSTILE in hostile.text[place]


def test_control_characters_and_half_characters_are_shown_as_signs(tmp_path):
    words = "a\x00b\x1b[31m\x9bc\ud800"
    section = found(
        Table([words], [(words,)], words),
        Bars([(words, 1.0)], words),
        Lines({words: {"x": [1], "y": [2]}}, words, words),
        Gallery([({"kind": "text", "text": words}, words)]),
        title=words,
        warnings=[words],
    )
    page = write_sections([section], tmp_path / "page.html")
    source = page.read_text(encoding="utf-8")
    assert not set("\x00\x1b\x9b") & set(source)
    assert source.count("a␀b␛[31m�c�") >= 9


def test_a_huge_table_is_cut_with_a_count_of_what_is_left_out():
    table = Table(["n"], [(i,) for i in range(MOST_ROWS + 45)])
    story = tell_sections([found(table)])
    page = Page(render(story))
    assert len(page.all("td")) == MOST_ROWS
    assert "45 more rows are not shown." in page.text["p"]
    assert len(story["sections"][0]["blocks"][0]["rows"]) == MOST_ROWS + 45


def test_a_huge_gallery_is_cut_with_a_count_of_what_is_left_out():
    gallery = Gallery([(PICTURE, f"example {i}") for i in range(MOST_PICTURES + 2)], "Many.")
    page = Page(render(tell_sections([found(gallery)])))
    assert len(page.all("img")) == MOST_PICTURES
    assert "2 more pictures are not shown." in page.text["p"]


def test_empty_blocks_say_so():
    empty = [Table(["a"], [], "No row."), Scatter([], "x", "y"), Lines({}, "x", "y")]
    empty += [Bars([], "effect"), Gallery([])]
    source = render(tell_sections([found(*empty)]))
    assert source.count("Nothing to show here.") == 5
    assert "Nothing to show here. No row." in source
    assert "<svg" not in source
    assert render(tell_sections([found()]))


def test_a_story_from_before_there_were_sections_is_shown_as_it_was(story):
    old = {name: value for name, value in story.items() if name != "sections"} | {"version": 1}
    source = render(old)
    assert source == render(story)
    assert "finding" not in re.sub(r"<style>.*?</style>", "", source, flags=re.DOTALL)


def test_charts_of_sections_have_words_for_readers_of_the_screen(complete):
    page = Page(render(complete))
    charts = [svg for svg in page.all("svg") if (svg.get("class") or "").startswith("chart")]
    assert len(charts) == 2 + 1 + 3  # two queries, the verification, three blocks
    for svg in charts:
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 20
    for box in page.all("div", class_="scroll"):
        assert (box["role"], box["tabindex"]) == ("region", "0")
        assert box["aria-label"]


def test_a_page_of_sections_is_one_whole_file(tmp_path, make_problem):
    path = write_sections([found(*BLOCKS)], tmp_path / "found.html", problems=[make_problem()])
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_a_report_takes_sections_too(tmp_path, make_problem, make_scores):
    problem = make_problem()
    path = write_report(
        problem, make_scores(problem, 1), tmp_path / "why.html", sections=[found(*BLOCKS)]
    )
    assert 'id="finding-1"' in path.read_text(encoding="utf-8")


# --------------------------------------------------------------------- in a browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

MEASURE = """<script>
const root = document.documentElement;
const inBox = (element) => element.parentElement.closest(".scroll"); // may be wider: it scrolls
const wide = [...document.querySelectorAll("body *:not(.skip)")].filter((element) => {
  if (inBox(element)) return false;
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
    for section in changed["sections"]:
        section["title"] = section["sentence"] = endless
        section["warnings"] = [endless]
        for block in section["blocks"]:
            block["caption"] = endless
            for picture in block.get("pictures", ()):
                picture["words"] = endless
            if block["kind"] == "table":
                block["columns"] = [endless] * 3
                block["rows"] = [[endless] * 3]
            if block["kind"] == "bars":
                block["title"] = endless
                block["values"] = [[endless, 1.0]]
            if block["kind"] in ("scatter", "lines"):
                block["x"] = block["y"] = endless
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1400])
@pytest.mark.parametrize("change", [dict, lengthened])
def test_nothing_overflows_sideways(complete, tmp_path, width, change):
    inner = escape(scripted(change(complete), MEASURE))
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


SCROLL = """<script>
const box = document.querySelector(".scroll");
const cell = document.querySelector(".data td.number");
parent.document.title = JSON.stringify(
  [box.clientWidth, box.scrollWidth, cell.getClientRects().length, cell.offsetHeight]
);
</script>"""


@pytest.mark.slow
def test_a_wide_table_scrolls_in_its_own_box_and_breaks_no_number(tmp_path):
    wide = Table([f"a column of numbers {i} (logits)" for i in range(12)], [[-1.5e-7] * 12])
    inner = escape(scripted(tell_sections([found(wide)]), SCROLL))
    frame = f'<title></title><iframe srcdoc="{inner}" width="390" frameborder="0"></iframe>'
    shown, whole, pieces, height = json.loads(title(browse(frame, tmp_path)))
    assert shown < 390 < whole
    assert pieces == 1
    assert height < 45  # one line


FOCUS = """<script>
const told = [];
for (const name of ["scatter", "lines", "bars"]) {
  const chart = document.querySelector(`.chart.${name}`);
  chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
  told.push(document.querySelector(".tip").textContent);
}
document.title = JSON.stringify(told);
</script>"""


@pytest.mark.slow
def test_the_marks_of_every_chart_are_found_by_keyboard(tmp_path):
    dom = browse(scripted(tell_sections([found(*BLOCKS)]), FOCUS), tmp_path)
    point, curve, bar = json.loads(title(dom))
    assert point.startswith("query 7, ")
    assert curve.startswith("loss: loss 0.250")
    assert bar == "texture: −0.375"
