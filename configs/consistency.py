"""Contradictions between settings that are valid one by one.

Tagged unions in the schema exclude most contradictions; this file yields one sentence for each of the
others. A setting that would silently do nothing is refused like one that cannot work, because the
recipe's author expects it to do something.
"""

import json
import re
from collections.abc import Iterator

from configs.errors import SettingsError
from configs.facts import Facts
from configs.model import Full, Lora, Model
from configs.run import Checkpoint, Eval, Power
from configs.schema import Settings
from configs.tasks import Gsm8k, Jsonl

HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


def check(settings: Settings) -> None:
    """Raises SettingsError with the first contradiction; settings that can run pass."""
    for sentence in problems(settings):
        raise SettingsError(sentence)


def problems(settings: Settings) -> Iterator[str]:
    """Yields one sentence, with the keys, for each contradiction."""
    yield from _model(settings.model, settings.exact)
    # A missing need of the algorithm comes before the settings that have no effect without it.
    yield from settings.algorithm.problems(settings)
    yield from _task(settings)
    yield from _schedule(settings)
    yield from _eval(settings.eval)
    yield from _checkpoint(settings.checkpoint)
    yield from _power(settings.power)
    if settings.mismatch.warn_nats > settings.mismatch.fail_nats:
        yield (
            f"mismatch.warn_nats = {settings.mismatch.warn_nats:g} must not exceed mismatch.fail_nats = "
            f"{settings.mismatch.fail_nats:g}: the run would have failed before"
        )
    if settings.dashboard.port and not settings.dashboard.enabled:
        yield "dashboard.port has no effect while dashboard.enabled = false: leave it out"


def _model(model: Model, exact: bool) -> Iterator[str]:
    if model.quantize_bits and isinstance(model.train, Full):
        yield (
            f"model.quantize_bits = {model.quantize_bits} needs model.train.name = "
            '"lora": quantised weights cannot be trained themselves'
        )
    if isinstance(model.train, Lora) and model.train.layers == 0:
        yield "model.train.layers = 0 trains nothing: use -1 for all blocks, or a number of them"
    if exact and model.dtype not in ("float32", "checkpoint"):
        yield (
            f'exact = true needs model.dtype "float32" or "checkpoint", got "{model.dtype}": '
            "a conversion would change what is compared bit for bit"
        )


def _task(settings: Settings) -> Iterator[str]:
    task = settings.task
    if isinstance(task, Gsm8k | Jsonl) and task.train == task.eval:
        yield "task.eval is the file of task.train: rows that are trained on are not held out"
    if not isinstance(task, Jsonl):
        return
    yield from _pairs(task, settings.facts)
    if task.teacher and not settings.facts.teachers:
        yield 'task.teacher has no effect: only algorithm "distill" has teachers'
    if task.eval and task.eval_share != Jsonl(train="-").eval_share:
        yield "task.eval_share has no effect beside task.eval: leave one of them out"
    if not task.reward and task.pass_at != Jsonl(train="-").pass_at:
        yield "task.pass_at has no effect without task.reward"


def _pairs(task: Jsonl, facts: Facts) -> Iterator[str]:
    for name in ("chosen", "rejected", "label"):
        if getattr(task, name) and not facts.reads_pairs:
            yield f'task.{name} has no effect: only algorithm "preference" from data learns from it'
    if bool(task.chosen) != bool(task.rejected):
        yield "task.chosen and task.rejected go together: a pair is two answers"
    elif task.chosen and task.chosen == task.rejected:
        yield (
            f"task.chosen and task.rejected need two columns, got {json.dumps(task.chosen)} for both: "
            "an answer is not better than itself"
        )
    if task.label and task.chosen:
        yield "task.label has no effect beside task.chosen: a pair names the preferred answer already"
    if task.label and not task.response:
        yield "task.label needs task.response, the column with the answer that it judges"
    elif task.label and task.label == task.response:
        yield (
            f"task.label and task.response need two columns, got {json.dumps(task.label)} for both: "
            "the label says true or false of the answer"
        )


def _schedule(settings: Settings) -> Iterator[str]:
    optimizer, algorithm = settings.optimizer, settings.algorithm
    steps = algorithm.steps * settings.facts.updates_per_step
    if optimizer.warmup_steps > steps:
        yield (
            f"optimizer.warmup_steps = {optimizer.warmup_steps} must not exceed the run's "
            f"{steps} optimiser steps: the learning rate would never be reached"
        )
    if optimizer.schedule == "constant" and optimizer.final_share:
        yield 'optimizer.final_share has no effect while optimizer.schedule = "constant"'


def _eval(evaluation: Eval) -> Iterator[str]:
    if not evaluation.prompts:
        for name in Eval.__struct_fields__:
            if name != "prompts" and getattr(evaluation, name) != getattr(Eval(), name):
                yield f"eval.{name} has no effect while eval.prompts = 0: nothing is evaluated"
        return
    if evaluation.temperature and not 0.01 <= evaluation.temperature <= 100:
        yield (
            f"eval.temperature needs 0, for the likeliest token, or a number from 0.01 to 100, got "
            f"{evaluation.temperature:g}"
        )
    if evaluation.temperature > 0:
        if evaluation.sampled:
            yield "eval.sampled has no effect at eval.temperature > 0: its answers are sampled already"
        return
    if evaluation.samples > 1 and not evaluation.sampled:
        yield (
            f"eval.samples = {evaluation.samples} needs eval.temperature > 0: "
            "at 0 all answers to a prompt are the same"
        )
    for name in ("top_p", "top_k", "min_p"):
        if getattr(evaluation, name) != getattr(Eval(), name):
            yield (
                f"eval.{name} has no effect at eval.temperature = 0, "
                "which takes the likeliest token"
            )


def _checkpoint(checkpoint: Checkpoint) -> Iterator[str]:
    if checkpoint.keep_every % checkpoint.every_steps:
        yield (
            f"checkpoint.keep_every = {checkpoint.keep_every} needs a multiple of "
            f"checkpoint.every_steps = {checkpoint.every_steps}: other steps have no checkpoint"
        )


def _power(power: Power) -> Iterator[str]:
    for index, text in enumerate(power.hours):
        span = minutes(text)
        if span is None or span[0] == span[1]:
            yield (
                f'power.hours[{index}] needs two different times of day such as "22:00-07:00", '
                f"got {json.dumps(text, ensure_ascii=False)}"
            )


def minutes(hours: str) -> tuple[int, int] | None:
    """Returns start and end of "22:00-07:00" in minutes after midnight; None if `hours` has another form."""
    match = HOURS.fullmatch(hours)
    if match is None:
        return None
    start_h, start_min, end_h, end_min = map(int, match.groups())
    return 60 * start_h + start_min, 60 * end_h + end_min
