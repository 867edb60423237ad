"""Settings that are valid one by one and impossible, or without effect, together.

The schema keeps out what it can by tagged unions; the rest is here, a sentence each. A setting that
would silently do nothing is refused like one that cannot work: its writer expects something of it.
"""

import json
import re
from collections.abc import Iterator

from configs import distillation, evolution
from configs.errors import SettingsError
from configs.schema import (
    Bypass,
    Checkpoint,
    Clip,
    Distill,
    Es,
    Eval,
    Full,
    Grpo,
    Gsm8k,
    Gspo,
    Jsonl,
    Kl,
    Lora,
    Model,
    Overlong,
    Power,
    Sampling,
    Settings,
    Sft,
)

HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


def check(settings: Settings) -> None:
    """Raise SettingsError with the first contradiction; settings that can run pass."""
    for sentence in problems(settings):
        raise SettingsError(sentence)


def problems(settings: Settings) -> Iterator[str]:
    """Every contradiction, a sentence each that names the keys."""
    yield from _model(settings.model, settings.exact)
    yield from _task(settings)
    match settings.algorithm:
        case Grpo() as grpo:
            yield from _grpo(grpo, settings)
        case Sft() as sft:
            yield from _sft(sft, settings)
        case Es() as es:
            yield from evolution.problems(es, settings)
        case Distill() as distill:
            yield from distillation.problems(distill, settings)
    yield from _schedule(settings)
    yield from _eval(settings.eval)
    yield from _checkpoint(settings.checkpoint)
    yield from _power(settings.power)
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
        yield "task.eval is the file of task.train: what was trained on is not held out"
    if not isinstance(task, Jsonl):
        return
    if isinstance(settings.algorithm, Sft) and not task.response:
        yield 'algorithm "sft" needs task.response, the column with the answers to imitate'
    if isinstance(settings.algorithm, Grpo) and not task.reward:
        yield 'algorithm "grpo" needs task.reward, a Python file that scores answers'
    if isinstance(settings.algorithm, Grpo) and task.response:
        yield 'task.response has no effect: algorithm "grpo" imitates no answers'
    if task.teacher and not isinstance(settings.algorithm, Distill):
        yield 'task.teacher has no effect: only algorithm "distill" has teachers'
    if task.eval and task.eval_share != Jsonl(train="-").eval_share:
        yield "task.eval_share has no effect beside task.eval: leave one of them out"
    if not task.reward and task.pass_at != Jsonl(train="-").pass_at:
        yield "task.pass_at has no effect without task.reward"


def _grpo(grpo: Grpo, settings: Settings) -> Iterator[str]:
    sampling = settings.sampling
    yield from _surrogate(grpo)
    if grpo.updates_per_step > grpo.prompts_per_step:
        yield (
            f"algorithm.updates_per_step = {grpo.updates_per_step} needs at least as many "
            f"algorithm.prompts_per_step, got {grpo.prompts_per_step}: "
            "each update takes a share of the groups"
        )
    if grpo.kl.coefficient == 0 and grpo.kl.placement != Kl().placement:
        yield "algorithm.kl.placement has no effect while algorithm.kl.coefficient is 0"
    yield from _overlong(grpo.overlong, sampling)
    if grpo.resample_rounds and not grpo.drop_zero_variance:
        yield (
            f"algorithm.resample_rounds = {grpo.resample_rounds} needs "
            "algorithm.drop_zero_variance = true: only dropped groups are replaced"
        )
    if settings.actors.samplers > grpo.prompts_per_step:
        yield (
            f"actors.samplers = {settings.actors.samplers} needs at least as many "
            f"algorithm.prompts_per_step, got {grpo.prompts_per_step}: the others would idle"
        )
    if settings.actors.micro_batch_tokens <= sampling.max_new_tokens:
        yield (
            f"actors.micro_batch_tokens = {settings.actors.micro_batch_tokens} must exceed "
            f"sampling.max_new_tokens = {sampling.max_new_tokens}: "
            "a micro-batch holds at least one whole sequence"
        )


def _surrogate(grpo: Grpo) -> Iterator[str]:
    surrogate = grpo.surrogate
    if isinstance(surrogate, Gspo) and grpo.normalizer != "sequence_mean":
        yield (
            'algorithm.surrogate "gspo" needs algorithm.normalizer = "sequence_mean", got '
            f'"{grpo.normalizer}": its ratio is one per sequence'
        )
    if isinstance(surrogate, Clip) and 0 < surrogate.dual <= 1:
        yield (
            "algorithm.surrogate.dual needs a ratio > 1, or 0 for none, got "
            f"{surrogate.dual}: it would bound the loss of a policy that has not moved"
        )


def _overlong(overlong: Overlong, sampling: Sampling) -> Iterator[str]:
    zone = overlong.penalty_tokens
    if zone >= sampling.max_new_tokens:
        yield (
            f"algorithm.overlong.penalty_tokens = {zone} must be less than "
            f"sampling.max_new_tokens = {sampling.max_new_tokens}: "
            "otherwise every answer is too long"
        )
    if zone and not overlong.penalty:
        yield "algorithm.overlong.penalty_tokens has no effect while the penalty is 0"
    if not zone and overlong.penalty != Overlong().penalty:
        yield "algorithm.overlong.penalty has no effect while penalty_tokens is 0"


def _sft(sft: Sft, settings: Settings) -> Iterator[str]:
    if settings.sampling.temperature != Sampling().temperature:
        yield (
            'sampling.temperature has no effect: algorithm "sft" samples nothing to learn from; '
            "evaluation has eval.temperature"
        )


def _schedule(settings: Settings) -> Iterator[str]:
    optimizer, algorithm = settings.optimizer, settings.algorithm
    updates = algorithm.updates_per_step if isinstance(algorithm, Grpo) else 1
    steps = algorithm.steps * updates
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
    """Start and end of "22:00-07:00" in minutes after midnight; None for what is not of that form."""
    match = HOURS.fullmatch(hours)
    if match is None:
        return None
    start_h, start_min, end_h, end_min = map(int, match.groups())
    return 60 * start_h + start_min, 60 * end_h + end_min


def uncorrected(grpo: Grpo) -> bool:
    """Whether off-policy data is learnt from with neither a ratio nor a correction."""
    has_ratio = grpo.surrogate.__struct_config__.tag != "reinforce"
    off_policy = grpo.max_lag > 0 or grpo.updates_per_step > 1
    return off_policy and not has_ratio and isinstance(grpo.correction, Bypass)
