import msgspec
import pytest

from configs.schema import Settings
from ops.sentences import evaluations, explain


def settings(algorithm: dict[str, object] | None = None, **tables: object) -> Settings:
    grpo = {"name": "grpo", **(algorithm or {})}
    return msgspec.convert({"task": {"name": "addition"}, "algorithm": grpo, **tables}, Settings)


def said(about: str, **kwargs: object) -> str:
    """The one sentence that has `about` in it."""
    lines = [line for line in explain(settings(**kwargs), 64) if about in line]  # type: ignore[arg-type]
    assert len(lines) == 1
    return lines[0]


def test_the_step_is_a_product_that_is_written_out() -> None:
    assert said("samples =", algorithm={"prompts_per_step": 32}) == (
        "32 prompts × 8 samples = 256 trajectories = 1 optimiser step "
        "(16,384 sampled tokens at most)."
    )
    assert said("in all") == (
        "100 steps = 100 optimiser steps on 12,800 trajectories of 1,600 prompts in all."
    )


def test_several_updates_share_the_groups() -> None:
    assert "takes 4 of the 16 groups" in said("Each of", algorithm={"updates_per_step": 4})
    assert "takes 5 or 6 of the 16 groups" in said("Each of", algorithm={"updates_per_step": 3})


def test_dynamic_sampling_says_its_worst_case() -> None:
    assert said("at worst", algorithm={"resample_rounds": 3}) == (
        "Dropped groups are replaced in up to 3 rounds: at worst 64 prompts = 512 trajectories "
        "are sampled for a step."
    )


def test_lag_says_how_stale_and_what_accounts_for_it() -> None:
    assert "nothing is stale" in said("Lag")
    lag = {"max_lag": 1, "correction": {"name": "truncate"}}
    assert said("Lag", algorithm=lag) == (
        "Lag 1: sampling may be 1 weights version behind, and the "
        '"truncate" correction accounts for it.'
    )


def test_uncorrected_reinforce_is_pointed_out() -> None:
    off_policy = {"surrogate": {"name": "reinforce"}, "updates_per_step": 2}
    assert "bias its gradient" in said("Note", algorithm=off_policy)


def test_micro_batches_are_counted_for_the_largest_answers() -> None:
    # 128 rows of 64 + 64 tokens; 1,024 tokens hold 8 of them.
    line = said("micro-batch:", actors={"micro_batch_tokens": 1024})
    assert "16 forward and backward passes an optimiser step at most" in line
    assert "changes memory, not the result" in line


@pytest.mark.parametrize(
    ("steps", "every", "prompts", "count"),
    [(100, 0, 128, 2), (100, 20, 128, 6), (100, 30, 128, 5), (5, 20, 128, 2), (100, 20, 0, 0)],
)
def test_evaluations_are_the_base_each_period_and_the_end(
    steps: int, every: int, prompts: int, count: int
) -> None:
    evaluation = {"every_steps": every, "prompts": prompts}
    assert evaluations(settings({"steps": steps}, eval=evaluation)) == count


def test_evaluation_says_what_it_costs() -> None:
    evaluation = {"every_steps": 50, "samples": 4, "temperature": 0.7}
    assert said("Evaluation", eval=evaluation) == (
        "Evaluation: 128 held-out prompts × 4 answers (at temperature 0.7, up to 64 tokens), of "
        "the base, every 50 steps and at the end = 3 evaluations = 1,536 answers."
    )
    assert "the run will not know" in said("No evaluation", eval={"prompts": 0})


def test_supervised_training_speaks_of_rows() -> None:
    sft = msgspec.convert({"task": {"name": "addition"}, "algorithm": {"name": "sft"}}, Settings)
    lines = explain(sft, 64)
    assert lines[0].startswith("32 rows = 1 optimiser step")
    assert lines[1] == "100 steps = 3,200 rows in all."
    assert not [line for line in lines if "trajector" in line]


def distillation(**algorithm: object) -> list[str]:
    teachers = {"big": {"name": "local", "path": "/teacher"}}
    raw = {"name": "distill", "teachers": teachers, **algorithm}
    return explain(msgspec.convert({"task": {"name": "sorting"}, "algorithm": raw}, Settings), 64)


def test_distillation_says_whose_answers_and_what_the_teacher_says_of_them() -> None:
    lines = distillation()
    assert lines[0].startswith("32 prompts, each answered by the student = 32 trajectories")
    assert "reverse divergence from the whole distribution of big" in lines[2]
    assert not [line for line in lines if "cache" in line]
    offline = distillation(learn_from={"name": "data"}, signal={"name": "top_k", "k": 9})
    assert offline[0].startswith("32 rows of data = 32 trajectories")
    assert "forward divergence from the 9 likeliest tokens of big" in offline[2]
    assert "weigh 0.5 in the cross-entropy and 0.5 in the divergence" in offline[3]
    assert [line for line in offline if "cache of up to 4 GB" in line]
    rewarded = distillation(learn_from={"name": "student", "group_size": 4, "reward": 0.5})
    assert rewarded[0].startswith("32 prompts, each answered by the student 4 times = 128")
    assert [line for line in rewarded if "with the coefficient 0.5." in line]
    text = distillation(learn_from={"name": "teacher"}, signal={"name": "text"})
    assert "any tokenizer will do" in text[2]


PAIRS = {"name": "jsonl", "train": "/t.jsonl", "chosen": "a", "rejected": "b"}
LABELS = {"name": "jsonl", "train": "/t.jsonl", "response": "a", "label": "good"}


def told(task: dict[str, object], **preference: object) -> str:
    raw = {"task": task, "algorithm": {"name": "preference", **preference}}
    return "\n".join(explain(msgspec.convert(raw, Settings), 64))


def test_an_evaluation_of_pairs_says_what_is_compared_and_what_is_sampled() -> None:
    alone, judged = told(PAIRS), told({"name": "sorting"})
    assert "the answers of 128 held-out rows are compared" in alone
    assert "none is sampled, since nothing judges it" in alone and "greedy" not in alone
    assert "128 held-out prompts × 1 answer (greedy" in judged
    assert "the answers of 128 held-out rows are compared" in judged


def test_a_step_of_preferences_says_what_it_is_made_of_and_compared_with() -> None:
    assert "16 rows = 16 pairs = 1 optimiser step." in told(PAIRS)
    assert "computed once for each row and kept" in told(PAIRS)
    labelled = told(LABELS, loss={"name": "kto"})
    assert "16 rows = 16 judged answers" in labelled and "1,600 judged answers in all" in labelled
    online = told({"name": "sorting"}, learn_from={"name": "policy"})
    assert "computed beside the policy's" in online
    assert "needs no reference model" in told(PAIRS, loss={"name": "orpo"})
