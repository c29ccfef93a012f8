"""The verdict of a comparison: how long a context is usable, and whether short ability is kept."""

from collections.abc import Sequence
from typing import Literal

from lengthen.results import PerplexityRow, ScoreRow, Verdict, rows_of

__all__ = ["RETRIEVAL", "SHARE", "TOO_FEW", "WORSE_PERPLEXITY", "verdict"]

SHARE = 0.85
"""Of the base's own best score that a usable length keeps (NoLiMa, arXiv 2502.05167, section 4)."""

RETRIEVAL = {"needle": "needles", "lookup": "look-ups"}
"""The tasks that say what of a context is usable, and what they hide; the first that the base can do decides."""

WORSE_PERPLEXITY = 1.01
"""Times the base's perplexity; up to there it is kept, whatever its interval."""

TOO_FEW = "too few prompts or documents to tell"
"""Why something short is undecided, in words."""

_Fate = Literal["lost", "undecided", "kept"]

# A base below this finds too little for a share of it to mean anything.
_LEAST_BEST = 0.1


def verdict(scores: Sequence[ScoreRow], perplexity: Sequence[PerplexityRow], base_context: int) -> Verdict:
    """Judge a run by its base.

    The usable context is the longest tested length at which the run's score is at least `SHARE` of the base's own
    score at its best length. Something short is lost where the run is below the base on it and the whole 95% interval
    of their difference is; a perplexity, where it is also more than 1% higher. Where the run is below the base on a
    single prompt, or a single document, which have no interval, that is undecided. All else is kept.

    Args:
        scores: from `score_rows`; the usable context is that of the needles, or of look-ups where the base finds no
            needles.
        perplexity: from `perplexity_rows`.
        base_context: of the base, tokens.

    Returns:
        "task" (that decides), "usable" and "base_usable" (tokens; None where no length is), "best" and "best_tokens"
        (the base's), "below" (tested lengths up to "usable" that are not), "lost", "undecided" and "kept" (names of
        what is short), "fell" (whether finding within the base's context is lost), "sentence", which says all of it.
    """
    task = _deciding(scores)
    rows = rows_of(scores, task)
    best = max(rows, key=lambda row: row["base"]["score"], default=None)
    passed = _passed(rows, "run", best)
    usable = max(passed, default=None)
    short = _short(scores, perplexity, base_context)
    found: Verdict = {
        "task": task,
        "usable": usable,
        "base_usable": max(_passed(rows, "base", best), default=None),
        "best": None if best is None else best["base"]["score"],
        "best_tokens": None if best is None else best["tokens"],
        "below": sorted(tokens for tokens in {row["tokens"] for row in rows} - passed if tokens < (usable or 0)),
        "lost": short["lost"],
        "undecided": short["undecided"],
        "kept": short["kept"],
        "fell": any(name.startswith(f"{task} ") for name in short["lost"]),
        "sentence": "",
    }
    return {**found, "sentence": _sentence(found)}


def _deciding(scores: Sequence[ScoreRow]) -> str | None:
    """The retrieval task to judge by: the first that the base can do, else the first of all."""
    asked = [task for task in RETRIEVAL if any(row["task"] == task for row in scores)]
    can = [row["task"] for row in scores if row["depth"] is None and row["base"]["score"] >= _LEAST_BEST]
    return next((task for task in asked if task in can), asked[0] if asked else None)


def _passed(rows: Sequence[ScoreRow], side: Literal["base", "run"], best: ScoreRow | None) -> set[int]:
    """The lengths at which a side keeps `SHARE` of the base's best score; none where that is too low to judge by."""
    if best is None or best["base"]["score"] < _LEAST_BEST:
        return set()
    return {row["tokens"] for row in rows if row[side]["score"] >= SHARE * best["base"]["score"]}


def _short(
    scores: Sequence[ScoreRow], perplexity: Sequence[PerplexityRow], base_context: int
) -> dict[_Fate, list[str]]:
    """Names of the abilities within the base's context, by what became of them."""
    short: dict[_Fate, list[str]] = {"lost": [], "undecided": [], "kept": []}
    for row in scores:
        if row["depth"] is None and row["tokens"] <= base_context:
            sure = None if row["high"] is None else row["high"] < 0
            short[_fate(row["difference"] < 0, sure)].append(f"{row['task']} at {row['tokens']:,}")
    within = [row for row in perplexity if row["from"] == 0 and not row["beyond_base"]]
    if within:
        widest = max(within, key=lambda row: row["to"])
        is_worse = widest["ratio"] is None or widest["ratio"] > WORSE_PERPLEXITY
        # An end that is too large for a float is None too.
        sure = None if widest["documents"] < 2 else widest["low"] is None or widest["low"] > 1
        short[_fate(is_worse, sure)].append("perplexity")
    return short


def _fate(is_worse: bool, is_sure: bool | None) -> _Fate:
    """What became of an ability; `is_sure` says whether the whole interval is worse, None where there is none."""
    if not is_worse or is_sure is False:
        return "kept"
    return "undecided" if is_sure is None else "lost"


def _sentence(found: Verdict) -> str:
    if found["best"] is None:
        usable = "no retrieval was measured"
    elif found["best"] < _LEAST_BEST:
        what = RETRIEVAL[found["task"] or "needle"]
        usable = (
            f"the base finds {found['best']:.0%} of the {what} at best, too little to say what of a context is usable"
        )
    else:
        base = f"{found['base_usable']:,}" if found["base_usable"] else "none"
        usable = f"usable up to {found['usable']:,} tokens" if found["usable"] else "no tested length is usable"
        usable += f" (base: {base})"
        if found["below"]:
            usable += f", but not at {', '.join(f'{tokens:,}' for tokens in found['below'])}"
    fates = [f"lost ({', '.join(found['lost'])})"] if found["lost"] else []
    if found["undecided"]:
        fates.append(f"undecided ({', '.join(found['undecided'])}: {TOO_FEW})")
    if not fates and not found["kept"]:
        return usable
    return f"{usable}; short ability {', '.join(fates) or 'kept'}"
