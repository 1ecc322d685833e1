import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from whence.errors import BadArgument, Stale
from whence.report.story import tell, tell_sections, trust, with_sections
from whence.sections import Section, Table

PICTURES, LABELS = load_digits(return_X_y=True)


def test_a_story_is_strict_json_and_survives_it(make_problem, make_scores, make_verification):
    problem = make_problem()
    scores = make_scores(problem)
    story = tell(problem, scores, verification=make_verification(scores))
    assert json.loads(json.dumps(story, allow_nan=False)) == story


def test_a_story_holds_everything_a_page_shows(make_problem, make_scores):
    problem = make_problem()
    scores = make_scores(problem)
    story = tell(problem, scores, top=3, title="Why?")
    assert (story["format"], story["version"], story["title"]) == ("whence-story", 2, "Why?")
    assert [query["id"] for query in story["queries"]] == scores.query_ids.tolist()
    assert story["measurement"]["sign"] == scores.sign_sentence
    assert story["method"]["curvature"] == "exact"
    for row, query in zip(scores.values, story["queries"], strict=True):
        expected = np.argsort(row)
        assert [entry["id"] for entry in query["proponents"]] == expected[:3].tolist()
        assert [entry["id"] for entry in query["opponents"]] == expected[::-1][:3].tolist()
        assert query["proponents"][0]["effect"] == row.min()
        assert query["display"]["kind"] == "image"
        assert query["sentence"].startswith("The model says 3 (61")


def test_each_training_example_brings_its_own_picture_and_label(make_problem, make_scores):
    ids = np.array([f"scan-{i}" for i in range(30)])
    problem = make_problem(examples=30, ids=ids)
    reversed_ = ids[::-1]  # columns of scores need not stand in the order of the data
    scores = make_scores(problem, 2, train_ids=reversed_)
    for query in tell(problem, scores)["queries"]:
        for entry in query["proponents"] + query["opponents"]:
            position = int(entry["id"].removeprefix("scan-"))
            assert entry["display"] == problem.show(position)
            assert entry["label"] == problem.label_of(position)


def test_facts_that_are_not_finite_are_said_in_words(make_problem, make_scores):
    problem = make_problem()
    story = tell(problem, make_scores(problem, 1))
    facts = {fact["name"]: fact["value"] for fact in story["facts"]}
    assert facts["Smallest eigenvalue"] == "not finite"


def test_without_verification_the_story_says_so_and_how_to_check(make_problem, make_scores):
    problem = make_problem()
    story = tell(problem, make_scores(problem))
    assert story["verification"] is None
    assert story["trust"]["level"] == "unchecked"
    assert "whence.verify(problem, scores)" in story["trust"]["sentence"]


def test_with_verification_its_verdict_is_passed_on(make_problem, make_scores, make_verification):
    problem = make_problem()
    scores = make_scores(problem)
    story = tell(problem, scores, verification=make_verification(scores))
    assert story["trust"]["level"] == "good"
    assert story["trust"]["title"] == story["verification"]["verdict"]
    assert story["verification"]["noise_ceiling"] is None


def test_the_verdict_that_scores_carry_is_told(make_problem, make_scores, make_verification):
    problem = make_problem()
    verdict = make_verification(make_scores(problem)).to_json()
    summary = {name: value for name, value in verdict.items() if name not in ("points", "queries")}
    story = tell(problem, make_scores(problem).with_report(verification=summary))
    assert story["trust"]["title"] == verdict["verdict"]
    assert story["verification"]["points"] == []


def test_arbitrary_units_are_named_and_the_measurement_keeps_its_own(make_problem, make_scores):
    problem = make_problem()
    story = tell(problem, make_scores(problem, is_calibrated=False))
    assert story["measurement"]["unit"] == "arbitrary"
    assert story["measurement"]["value_unit"] == "logits"


def test_the_models_own_answer_is_not_called_a_label(make_problem, make_scores):
    problem = make_problem()
    scores = make_scores(problem, 1).with_report(are_labelled=False)
    query = tell(problem, scores)["queries"][0]
    assert not query["is_labelled"]
    assert "label is" not in query["sentence"]


@pytest.mark.parametrize("names", [["inputs/0", "inputs/1"], ["inputs/pixels", "inputs/mask"]])
def test_inputs_of_several_parts_reach_the_problem_in_their_structure(
    make_problem, make_scores, names
):
    problem = make_problem()
    pictures = PICTURES[-2:]
    parts = dict.fromkeys(names, pictures) | {"targets": LABELS[-2:]}
    scores = replace(make_scores(problem, 2), queries=parts)
    seen = []
    problem.show_input = lambda inputs: seen.append(inputs) or {"kind": "none", "text": ""}
    tell(problem, scores, queries=[1], top=1)
    if "inputs/0" in names:
        assert isinstance(seen[0], tuple)
        np.testing.assert_array_equal(seen[0][1], pictures[1])
    else:
        assert list(seen[0]) == ["pixels", "mask"]


def test_queries_are_chosen_by_position(make_problem, make_scores):
    problem = make_problem()
    story = tell(problem, make_scores(problem), queries=[2, 0])
    assert [query["position"] for query in story["queries"]] == [2, 0]


@pytest.mark.parametrize("queries", [[4], [-1], []])
def test_queries_that_do_not_exist_are_refused(make_problem, make_scores, queries):
    problem = make_problem()
    with pytest.raises(BadArgument, match="there are 4 queries"):
        tell(problem, make_scores(problem), queries=queries)


def test_showing_no_examples_is_refused(make_problem, make_scores):
    problem = make_problem()
    with pytest.raises(BadArgument, match="=0"):
        tell(problem, make_scores(problem), top=0)


def test_scores_of_another_model_are_refused(make_problem, make_scores):
    problem = make_problem()
    scores = make_scores(problem).with_report(fingerprint={"parameters": "0000" * 8})
    with pytest.raises(Stale, match="parameters 00000000"):
        tell(problem, scores)


def test_queries_are_shown_as_the_user_gave_them(make_problem, make_scores):
    problem = make_problem()
    raw = {"kind": "text", "text": "before it was prepared"}
    arrays = {"inputs": PICTURES[:1], "targets": LABELS[:1], "displays": [json.dumps(raw)]}
    scores = replace(make_scores(problem, 1), queries=arrays)
    assert tell(problem, scores)["queries"][0]["display"] == raw


@pytest.mark.parametrize(
    ("correlations", "level", "rank_level"),
    [
        ({"pearson": 0.9, "spearman": 0.5}, "good", "fair"),
        ({"pearson": 0.5, "spearman": 0.1}, "fair", "poor"),
        ({"pearson": float("nan")}, "poor", "poor"),
    ],
)
def test_the_level_of_trust_follows_the_correlation_that_has_a_meaning(
    correlations, level, rank_level
):
    checked = correlations | {"verdict": "", "sentence": ""}
    assert trust(checked)["level"] == level
    assert trust(checked, is_calibrated=False)["level"] == rank_level


# --------------------------------------------------------------------------- sections


@dataclass(frozen=True)
class Found:
    """What a use returns, as far as a report is concerned."""

    found: Section

    def section(self):
        return self.found


def section(title="Without example 3", **changes):
    table = Table(["query", "effect (logits)"], [(np.int64(7), np.float32("nan"))])
    return Section("remove", title, "The margin falls.", [table], ["careful"], **changes)


def test_a_story_carries_the_sections_of_uses_in_strict_json(make_problem, make_scores):
    problem = make_problem()
    story = tell(problem, make_scores(problem, 1), sections=[Found(section()), section("Another")])
    assert json.loads(json.dumps(story, allow_nan=False)) == story
    first, second = story["sections"]
    assert first == json.loads(json.dumps(section().to_json()))
    assert first["blocks"][0]["rows"] == [[7, None]]
    assert second["title"] == "Another"
    assert tell(problem, make_scores(problem, 1))["sections"] == []


def test_sections_of_a_saved_story_are_taken_as_they_are_and_none_twice(make_problem, make_scores):
    problem = make_problem()
    story = tell(problem, make_scores(problem, 1), sections=[section()])
    saved = json.loads(json.dumps(story))["sections"]
    again = with_sections(story, [*saved, section(), section("Another")])
    assert [told["title"] for told in again["sections"]] == ["Without example 3", "Another"]
    assert len(story["sections"]) == 1  # the story that was given is left alone


def test_a_story_of_sections_alone_has_their_title_and_what_they_were_asked_about(make_problem):
    alone = tell_sections([Found(section())], problems=[make_problem()])
    assert (alone["title"], alone["queries"]) == ("Without example 3", [])
    assert alone["problems"][0]["name"] == "digits"
    several = tell_sections([section(), section("Another")], problems=[make_problem()])
    assert several["title"] == "digits: 2 findings"
    assert tell_sections([section(), section()])["title"] == "2 findings"
    assert tell_sections([section()], title="T")["title"] == "T"
    assert json.loads(json.dumps(several, allow_nan=False)) == several


def test_what_is_no_section_is_refused():
    with pytest.raises(BadArgument, match="of type str"):
        tell_sections(["Without example 3"])
    with pytest.raises(BadArgument, match="No section"):
        tell_sections([])
