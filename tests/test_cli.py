"""The command line says what the library says, on the right stream, with the right exit code."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import whence
from whence import methods
from whence.cli import main, tables
from whence.cli.references import load_object, load_problem, load_queries
from whence.errors import BadArgument, BadData, StoreError
from whence.report import render
from whence.store import Run, writing

TRAIN = """
import numpy as np
import torch
from torch.nn import functional as F

import whence
from constants import DECAY

print("the user's file talks")
random = np.random.default_rng(0)
X = random.normal(size=(60, 4))
y = (X @ [1.0, -1.0, 0.5, 0.0] + 0.3 * random.normal(size=60) > 0).astype(int)

def trained(y):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-9)
    def closure():
        optimizer.zero_grad()
        penalty = sum((p**2).sum() for p in model.parameters())
        loss = F.cross_entropy(model(torch.tensor(X)), torch.tensor(y)) + DECAY / 2 * penalty
        loss.backward()
        return loss
    optimizer.step(closure)
    return model

def problem():
    return whence.make_problem(
        trained(y), (X, y), loss="cross_entropy", weight_decay=DECAY, label_names=["no", "yes"]
    )

def other():
    return whence.make_problem(
        trained(1 - y), (X, 1 - y), loss="cross_entropy", weight_decay=DECAY
    )

queries = (X[:3] + 0.1, y[:3])

def broken():
    return 1 / 0
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, which is the current one, with a training script and queries."""
    (tmp_path / "constants.py").write_text("DECAY = 0.01\n")
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "wrong.py").write_text("a = 1\nb = a +\n")
    np.savez(tmp_path / "queries.npz", x=np.eye(4)[:2], y=[0, 1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("train", "constants", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def call(line: str) -> Result:
    """What a command does; a bug, which is any other exception, fails the test."""
    result = CliRunner().invoke(main, shlex.split(line))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def outside(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, with real streams."""
    return subprocess.run(
        [sys.executable, "-m", "whence", *shlex.split(line)],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        env=os.environ | environment,
    )


def make_run(options: str = "") -> Path:
    line = f"explain train.py:problem --query queries.npz --out runs/why --quiet {options}"
    assert call(line).stdout == f"{Path('runs/why/report.html')}\n"
    return Path("runs/why")


# ------------------------------------------------------------------------------- help


def test_help_loads_nothing_that_takes_time():
    code = (
        "import sys; from whence.cli import main; main(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'numpy', 'pandas', 'rich', 'sklearn'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", main.commands)
def test_the_help_of_every_command_shows_an_example_and_every_command_speaks_json(name: str):
    result = call(f"{name} --help")
    assert result.exit_code == 0
    assert re.search(rf"Example:\n  whence {name}\b", result.stdout)
    assert "--json" in result.stdout


def test_the_examples_in_the_help_use_options_that_exist():
    for command in [main, *main.commands.values()]:
        for line in command.examples:
            _, name, *words = shlex.split(line.split("    ")[0])
            known = {
                option for parameter in main.commands[name].params for option in parameter.opts
            }
            assert {word for word in words if word.startswith("--")} <= known, line


def test_the_help_lists_every_command_under_a_heading_with_a_whole_line():
    text = call("--help").stdout
    for heading, first in {
        "Commands:": "demo",
        "What if the training data were different:": "remove",
        "Look into data and model:": "mislabels",
    }.items():
        assert re.search(rf"^{heading}\n  {first} ", text, re.MULTILINE)
    for name in main.commands:
        (line,) = re.findall(rf"^  {name} +(.*)$", text, re.MULTILINE)
        assert line.endswith(".")
        assert not line.endswith("...")


def test_python_dash_m_whence_is_the_same_command():
    assert outside("--version").stdout == call("--version").stdout


# ---------------------------------------------------------------------------- answers


def test_explain_prints_the_effects_of_the_library():
    problem, queries = load_problem("train.py:problem"), load_queries("queries.npz")
    scores = whence.explain(problem, queries, measurement="loss", method="cg")
    line = "explain train.py:problem --query queries.npz --measurement loss --method cg --top 4"
    answer = json.loads(call(f"{line} --json").stdout)
    assert answer["measurement"]["sign"] == scores.sign_sentence
    for position, query in enumerate(answer["queries"]):
        top = scores.top(4, query=position)
        for side in ("proponents", "opponents"):
            told = [(entry["id"], entry["effect"]) for entry in query[side]]
            assert told == [(effect.id, effect.effect) for effect in getattr(top, side)]
    text = call(line).stdout
    assert scores.sign_sentence in " ".join(text.split())
    assert "asked for" in text  # the reason why this method


def test_queries_come_from_a_file_of_arrays_or_from_python():
    by_name = load_queries("train.py:queries")
    np.savez("same.npz", inputs=by_name[0], labels=by_name[1])
    line = "explain train.py:problem --json --query"
    first, second = (
        json.loads(call(f"{line} {q}").stdout) for q in ("train.py:queries", "same.npz")
    )
    assert first["queries"] == second["queries"]


def test_queries_without_labels_are_measured_at_the_answer_of_the_model():
    np.savez("unlabelled.npz", x=np.eye(4)[:2])
    answer = json.loads(call("explain train.py:problem --query unlabelled.npz --json").stdout)
    assert [q["label"] for q in answer["queries"]] == [
        q["prediction"]["label"] for q in answer["queries"]
    ]


def test_several_inputs_keep_their_names(tmp_path: Path):
    np.savez("several.npz", **{"inputs/a": np.ones(2), "inputs/b": np.zeros(2), "targets": [0, 1]})
    inputs, targets = load_queries("several.npz")
    assert list(inputs) == ["a", "b"]
    assert targets.tolist() == [0, 1]


def test_a_run_holds_the_scores_the_story_and_the_page_of_the_story():
    run = Run.open(make_run(), check_hashes=True)
    assert set(run.files) == {"scores.npz", "album.npz", "story.json", "report.html"}
    assert run.problem == f"{Path('train.py').resolve()}:problem"  # valid from every folder
    problem = load_problem("train.py:problem")
    scores = whence.explain(problem, load_queries("queries.npz"))
    np.testing.assert_array_equal(whence.Scores.load(run.path("scores.npz")).values, scores.values)
    page = run.path("report.html").read_text(encoding="utf-8")
    assert page == render(run.read_json("story.json"))


def test_the_report_of_a_run_can_be_drawn_elsewhere_and_again():
    folder = make_run()
    page = (folder / "report.html").read_bytes()
    assert call(f"report {folder} --out copy.html").stdout == "copy.html\n"
    assert Path("copy.html").read_bytes() == page
    assert json.loads(call(f"report {folder} --json").stdout) == {
        "report": str(folder / "report.html")
    }
    assert (folder / "report.html").read_bytes() == page
    Run.open(folder, check_hashes=True)


def test_verify_puts_the_verdict_into_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run("--top 2")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    answer = json.loads(call(f"verify {folder / run} --examples 6 --seed 3 --json").stdout)
    assert answer["verification"]["pearson"] > 0.9  # exact curvature of a convex problem
    assert answer["queries"][0]["proponents"][2:] == []
    opened = Run.open(folder / run, check_hashes=True)
    story = opened.read_json("story.json")
    assert story["verification"] == answer["verification"]
    assert story["trust"]["title"] in opened.path("report.html").read_text(encoding="utf-8")


def test_verification_can_follow_the_explanation_at_once():
    run = make_run("--verify 6")
    story = Run.open(run).read_json("story.json")
    problem = load_problem("train.py:problem")
    scores = whence.explain(problem, load_queries("queries.npz"))
    again = whence.verify(problem, scores, examples=6)
    assert story["verification"]["pearson"] == pytest.approx(again.to_json()["pearson"], rel=1e-9)


def test_random_subsets_are_verified_and_the_page_says_so():
    run = make_run()
    shown = call(f"verify {run} --subsets 9 --fraction 0.75").stdout
    assert "each without" in shown
    assert "linear datamodeling score" in shown
    story = Run.open(run).read_json("story.json")
    assert (story["verification"]["kind"], story["verification"]["examples"]) == ("subsets", 9)
    page = Run.open(run).path("report.html").read_text(encoding="utf-8")
    assert "times, each without a random 25 % of the training examples" in page
    assert "Over 9 trainings on a random 75 % of the data" in page
    assert "without subset 3: predicted" in page


def test_preflight_tells_the_method_that_explain_takes():
    plan = json.loads(call("preflight train.py:problem --query queries.npz --json").stdout)
    scores = json.loads(call("explain train.py:problem --query queries.npz --json").stdout)
    assert plan["reason"] == scores["method"]["reason"]
    assert plan["sign"] == scores["measurement"]["sign"]
    assert plan["queries"] == 2
    assert re.search(r"memory +about \d+ kB", call("preflight train.py:problem").stdout)


def test_every_method_is_listed_with_a_line_of_its_documentation():
    listed = json.loads(call("methods --json").stdout)
    assert {entry["name"] for entry in listed} == {"auto", *methods.names()}
    for entry in listed:
        assert entry["description"].endswith(".")
        assert entry["name"] in call("methods").stdout


def test_a_quiet_command_prints_only_the_path():
    make_run()
    assert call("report runs/why --quiet").stdout == f"{Path('runs/why/report.html')}\n"


def test_control_characters_of_the_data_never_reach_the_terminal():
    text = "free \x1b[31m money\x07\n\tnow \u202e " + 100 * "!"
    excerpt = tables.excerpt({"kind": "text", "text": text})
    assert excerpt.startswith("free [31m money now !")
    assert excerpt.isprintable()
    assert len(excerpt) == tables.LONGEST_EXCERPT


def test_control_characters_of_labels_never_reach_the_terminal():
    loud = """
def loud():
    names = ["no\\x1b[31m", "yes\\nand more"]
    return whence.make_problem(
        trained(y), (X, y), loss="cross_entropy", weight_decay=DECAY, label_names=names
    )
"""
    Path("train.py").write_text(TRAIN + loud)
    for line in ("explain", "upweight --example 1 --by 2"):
        name, _, options = line.partition(" ")
        result = call(f"{name} train.py:loud --query queries.npz {options}")
        assert result.exit_code == 0, result.stderr
        assert "no␛[31m" in result.stdout
        assert "yes and more" in result.stdout
        assert not set("\x1b\x07") & set(result.stdout)


# ---------------------------------------------------------------------------- streams


def test_json_is_one_document_and_everything_else_goes_to_standard_error():
    done = outside("explain train.py:problem --query queries.npz --json")
    assert json.loads(done.stdout)["format"] == "whence-story"
    assert "png" not in done.stdout
    assert done.stderr == "the user's file talks\n"


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    line = [sys.executable, "-m", "whence", "methods"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        _, errors = process.communicate(timeout=60)
    assert errors == b""
    assert process.returncode == 0


def test_a_terminal_without_the_signs_gets_others_and_no_error():
    done = outside(
        "explain train.py:problem --query queries.npz --out runs/why", PYTHONIOENCODING="ascii"
    )
    assert done.returncode == 0, done.stderr
    assert "proponent" in done.stdout


def test_no_colours_where_nobody_sees_them():
    assert "\x1b" not in outside("methods", NO_COLOR="").stdout


# --------------------------------------------------------------------------- refusals

REFUSED = {
    "preflight train.py:problm": ("BadArgument", "has no 'problm'"),
    "preflight trian.py:problem": ("BadArgument", "There is no file"),
    "preflight train": ("BadArgument", "does not say which object"),
    "preflight nowhere.train:problem": ("BadArgument", "There is no module 'nowhere'"),
    "preflight train.py:DECAY": ("BadArgument", "is of type float"),
    "preflight train.py:broken": ("ProblemError", "ZeroDivisionError: division by zero"),
    "preflight train.py:trained": ("ProblemError", "missing 1 required positional argument"),
    "preflight wrong.py:a": ("ProblemError", "line 2: SyntaxError"),
    "preflight train.py:problem --method exakt": ("UnknownName", "Did you mean 'exact'?"),
    "preflight train.py:problem --query none.npz": ("BadArgument", "There is no file none.npz"),
    "explain train.py:problem --query queries.npz --measurement x": ("UnknownName", "'x'"),
    "explain train.py:problem --query queries.npz --out .": ("StoreError", "not a run"),
    "report .": ("NotARun", "no manifest.json"),
    "report train.py": ("NotARun", "it is a file"),
    "verify nowhere": ("NotARun", "there is no such folder"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_is_told_in_three_parts(line: str):
    kind, part = REFUSED[line]
    result = call(line)
    assert (result.exit_code, result.stdout) == (1, "")
    message = result.stderr.split("the user's file talks\n")[-1]
    assert message.startswith(f"{kind}: ")
    assert len(message.strip().splitlines()) >= 3
    assert part in message
    result = call(f"{line} --json")
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == 1
    assert error["type"] == kind
    assert part in f"{error['found']} {error['why']} {error['remedy']}"
    assert set(error) == {"type", "found", "why", "remedy"}


def test_an_error_in_the_file_of_the_user_is_told_with_its_line():
    line = TRAIN.splitlines().index("    return 1 / 0") + 1
    message = call("preflight train.py:broken").stderr
    assert f"{Path('train.py').resolve()}, line {line}: ZeroDivisionError" in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "line",
    ["explain train.py:problem", "verify", "nothing", "demo --examples 0", "methods --top 3"],
)
def test_wrong_usage_has_an_exit_code_of_its_own(line: str):
    assert call(line).exit_code == 2


def test_arrays_under_other_names_are_refused_with_the_names_that_are_there(tmp_path: Path):
    np.savez("odd.npz", images=np.eye(4))
    with pytest.raises(BadData, match="images"):
        load_queries("odd.npz")
    Path("broken.npz").write_bytes(b"PK not really")
    with pytest.raises(StoreError, match=r"broken\.npz"):
        load_queries("broken.npz")


def test_verifying_with_another_problem_is_refused_and_leaves_the_run_alone():
    run = make_run()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    result = call(f"verify {run} --problem train.py:other")
    assert result.exit_code == 1
    assert "Stale" in result.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_run_that_is_not_all_there_is_refused(command: str):
    run = make_run()
    scores = run / "scores.npz"
    scores.write_bytes(scores.read_bytes()[:-10])
    result = call(f"{command} {run}")
    assert result.exit_code == 1
    assert "NotARun" in result.stderr
    scores.unlink()
    assert "scores.npz is missing" in call(f"{command} {run}").stderr


def test_a_run_of_another_kind_or_without_a_problem_is_refused():
    with writing("runs/index", kind="index"):
        pass
    assert "'index'" in call("report runs/index").stderr
    run = make_run()
    story = Run.open(run).read_json("story.json")
    scores = whence.Scores.load(run / "scores.npz")
    with writing("runs/lost", kind="explanation") as draft:
        scores.save(draft.path("scores.npz"))
        draft.put_json("story.json", story)
    assert "--problem" in call("verify runs/lost").stderr


# ----------------------------------------------------------------------- interruptions


def interrupt(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_ends_with_a_plain_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("whence.explanation.explain", interrupt)
    result = call("explain train.py:problem --query queries.npz --out runs/why")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.splitlines()[-1].startswith("Interrupted.")
    assert not Path("runs").exists()


def test_ctrl_c_while_writing_leaves_the_earlier_run(monkeypatch: pytest.MonkeyPatch):
    run = make_run()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    monkeypatch.setattr("whence.report.runs.render", interrupt)
    result = call("explain train.py:problem --query train.py:queries --out runs/why")
    assert result.exit_code == 130
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert [path.name for path in Path("runs").iterdir()] == ["why"]


# -------------------------------------------------------------------------- references


def test_a_file_is_run_once_for_all_its_names():
    assert load_object("train.py:X") is load_object("./train.py:X")


def test_a_file_never_hides_a_module_of_its_name():
    Path("json.py").write_text("problem = 1\n")
    assert load_object("json.py:problem") == 1
    assert sys.modules["json"] is json


def test_a_module_is_found_from_the_current_folder():
    (Path("project")).mkdir()
    Path("project/__init__.py").touch()
    Path("project/models.py").write_text("def number():\n    return 7\n")
    assert load_object("project.models:number") == 7


def test_a_failing_import_inside_a_module_is_not_taken_for_a_missing_module():
    Path("needy.py").write_text("import not_installed\n")
    with pytest.raises(whence.WhenceError, match=r"needy\.py, line 1: ModuleNotFoundError"):
        load_object("needy:problem")


def test_a_drive_letter_is_part_of_the_path():
    with pytest.raises(BadArgument, match="There is no file"):
        load_object(r"C:\work\train.py:problem")
