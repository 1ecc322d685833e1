"""Every use has its command: it says what the library says, and its section joins a report."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import whence
from whence.cli import audits, main, whatif
from whence.cli.references import load_object, load_problem
from whence.core.problem import Queries
from whence.report import render
from whence.store import Run
from whence.uses.ablation import removal_curve
from whence.uses.comparison import compare
from whence.uses.components import components
from whence.uses.damping import scan_damping
from whence.uses.flipping import brittleness, smallest_flip
from whence.uses.method_comparison import compare_methods
from whence.uses.mislabels import find_mislabels
from whence.uses.mismatch import find_mismatch
from whence.uses.perturbation import perturb
from whence.uses.poisoning import Attack, poison
from whence.uses.schools import other_schools
from whence.uses.tokens import token_effects
from whence.uses.whatif import relabel, remove, replace, upweight

BLANK = np.zeros((1, 64)), ["eight"]
WIDE = Attack(bounds=(-1.0, 2.0), iterations=2)
USES: dict[str, tuple[str, Callable[..., object]]] = {
    "remove": (
        "--query train.py:queries --group 7,12 --retrain",
        lambda p, q: remove(p, q, group=[7, 12], retrain=True),
    ),
    "upweight": (
        "--query train.py:queries --example 3 --by 2.5 --measurement loss",
        lambda p, q: upweight(p, q, example=3, by=2.5, measurement="loss"),
    ),
    "relabel": (
        "--query train.py:queries --example 3 --label three --method cg",
        lambda p, q: relabel(p, q, example=3, label="three", method="cg"),
    ),
    "replace": (
        "--query train.py:queries --example 3 --with blank.npz",
        lambda p, q: replace(p, q, example=3, with_=BLANK),
    ),
    "flip": (
        "--query train.py:queries --position 1 --predict-only",
        lambda p, q: smallest_flip(p, second_of(p, q), retrain=False),
    ),
    "brittleness": (
        "--query train.py:queries --predict-only",
        lambda p, q: brittleness(p, q, retrain=False),
    ),
    "removal-curve": (
        "--query train.py:queries --position 1 --k 2 --k 6",
        lambda p, q: removal_curve(p, whence.explain(p, second_of(p, q)), ks=(2, 6)),
    ),
    "perturb": (
        "--query train.py:queries --example 3",
        lambda p, q: perturb(p, q, example=3),
    ),
    "tokens": (
        "--query train.py:asked_words --example 3 --by input --measurement loss",
        lambda p, q: token_effects(p, q, example=3, by="input", measurement="loss"),
    ),
    "poison": (
        "--query train.py:one --examples 2 --box 30 --step 10 --low -1 --high 2 --iterations 2",
        lambda p, q: poison(p, (q[0][:1], q[1][:1]), examples=2, box=30, step=10, attack=WIDE),
    ),
    "mislabels": (
        "--truth wrong.npy --by loss",
        lambda p, q: find_mislabels(p, truth=np.arange(48) % 12 == 0, by="loss"),
    ),
    "mismatch": (
        "--query train.py:queries --groups halves.json --strongest 2",
        lambda p, q: find_mismatch(p, q, groups=load_object("train.py:groups"), strongest=2),
    ),
    "compare": (
        "train.py:other --query train.py:queries --top 4",
        lambda p, q: compare(p, load_problem("train.py:other"), q, k=4),
    ),
    "compare-methods": (
        "--query train.py:one --method exact --method loss --subsets 8 --fraction 0.75",
        lambda p, q: compare_methods(
            p, (q[0][:1], q[1][:1]), ["exact", "loss"], subsets=8, fraction=0.75
        ),
    ),
    "components": ("--query train.py:one", lambda p, q: components(p, (q[0][:1], q[1][:1]))),
    "damping": (
        "--query train.py:queries --damping 0.01 --damping 0.1",
        lambda p, q: scan_damping(p, q, (0.01, 0.1)),
    ),
    "schools": (
        "--query train.py:queries --position 2 --no-captum",
        lambda p, q: other_schools(p, q, position=2, regions=None),
    ),
}


OTHERS = {"tokens": ("train.py:texts", "train.py:asked_words")}
"""Problem and queries of the commands that cannot be asked of pictures."""


def asked_of(name: str) -> tuple[str, str]:
    """Where the problem and the queries are."""
    return OTHERS.get(name, ("train.py:problem", "train.py:queries"))


def second_of(problem: whence.Problem, queries: tuple[np.ndarray, np.ndarray]) -> Queries:
    """The query at position 1, under the id that it has among the others."""
    x, y = queries
    return dataclasses.replace(problem.queries((x[1:2], y[1:2])), ids=np.array([1]))


def line_of(name: str) -> str:
    return f"{name} {asked_of(name)[0]} {USES[name][0]}"


def asked(name: str) -> object:
    """What the library says of the same question."""
    problem, queries = asked_of(name)
    return USES[name][1](load_problem(problem), load_object(queries))


def numbers(value: object) -> object:
    """Results without how long they took."""
    if isinstance(value, dict):
        kept = {name: numbers(entry) for name, entry in value.items()}
        return {name: entry for name, entry in kept.items() if "seconds" not in name}
    return [numbers(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(autouse=True)
def _stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sections with seconds in their tables are the same twice."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)
    monkeypatch.setattr("whence.uses.method_comparison.time", clock)


@pytest.fixture
def make_run(call) -> Callable[..., Path]:
    def run(name: str = "") -> Path:
        problem, queries = asked_of(name)
        line = f"explain {problem} --query {queries} --out runs/why --quiet"
        assert call(line).exit_code == 0
        return Path("runs/why")

    return run


def test_every_command_of_a_use_is_tried_here():
    commands = {command.name for command in (*whatif.COMMANDS, *audits.COMMANDS)}
    assert commands == set(USES)
    assert commands < set(main.commands)


@pytest.mark.parametrize("name", USES)
def test_a_use_prints_and_writes_what_the_library_says(name: str, call):
    expected = asked(name)
    result = call(f"{line_of(name)} --out runs/use --json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)  # exactly one document
    assert answer.pop("run") == str(Path("runs/use"))
    assert answer.pop("page") == str(Path("runs/use/report.html"))
    plain = json.loads(json.dumps(expected.to_json(), allow_nan=False))
    assert numbers(answer) == numbers(plain)
    run = Run.open("runs/use", check_hashes=True)
    assert (run.kind, set(run.files)) == ("use", {"result.json", "story.json", "report.html"})
    assert numbers(run.read_json("result.json")) == numbers(plain)
    story = run.read_json("story.json")
    assert story["sections"] == [json.loads(json.dumps(expected.section().to_json()))]
    page = run.path("report.html").read_text(encoding="utf-8")
    assert page == render(story)
    assert story["title"] == expected.section().title


@pytest.mark.parametrize("name", USES)
def test_a_use_joins_the_report_of_a_run_and_tells_it_on_the_terminal(name: str, call, make_run):
    section = asked(name).section()
    run = make_run(name)
    result = call(f"{line_of(name)} --add-to {run}")
    assert result.exit_code == 0, result.stderr
    assert " ".join(section.sentence.split()) in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == str(run / "report.html")
    opened = Run.open(run, check_hashes=True)
    assert opened.kind == "explanation"
    story = opened.read_json("story.json")
    assert [told["title"] for told in story["sections"]] == [section.title]
    assert len(story["queries"]) == 3
    assert opened.path("report.html").read_text(encoding="utf-8") == render(story)


# ------------------------------------------------------------------------------- runs


def test_verify_and_report_keep_the_sections_of_a_run(call, make_run):
    run = make_run()
    for name in ("remove", "mislabels", "remove"):  # the same question again is not told twice
        assert call(f"{line_of(name)} --add-to {run}").exit_code == 0
    sections = Run.open(run).read_json("story.json")["sections"]
    assert [section["kind"] for section in sections] == ["remove", "find_mislabels"]
    assert call(f"report {run}").exit_code == 0
    assert call(f"verify {run} --examples 4").exit_code == 0
    story = Run.open(run, check_hashes=True).read_json("story.json")
    assert story["sections"] == sections
    assert story["verification"]["pearson"] > 0.9


def test_the_report_of_a_use_is_drawn_again_and_elsewhere(call):
    assert call(f"{line_of('relabel')} --out runs/use --quiet").stdout == (
        f"{Path('runs/use/report.html')}\n"
    )
    page = Path("runs/use/report.html").read_bytes()
    assert call("report runs/use").exit_code == 0
    assert call("report runs/use --out copy.html").exit_code == 0
    assert Path("runs/use/report.html").read_bytes() == page == Path("copy.html").read_bytes()
    assert set(Run.open("runs/use", check_hashes=True).files) >= {"result.json"}


def test_a_use_of_another_problem_is_refused_before_anything_is_computed(
    call, make_run, monkeypatch: pytest.MonkeyPatch
):
    run = make_run()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    monkeypatch.setattr("whence.uses.whatif.remove", None)  # would fail if it were called
    result = call(f"remove train.py:other --query train.py:queries --group 7 --add-to {run}")
    assert result.exit_code == 1
    assert "Stale" in result.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_run_of_a_use_is_no_explanation(call):
    assert call(f"{line_of('upweight')} --out runs/use").exit_code == 0
    for line in ("verify runs/use", f"{line_of('relabel')} --add-to runs/use"):
        result = call(line)
        assert result.exit_code == 1
        assert "NotARun" in result.stderr
        assert "'use'" in result.stderr


def test_an_explanation_of_before_there_were_sections_can_get_one(call, make_run):
    run = make_run()
    opened = Run.open(run)
    story = opened.read_json("story.json")
    old = {name: value for name, value in story.items() if name != "sections"} | {"version": 1}
    from whence.report.runs import retell

    retell(opened, old)
    assert call(f"report {run}").exit_code == 0
    assert call(f"{line_of('relabel')} --add-to {run}").exit_code == 0
    assert len(Run.open(run).read_json("story.json")["sections"]) == 1


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("group", ["7,12", "' 7, 12,'", "@ids.txt", "ids.npy"])
def test_a_group_is_named_by_ids_or_by_a_file_of_ids(group: str, call):
    line = f"remove train.py:problem --query train.py:one --json --group {group}"
    assert json.loads(call(line).stdout)["train_ids"] == [7, 12]


def test_ids_are_words_where_the_training_ids_are_words(call):
    line = "remove train.py:named --query train.py:one --json --group 'scan 7,scan 12'"
    assert json.loads(call(line).stdout)["train_ids"] == ["scan 7", "scan 12"]
    result = call("remove train.py:named --query train.py:one --group 7")
    assert "There is no training example '7'" in result.stderr


@pytest.mark.parametrize("groups", ["train.py:groups", "halves.json", "sides.npy"])
def test_groups_come_from_python_json_or_one_label_an_example(groups: str, call):
    line = f"mismatch train.py:problem --query train.py:one --json --groups {groups}"
    found = json.loads(call(line).stdout)["groups"]
    assert sorted(group["size"] for group in found) == [24, 24]


def test_a_contrast_is_a_measurement_of_every_use(call):
    line = "upweight train.py:problem --query train.py:one --example 3 --by 2 --json"
    answer = json.loads(call(f"{line} --measurement contrast:eight:three").stdout)
    assert answer["measurement"] == "contrast:eight:three"


def test_an_attack_may_be_told_which_images_to_change(call):
    line = "poison train.py:problem --query train.py:one --group 0,9 --box 9 --step 3"
    answer = json.loads(call(f"{line} --iterations 1 --together --json").stdout)
    assert answer["outcomes"][0]["examples"] == [0, 9]
    assert answer["settings"]["target"] == "together"


# --------------------------------------------------------------------------- refusals

REFUSED = {
    "remove train.py:problem --query train.py:one --group 7,99": ("BadArgument", "99"),
    "remove train.py:problem --query train.py:one --group 7,seven": ("BadArgument", "'seven'"),
    "remove train.py:problem --query train.py:one --group 7,7": ("BadArgument", "once"),
    "remove train.py:problem --query train.py:one --group ,": ("BadArgument", "at least one"),
    "remove train.py:problem --query train.py:one --group @no.txt": ("BadArgument", "no.txt"),
    "remove train.py:problem --query train.py:one --group no.npy": ("BadArgument", "no.npy"),
    "remove train.py:problem --query train.py:one --group broken.npy": ("StoreError", "broken"),
    "upweight train.py:problem --query train.py:one --example 3 --by -1": ("BadArgument", "-1"),
    "relabel train.py:problem --query train.py:one --example 3 --label nine": (
        "UnknownName",
        "'nine'",
    ),
    "replace train.py:problem --query train.py:one --example 3 --with train.py:queries": (
        "BadArgument",
        "3 examples",
    ),
    "flip train.py:problem --query train.py:queries": ("BadArgument", "--position"),
    "flip train.py:problem --query train.py:queries --position 3": ("BadArgument", "0 to 2"),
    "perturb train.py:problem --query train.py:one --example x": ("BadArgument", "'x'"),
    "tokens train.py:problem --query train.py:one --example 3": ("Unsupported", "no tokens"),
    "tokens train.py:texts --query train.py:asked_words --example 3 --by loss": (
        "Unsupported",
        'by="input"',
    ),
    "tokens train.py:texts --query train.py:asked_words --example 3 --by x": ("UnknownName", "'x'"),
    "poison train.py:problem --query train.py:one --box -1": ("BadArgument", "-1"),
    "mislabels train.py:problem --by los": ("UnknownName", "'loss'"),
    "mislabels train.py:problem --truth ids.npy": ("BadData", ""),
    "mismatch train.py:problem --query train.py:one --groups broken.json": ("StoreError", "JSON"),
    "mismatch train.py:problem --query train.py:one --groups ids.npy": ("BadData", ""),
    "compare train.py:problem train.py:named --query train.py:one": ("BadData", "ids"),
    "components train.py:problem --query train.py:one --method nothing": ("UnknownName", ""),
    "schools train.py:problem --query train.py:queries --position 7": ("BadArgument", "7"),
    "remove train.py:problem --query train.py:one --group 7 --add-to nowhere": ("NotARun", ""),
    "remove train.py:problem --query train.py:one --group 7 --out .": ("StoreError", "not a run"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_is_told_by_the_librarys_own_errors(line: str, call):
    Path("broken.npy").write_bytes(b"no array")
    Path("broken.json").write_text("{no json")
    kind, part = REFUSED[line]
    result = call(f"{line} --json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["type"]) == (1, kind)
    assert part in f"{error['found']} {error['why']} {error['remedy']}"


@pytest.mark.parametrize(
    "line",
    [
        "remove train.py:problem --query train.py:one",
        "upweight train.py:problem --query train.py:one --example 3 --by twice",
        "relabel train.py:problem --query train.py:one --example 3",
        "perturb train.py:problem --example 3",
        "compare train.py:problem --query train.py:one",
        "poison train.py:problem --query train.py:one --examples 1 --group 0,1",
        "schools train.py:problem --query train.py:one --regions 3 --no-captum",
        "remove train.py:problem --query train.py:one --group 7 --out a --add-to b",
        "flip train.py:problem --query train.py:one --position -1",
    ],
)
def test_wrong_usage_has_an_exit_code_of_its_own(line: str, call):
    assert call(line).exit_code == 2


def test_nothing_is_written_where_a_use_is_refused(call, folder: Path):
    before = {path.name for path in folder.iterdir()}
    call("remove train.py:problem --query train.py:one --group 99 --out runs/use")
    assert {path.name for path in folder.iterdir()} - {"__pycache__"} == before


def test_numbers_of_a_use_do_not_depend_on_how_they_are_shown(call):
    """Round trip: what --json prints is what the library holds, to the last bit."""
    problem, queries = load_problem("train.py:problem"), load_object("train.py:queries")
    line = "perturb train.py:problem --query train.py:queries --example 3 --json"
    values = np.array(json.loads(call(line).stdout)["values"])
    np.testing.assert_array_equal(values, perturb(problem, queries, example=3).values)
    assert isinstance(problem, whence.Problem)
