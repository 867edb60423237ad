"""The rows of the file: de-duplicated, and each with a record of how it was made under "made"."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from configs.data_schema import DataSettings, EveryRow, Exact, Magpie, Near
from configs.tasks import Jsonl
from ops.make.plan import instruction_sampling
from ops.make.records import KEPT, Candidate, Draft, Outcome
from runtime.dedup import Dedup, deduplicate
from runtime.errors import BadInput


def dedup_settings(near: Near, seed: int) -> Dedup:
    """Returns the settings as `runtime.dedup` takes them. Raises BadInput for settings without sense."""
    try:
        return Dedup(
            threshold=near.threshold,
            unit=near.unit,
            shingle=near.shingle,
            hashes=near.hashes,
            seed=seed,
        )
    except ValueError as error:
        raise BadInput(f"dedup.{error}") from None


def repeated(texts: Sequence[str], settings: DataSettings) -> dict[int, str]:
    """Returns which texts repeat an earlier one, and how: "exact" or "near"."""
    match settings.dedup:
        case EveryRow():
            return {}
        case Exact():
            seen: set[str] = set()
            again = {i: "exact" for i, text in enumerate(texts) if text in seen or seen.add(text)}
            return again
        case Near() as near:
            found = deduplicate(texts, dedup_settings(near, settings.seed)).duplicates
            return {d.row: "exact" if d.exact else "near" for d in found}


def distinct(
    drafts: Sequence[Draft], settings: DataSettings
) -> tuple[list[Draft], dict[str, Outcome]]:
    """Returns the drafts that are new, and the outcomes of candidates that are only in the others."""
    again = repeated([draft.text for draft in drafts], settings)
    outcomes: dict[str, Outcome] = {
        candidate.name: ("duplicate", how)
        for i, how in again.items()
        for candidate in drafts[i].uses
    }
    return [draft for i, draft in enumerate(drafts) if i not in again], outcomes


def finished(
    drafts: Sequence[Draft], settings: DataSettings, teacher: Mapping[str, str]
) -> tuple[list[dict[str, Any]], dict[str, Outcome]]:
    """Returns the rows as they are written, and that their candidates were kept."""
    rows = []
    for draft in drafts:
        for row in draft.rows:
            carried = _carried(settings, draft.uses[0])
            rows.append({**carried, **row, "made": _made(draft, settings, teacher)})
    return rows, {c.name: KEPT for draft in drafts for c in draft.uses}


def encoded(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Returns the rows as JSONL."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _carried(settings: DataSettings, candidate: Candidate) -> dict[str, Any]:
    """Returns the other columns of the user's row. Its reward needs them when a run trains on these
    rows.
    """
    task, row = settings.task, candidate.prompt.truth
    if not isinstance(task, Jsonl) or not isinstance(row, dict):
        return {}
    ours = {task.prompt, task.response, "prompt", "messages", "response", "chosen", "rejected"}
    return {name: value for name, value in row.items() if name not in {*ours, "made", "part"}}


def _made(draft: Draft, settings: DataSettings, teacher: Mapping[str, str]) -> dict[str, Any]:
    sampling = msgspec.structs.asdict(settings.sampling)
    sampling.pop("slots")
    made: dict[str, Any] = {
        "by": "pippin make-data",
        "method": str(settings.method.__struct_config__.tag),
        "teacher": dict(teacher),
        "seed": settings.seed,
        "task": draft.uses[0].prompt.task,
        "prompt_index": draft.uses[0].prompt.index,
    }
    if teacher["name"] != "recorded":
        made["sampling"] = sampling
    if isinstance(settings.method, Magpie):
        how = instruction_sampling(settings, settings.method)
        made["instruction_sampling"] = {"temperature": how.temperature, "top_p": how.top_p,
                                        "max_new_tokens": how.max_new_tokens}  # fmt: skip
    if len(draft.uses) == 1:
        return {**made, **_story(draft.uses[0])}
    chosen, rejected = draft.uses
    return {**made, "chosen": _story(chosen), "rejected": _story(rejected)}


def _story(candidate: Candidate) -> dict[str, Any]:
    answer, verdict = candidate.answer, candidate.verdict
    at = datetime.fromtimestamp(answer.at, UTC).isoformat(timespec="milliseconds")
    story: dict[str, Any] = {
        "key": f"{candidate.key:016x}",
        "time": at,
        "stop": answer.stop,
        "tokens": answer.tokens,
        "verdict": None,
    }
    if answer.model:
        story["answered_by"] = answer.model
    if verdict is not None and (verdict.reward is not None or verdict.failure):
        story["verdict"] = {
            "reward": verdict.reward,
            "passed": verdict.passed,
            "parts": verdict.parts,
            **({"failure": verdict.failure} if verdict.failure else {}),
        }
    return story
