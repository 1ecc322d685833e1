"""Which tokens of a training text carry its effect on a query: asked once, kept with the run."""

import numpy as np

from whence.errors import unknown_name
from whence.explorer import views
from whence.explorer.desk import DONE
from whence.explorer.questions import WAYS
from whence.explorer.views import Json, Parameters, Session


def tokens(session: Session, parameters: Parameters) -> Json:
    """A training text with the effects of its tokens on one query, where that has been asked.

    Raises:
        UnknownName: it cannot be taken apart in this way.
        HTTPException: no such query, or no such training example.
    """
    query = views.query_position(session, parameters)
    example = views.example_position(session, {"position": parameters["example"]})
    by = parameters.get("by", "auto")
    if by not in WAYS:
        raise unknown_name("decomposition", by[:40], WAYS)
    asked = {"query": query, "example": example, "by": by}
    found = session.desk.latest("tokens", asked)
    is_done = found is not None and found.state == DONE
    told = session.catalog.example(example)
    return {
        "query": session.catalog.summary(query),
        "example": views.looked_up(session, told),
        "effect": float(np.asarray(session.catalog.scores.values[query, example])),
        "asked": {"kind": "tokens", **asked},
        "question": None if found is None else views.without_answer(found),
        "answer": found.answer if found is not None and is_done else None,
    }
