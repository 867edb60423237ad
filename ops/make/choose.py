"""Chooses the answers of a prompt that each method keeps as rows. Pure functions, told by the recipe.

`split` and `unfit` look at one answer, `choose` at all that are left; each gives an outcome to every
candidate that it does not pass on, so that nothing is lost without a reason.
"""

from collections.abc import Iterable, Sequence

import msgspec

from configs.data_consistency import has_verifier, needs_verdict
from configs.data_schema import (
    DataSettings,
    Limits,
    Reasoning,
    StepByStep,
)
from ops.make.methods import Chosen, of_prompt, steps
from ops.make.records import Candidate, Draft, Outcome

SHORTEST_WORDS = 4
"""The characters that are taken for one token where tokens are not counted."""


def split(text: str, reasoning: str, marks: Reasoning) -> tuple[str, str]:
    """Returns (reasoning, final answer). A template may have written the first mark already."""
    before, end, after = text.partition(marks.end)
    if end:
        return before.strip().removeprefix(marks.begin).strip(), after.strip()
    if text.lstrip().startswith(marks.begin):  # the answer was not begun
        return text.strip().removeprefix(marks.begin).strip(), ""
    return reasoning.strip(), text.strip()


def unfit(text: str, stop: str, limits: Limits) -> Outcome | None:
    """Returns why a text is not worth judging; None if it is."""
    if stop == "length":
        return "rejected", "truncated"
    if stop == "content_filter":
        return "rejected", "filtered"
    if not text:
        return "failed", "empty"
    if len(text) < limits.shortest_characters:
        return "rejected", "too_short"
    if len(text) > limits.longest_characters:
        return "rejected", "too_long"
    return None


def judged_text(settings: DataSettings, candidate: Candidate) -> str:
    """Returns the text of an answer that the verifier sees."""
    method = settings.method
    if isinstance(method, StepByStep) and method.judged == "label":
        return steps(candidate, method)[1]
    return candidate.text


def choose(settings: DataSettings, candidates: Sequence[Candidate]) -> Chosen:
    """Returns drafts of rows in the order of the prompts, and the outcomes of all answers that are in
    none.
    """
    outcomes: dict[str, Outcome] = {}
    able = []
    for candidate in candidates:
        outcome = _verdict_outcome(settings, candidate)
        if outcome:
            outcomes[candidate.name] = outcome
        else:
            able.append(candidate)
    drafts: list[Draft] = []
    for number, group in enumerate(_groups(able)):
        made, gone = of_prompt(settings, number, group)
        drafts += made
        outcomes |= gone
    return drafts, outcomes


def capped(settings: DataSettings, drafts: Iterable[Draft]) -> Chosen:
    """Returns at most `method.keep` drafts of each prompt, the first ones."""
    keep = getattr(settings.method, "keep", 0)
    kept: list[Draft] = []
    outcomes: dict[str, Outcome] = {}
    count: dict[int, int] = {}
    for draft in drafts:
        count[draft.group] = count.get(draft.group, 0) + 1
        if keep and count[draft.group] > keep:
            outcomes |= {c.name: ("rejected", "surplus") for c in draft.uses}
        else:
            kept.append(draft)
    return kept, outcomes


# ── each answer ──────────────────────────────────────────────────────────────────────────────────


def _verdict_outcome(settings: DataSettings, candidate: Candidate) -> Outcome | None:
    verdict = candidate.verdict
    if needs_verdict(settings):
        if verdict is None or verdict.reward is None:
            failure = verdict.failure if verdict is not None else None
            return "failed", f"verifier_{failure or 'silent'}"
    elif is_one_token(candidate) and not (has_verifier(settings) and candidate.passed):
        return "rejected", "one_token"
    return None


def is_one_token(candidate: Candidate) -> bool:
    """Returns whether an answer is one token. Some servers count the end token too, and some do not
    count.
    """
    tokens = candidate.answer.tokens
    if candidate.answer.stop == "data":  # the dataset has it so
        return False
    if tokens == 1 or not (candidate.answer.model or tokens is None):
        return tokens == 1
    return (tokens is None or tokens == 2) and len(candidate.text) <= SHORTEST_WORDS


def _groups(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Returns answers to the same messages, in order of the first."""
    groups: dict[bytes, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(msgspec.json.encode(candidate.prompt.messages), []).append(candidate)
    return list(groups.values())
