"""How far to believe scores, in a few words."""

import math

NUMBERS, RANKING, TOP = "believe the numbers", "believe the ranking", "believe only the top"
NOTHING, UNKNOWN = "do not believe", "cannot tell"

FEWEST = 8
"""With fewer retrainings any correlation can be chance, and no verdict is given."""


def judge(*, correlation: float, ranks: float, slope: float, ceiling: float, examples: int) -> str:
    """The verdict.

    - "believe the numbers": correlation at least 0.9 and slope from 0.8 to 1.25;
    - "believe the ranking": rank correlation at least 0.7;
    - "believe only the top": correlation at least 0.5, which a few large effects can bring about;
    - "do not believe": less than that;
    - "cannot tell": fewer than `FEWEST` retrainings, effects that do not vary, or trainings so
      noisy that true effects would correlate with them at less than 0.5.

    Args:
        correlation: lower end of the interval of the correlation.
        ranks: lower end of the interval of the rank correlation.
        slope: of actual over predicted effects; NaN where the scores have no scale.
        ceiling: the correlation that true effects would reach; NaN where it is not known.
        examples: retrainings.
    """
    if examples < FEWEST or math.isnan(correlation) or math.isnan(ranks) or ceiling < 0.5:
        return UNKNOWN
    if correlation >= 0.9 and 0.8 <= slope <= 1.25:
        return NUMBERS
    if ranks >= 0.7:
        return RANKING
    return TOP if correlation >= 0.5 else NOTHING
