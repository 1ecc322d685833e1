"""Pages and runs stay small whatever sounds they hold."""

import numpy as np

from whence.core.display import describe
from whence.report import render, tell
from whence.report.sounds import MOST_SOUND, Room


def sound(seconds: float = 0.1) -> dict:
    rng = np.random.default_rng(0)
    return describe(rng.normal(size=int(8000 * seconds)) / 9, "audio", rate=8000)


def test_sounds_are_kept_in_their_order_until_there_is_no_room():
    display = sound()
    told = {"queries": [{"id": i, "display": display} for i in range(5)]}
    fitted = Room(3 * len(display["wav"]) + 1).fit(told)["queries"]
    assert ["wav" in query["display"] for query in fitted] == [True] * 3 + [False] * 2
    silent = {name: value for name, value in display.items() if name != "wav"}
    assert fitted[4] == {"id": 4, "display": silent}
    assert all("wav" in query["display"] for query in told["queries"])  # a copy


def test_what_holds_no_sound_is_left_as_it_is():
    told = {"a": [1, None, "wav"], "display": {"kind": "text", "text": "x", "wav": "y"}}
    assert Room(0).fit(told) == told


def test_a_story_of_many_long_sounds_stays_within_its_limit(make_problem, make_scores, monkeypatch):
    monkeypatch.setattr("whence.report.sounds.Room.__init__.__defaults__", (200_000,))
    problem = make_problem(show_input=lambda inputs: sound(1.0))
    page = render(tell(problem, make_scores(problem, 8)))
    assert page.count("data:audio/wav") == 200_000 // len(sound(1.0)["wav"])
    assert page.count("not kept for playing") > 0
    assert MOST_SOUND < 2**26
