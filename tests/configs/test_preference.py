"""What preference learning asks of the settings together: a sentence for each contradiction."""

from typing import Any

import msgspec
import pytest

from configs.consistency import problems
from configs.schema import Settings

JSONL = {"name": "jsonl", "train": "/t.jsonl"}
PAIRS = JSONL | {"chosen": "chosen", "rejected": "rejected"}
LABELLED = JSONL | {"response": "answer", "label": "good"}
ONLINE = {"learn_from": {"name": "policy"}}
KTO = {"loss": {"name": "kto"}}
GSM8K = {"name": "gsm8k", "train": "/a", "eval": "/b"}


def settings(
    algorithm: dict[str, Any] | None = None, task: dict[str, Any] | None = None, **tables: Any
) -> Settings:
    preference = {"name": "preference"} | (algorithm or {})
    raw = {"task": task or {"name": "sorting"}, "algorithm": preference} | tables
    return msgspec.convert(raw, Settings)


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [
        ({}, None),
        ({}, PAIRS),
        ({}, PAIRS | {"reward": "/r.py"}),
        ({}, PAIRS | {"response": "right"}),
        (KTO, None),
        (KTO, PAIRS),
        (KTO, LABELLED),
        (ONLINE, None),
        (ONLINE, GSM8K),
        (ONLINE, JSONL | {"reward": "/r.py"}),
        ({"loss": {"name": "dpo", "robust": True, "label_smoothing": 0.1}}, PAIRS),
        *(({"loss": {"name": name}}, PAIRS) for name in ("ipo", "simpo", "orpo")),
    ],
)
def test_what_works_is_let_through(algorithm, task) -> None:
    assert list(problems(settings(algorithm, task))) == []


@pytest.mark.parametrize(
    ("algorithm", "task", "tables", "words"),
    [
        ({}, GSM8K, {}, 'needs pairs of answers, which task "gsm8k" does not have: use algorithm.'),
        ({}, JSONL, {}, "needs task.chosen and task.rejected, the columns with the two answers"),
        (KTO, JSONL, {}, "the columns with the two answers; or task.label"),
        ({}, JSONL | {"chosen": "a"}, {}, "go together: a pair is two answers"),
        (
            {}, JSONL | {"chosen": "a", "rejected": "a"}, {},
            'task.chosen and task.rejected need two columns, got "a" for both',
        ),
        ({}, LABELLED, {}, 'task.label has no effect with algorithm.loss.name = "dpo"'),
        (KTO, LABELLED | {"response": ""}, {}, "task.label needs task.response"),
        (KTO, LABELLED | {"label": "answer"}, {}, 'need two columns, got "answer" for both'),
        (KTO, PAIRS | LABELLED, {}, "task.label has no effect beside task.chosen"),
        (KTO | ONLINE, None, {}, 'needs algorithm.learn_from.name = "data", got "policy"'),
        (KTO | {"prompts_per_step": 1}, PAIRS, {}, "needs to be at least 2"),
        (ONLINE, PAIRS, {}, "needs task.reward, a Python file that scores answers"),
        (ONLINE, PAIRS | {"reward": "/r.py"}, {}, "task.chosen has no effect"),
        (
            {"loss": {"name": "dpo", "robust": True}}, PAIRS, {},
            "robust needs algorithm.loss.label_smoothing between 0 and 0.5, got 0",
        ),
        ({}, PAIRS, {"sampling": {"temperature": 0.7}}, "sampling.temperature has no effect"),
        ({}, PAIRS, {"eval": {"temperature": 1.0}}, "eval.temperature has no effect without task."),
        (KTO, LABELLED, {"eval": {"max_new_tokens": 9}}, "eval.max_new_tokens has no effect"),
    ],
)  # fmt: skip
def test_a_contradiction_is_one_sentence_that_names_the_key(algorithm, task, tables, words) -> None:
    found = list(problems(settings(algorithm, task, **tables)))
    assert [sentence for sentence in found if words in sentence], found
    assert all("\n" not in sentence for sentence in found)
