"""What a review leaves, as files to be saved: decisions, and the data as they leave it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whence.explorer.cleaning import clean, decisions_csv, decisions_json
from whence.explorer.huggingface import package
from whence.explorer.review import Decision

if TYPE_CHECKING:
    from whence.core.problem import Problem

Decisions = Mapping[int | str, Decision]


@dataclass(frozen=True)
class Export:
    """One file.

    Args:
        media_type: of its content.
        words: what it holds.
        make: its content, from the problem, which is asked for only where it is needed.
    """

    media_type: str
    words: str
    make: Callable[[Callable[[], "Problem"], Decisions], bytes]


EXPORTS: Mapping[str, Export] = {
    "decisions.json": Export(
        "application/json", "the decisions", lambda _, made: decisions_json(made)
    ),
    "decisions.csv": Export("text/csv", "the decisions", lambda _, made: decisions_csv(made)),
    "cleaned.npz": Export(
        "application/zip",
        "the cleaned data: arrays x, y and id",
        lambda problem, made: clean(problem(), made).npz(),
    ),
    "cleaned.csv": Export(
        "text/csv",
        "the cleaned data: a row an example",
        lambda problem, made: clean(problem(), made).csv(),
    ),
    "cleaned.parquet": Export(
        "application/vnd.apache.parquet",
        "the same rows as Parquet; needs pyarrow",
        lambda problem, made: clean(problem(), made).parquet(),
    ),
    "cleaned.hf.zip": Export(
        "application/zip",
        "the cleaned data as a data set of Hugging Face; needs pyarrow",
        lambda problem, made: package(problem(), made),
    ),
}
