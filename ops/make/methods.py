"""The methods of `make-data`, each as what it keeps of one prompt's answers. Pure functions."""

from collections.abc import Callable
from typing import Any

from configs.data_schema import (
    BestOfN,
    DataSettings,
    Magpie,
    PreferenceRows,
    Rejection,
    SftRows,
    StepByStep,
    Traces,
)
from ops.make.records import Candidate, Draft, Outcome
from runtime.tasks.prompt import Prompt

Chosen = tuple[list[Draft], dict[str, Outcome]]
Objection = Callable[[Candidate], str]
"""A function that returns why a candidate is rejected; empty if it is not."""


def of_prompt(settings: DataSettings, number: int, group: list[Candidate]) -> Chosen:
    """Returns drafts of one prompt's answers, and the outcomes of answers that are in none."""
    output, method = settings.output, settings.method
    if isinstance(output, PreferenceRows):
        assert isinstance(method, Rejection | BestOfN)
        return _pairs(method, output, number, group)
    match method:
        case Rejection():
            return _each(output, number, group, lambda c: "" if c.passed else "wrong")
        case BestOfN():
            return _best(method, output, number, group)
        case Traces():
            return _traces(settings, method, output, number, group)
        case StepByStep():
            return _both_steps(method, output, number, group)
        case Magpie():
            return _each(output, number, group, lambda c: "")


def steps(candidate: Candidate, method: StepByStep) -> tuple[str, str]:
    """Returns (rationale, label). Reasoning that was marked as such is the rationale; else the text
    before the label is.
    """
    before, mark, label = candidate.text.rpartition(method.mark)
    if not mark:
        return (candidate.reasoning, candidate.text) if candidate.reasoning else ("", "")
    return candidate.reasoning or before.strip(), label.strip()


def _each(output: SftRows, number: int, group: list[Candidate], objection: Objection) -> Chosen:
    """Returns a row for each answer that is not rejected."""
    drafts: list[Draft] = []
    outcomes: dict[str, Outcome] = {}
    for candidate in group:
        if reason := objection(candidate):
            outcomes[candidate.name] = ("rejected", reason)
        else:
            drafts.append(_draft(output, number, candidate, candidate.text))
    return drafts, outcomes


def _best(method: BestOfN, output: SftRows, number: int, group: list[Candidate]) -> Chosen:
    best, *others = _ranked(group)
    outcomes: dict[str, Outcome] = {c.name: ("rejected", "not_best") for c in others}
    if method.require_pass and not best.passed:
        return [], {**outcomes, best.name: ("rejected", "wrong")}
    return [_draft(output, number, best, best.text)], outcomes


def _traces(
    settings: DataSettings, method: Traces, output: SftRows, number: int, group: list[Candidate]
) -> Chosen:
    marks = settings.reasoning
    drafts: list[Draft] = []
    outcomes: dict[str, Outcome] = {}
    for candidate in group:
        if method.only_right and not candidate.passed:
            outcomes[candidate.name] = ("rejected", "wrong")
        elif method.require_reasoning and not candidate.reasoning:
            outcomes[candidate.name] = ("rejected", "no_reasoning")
        else:
            trace = candidate.text
            if candidate.reasoning:
                trace = f"{marks.begin}\n{candidate.reasoning}\n{marks.end}\n\n{trace}"
            drafts.append(_draft(output, number, candidate, trace))
    return drafts, outcomes


def _both_steps(method: StepByStep, output: SftRows, number: int, group: list[Candidate]) -> Chosen:
    drafts: list[Draft] = []
    outcomes: dict[str, Outcome] = {}
    for candidate in group:
        rationale, label = steps(candidate, method)
        if not label:
            outcomes[candidate.name] = ("rejected", "no_label")
        elif method.only_right and not candidate.passed:
            outcomes[candidate.name] = ("rejected", "wrong")
        elif not rationale:
            outcomes[candidate.name] = ("rejected", "no_rationale")
        else:
            parts = (("label", method.label_prefix, label),
                     ("rationale", method.rationale_prefix, rationale))  # fmt: skip
            rows = [
                {**_prompt(output, candidate.prompt, prefix), "response": text, "part": part}
                for part, prefix, text in parts
            ]
            text = f"{_text(candidate.prompt)}\n{rationale}\n{label}"
            drafts.append(Draft(group=number, uses=[candidate], rows=rows, text=text))
    return drafts, outcomes


def _pairs(
    method: Rejection | BestOfN, output: PreferenceRows, number: int, group: list[Candidate]
) -> Chosen:
    """Returns the best with the worst, the second best with the second worst, and so on."""
    ranked = _ranked(group)
    drafts: list[Draft] = []
    used: set[str] = set()
    for better, worse in zip(ranked[: len(ranked) // 2], reversed(ranked)):
        right = better.passed or not (isinstance(method, Rejection) or method.require_pass)
        wrong = not worse.passed or not isinstance(method, Rejection)
        if len(drafts) >= output.pairs or not better.reward - worse.reward > output.margin:
            break
        if right and wrong and better.text != worse.text:
            row = {
                **_prompt(SftRows(), better.prompt),
                "chosen": better.text,
                "rejected": worse.text,
            }
            text = f"{_text(better.prompt)}\n{better.text}\n{worse.text}"
            drafts.append(Draft(group=number, uses=[better, worse], rows=[row], text=text))
            used |= {better.name, worse.name}
    reason = "surplus" if drafts else "no_contrast"
    return drafts, {c.name: ("rejected", reason) for c in group if c.name not in used}


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def _ranked(group: list[Candidate]) -> list[Candidate]:
    """Returns the highest reward first. Of equals the one that was asked for first comes first."""
    return sorted(group, key=lambda c: -c.reward)


def _draft(output: SftRows, number: int, candidate: Candidate, response: str) -> Draft:
    row = {**_prompt(output, candidate.prompt), "response": response}
    text = f"{_text(candidate.prompt)}\n{response}"
    return Draft(group=number, uses=[candidate], rows=[row], text=text)


def _prompt(output: SftRows, prompt: Prompt, prefix: str = "") -> dict[str, Any]:
    *before, last = prompt.messages
    messages = [*before, {**last, "content": prefix + last["content"]}]
    if output.column == "messages":
        return {"messages": messages}
    return {"prompt": messages if before else messages[0]["content"]}


def _text(prompt: Prompt) -> str:
    return "\n".join(message["content"] for message in prompt.messages)
