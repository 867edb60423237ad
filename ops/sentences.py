"""What the numbers of a recipe mean, a sentence each: what is multiplied by what, and how often."""

from collections.abc import Iterator

from configs import evolution
from configs.consistency import uncorrected
from configs.distillation import only_hosted, student_samples
from configs.schema import (
    Checkpoint,
    Distill,
    Es,
    FromStudent,
    Grpo,
    LowRank,
    Power,
    SampledToken,
    Settings,
    Sft,
    TextOnly,
    TopK,
    WholeDistribution,
)
from ops.estimate import micro_batch, rows_per_step


def explain(settings: Settings, prompt_tokens: int) -> list[str]:
    """The sentences, in the order in which a run meets the numbers."""
    match settings.algorithm:
        case Grpo() as grpo:
            lines = list(_grpo(grpo, settings, prompt_tokens))
        case Sft() as sft:
            lines = list(_sft(sft, settings, prompt_tokens))
        case Es() as es:
            lines = list(_es(es, settings))
        case Distill() as distill:
            lines = list(_distill(distill, settings, prompt_tokens))
    lines += [_evaluation(settings), _checkpoints(settings.checkpoint)]
    return [*lines, *_power(settings.power)]


def _grpo(grpo: Grpo, settings: Settings, prompt_tokens: int) -> Iterator[str]:
    prompts, trajectories = grpo.prompts_per_step, rows_per_step(settings)
    updates = grpo.updates_per_step
    most = trajectories * settings.sampling.max_new_tokens
    yield (
        f"{_count(prompts, 'prompt')} × {_count(grpo.group_size, 'sample')} = "
        f"{_count(trajectories, 'trajectory')} = {_count(updates, 'optimiser step')} "
        f"({most:,} sampled tokens at most)."
    )
    if updates > 1:
        low, high = prompts // updates, -(-prompts // updates)
        groups = f"{low}" if low == high else f"{low} or {high}"
        yield (
            f"Each of the {updates} optimiser steps takes {groups} of the {prompts} groups; "
            "from the second on the trajectories are off-policy."
        )
    yield (
        f"{_count(grpo.steps, 'step')} = {_count(grpo.steps * updates, 'optimiser step')} on "
        f"{_count(grpo.steps * trajectories, 'trajectory')} of "
        f"{_count(grpo.steps * prompts, 'prompt')} in all."
    )
    yield _decoding(settings, trajectories)
    yield _micro_batches(settings, trajectories // updates, prompt_tokens)
    yield _lag(grpo)
    yield _zero_variance(grpo)
    if uncorrected(grpo):
        yield (
            'Note: surrogate "reinforce" has no ratio and correction "bypass" adds none, so '
            "off-policy trajectories bias its gradient; truncate or mask corrects it."
        )


def _sft(sft: Sft, settings: Settings, prompt_tokens: int) -> Iterator[str]:
    rows = sft.rows_per_step
    yield f"{_count(rows, 'row')} = 1 optimiser step, averaged over the tokens of their answers."
    yield f"{_count(sft.steps, 'step')} = {_count(sft.steps * rows, 'row')} in all."
    yield _micro_batches(settings, rows, prompt_tokens)


def _es(es: Es, settings: Settings) -> Iterator[str]:
    trajectories = rows_per_step(settings)
    pairs = f" ({es.population // 2} antithetic pairs)" if es.antithetic else ""
    what = "answer" if es.fitness == "reward" else "log-likelihood"
    yield (
        f"{_count(es.population, 'member')}{pairs} × {_count(es.prompts_per_step, 'prompt')} = "
        f"{_count(trajectories, what)} = 1 step of the centre; {_count(es.steps, 'generation')} = "
        f"{_count(es.steps * trajectories, what)} in all."
    )
    if isinstance(es.perturbation, LowRank):
        slots = settings.sampling.slots
        together = max(min(slots // es.prompts_per_step, es.population), 1)
        yield (
            f"Noise of rank {es.perturbation.rank}: members share each base product, and "
            f"{_count(slots, 'slot')} hold the answers of about {_count(together, 'member')} at once."
        )
    else:
        yield "Full-rank noise: members are evaluated one after another, each from a copy of the master."
    yield (
        "The likeliest answer is what moves: eval.sampled = true shows that sampled answers hardly do."
        if es.temperature == 0
        else f"Members answer at temperature {es.temperature:g}."
    )
    for warning in evolution.warnings(es):
        yield f"Note: {warning}."


def _distill(distill: Distill, settings: Settings, prompt_tokens: int) -> Iterator[str]:
    source, signal = distill.learn_from, distill.signal
    prompts, rows = distill.prompts_per_step, rows_per_step(settings)
    names = ", ".join(distill.teachers)
    whose = {
        "student": f"{_count(prompts, 'prompt')}, each answered by the student"
        + (f" {rows // prompts} times" if rows > prompts else ""),
        "data": f"{_count(prompts, 'row')} of data",
        "teacher": f"{_count(prompts, 'prompt')}, each answered once by its teacher",
        "mixed": f"{_count(prompts, 'prompt')}, answered by the student with probability "
        f"{getattr(source, 'student_share', 0):g} and by the data otherwise",
    }[str(source.__struct_config__.tag)]
    yield f"{whose} = {_count(rows, 'trajectory')} = 1 optimiser step."
    yield f"{_count(distill.steps, 'step')} = {_count(distill.steps * rows, 'trajectory')} in all."
    chosen = str(source.divergence.__struct_config__.tag).replace("_", " ")
    match signal:
        case WholeDistribution():
            yield (
                f"Signal: the {chosen} divergence from the whole distribution of {names}, hosted in the "
                "learner's process; no array of all tokens and the vocabulary is ever held."
            )
        case TopK():
            yield (
                f"Signal: the {chosen} divergence from the {signal.k} likeliest tokens of {names} and the "
                "rest as one bucket, sent along with each trajectory."
            )
        case SampledToken():
            yield (
                f"Signal: what {names} thinks of each sampled token, as an advantage: an estimate of the "
                "reverse KL that is unbiased and noisy; the whole distribution learns faster."
            )
        case TextOnly():
            yield f"Signal: the text of {names}, by cross-entropy; any tokenizer will do."
    if (
        not isinstance(source, FromStudent)
        and not isinstance(signal, TextOnly)
        and source.alpha < 1
    ):
        yield (
            f"Answers that are not the student's weigh {1 - source.alpha:g} in the cross-entropy and "
            f"{source.alpha:g} in the divergence."
        )
    if isinstance(source, FromStudent) and source.reward:
        yield f"The task's reward, less its group's mean, weighs {source.reward:g} beside the teacher."
    if student_samples(distill):
        yield _decoding(settings, rows)
    if not only_hosted(distill) and distill.cache_gb:
        yield (
            f"What a teacher has said is kept in a cache of up to {distill.cache_gb:g} GB that all runs "
            "share: it is not asked twice."
        )
    yield _micro_batches(settings, rows, prompt_tokens)


def _decoding(settings: Settings, trajectories: int) -> str:
    slots, samplers = settings.sampling.slots, settings.actors.samplers
    each = "" if samplers == 1 else f"{samplers} samplers × "
    if trajectories <= slots * samplers:
        return f"{each}{_count(slots, 'slot')} decode all {trajectories:,} trajectories at once."
    return (
        f"{each}{_count(slots, 'slot')} decode {slots * samplers:,} of the {trajectories:,} "
        "trajectories at once; a slot that ends takes the next one."
    )


def _micro_batches(settings: Settings, rows: int, prompt_tokens: int) -> str:
    limit = settings.actors.micro_batch_tokens
    _, length = micro_batch(settings, prompt_tokens)
    passes = -(-rows // max(limit // length, 1))
    return (
        f"{limit:,} padded tokens a micro-batch: with prompts of {prompt_tokens} tokens "
        f"(assumed), {_count(passes, 'forward and backward pass')} an optimiser step at most; "
        "the cut changes memory, not the result."
    )


def _lag(grpo: Grpo) -> str:
    if grpo.max_lag == 0:
        return "Lag 0: each step samples with the weights that it trains; nothing is stale."
    return (
        f"Lag {grpo.max_lag}: sampling may be {_count(grpo.max_lag, 'weights version')} behind, "
        f'and the "{grpo.correction.__struct_config__.tag}" correction accounts for it.'
    )


def _zero_variance(grpo: Grpo) -> str:
    if not grpo.drop_zero_variance:
        return "Groups whose rewards are all equal stay in the batch, with advantages of 0."
    if not grpo.resample_rounds:
        return (
            "Groups whose rewards are all equal are dropped and counted, and not replaced: "
            "a step may train on fewer trajectories."
        )
    prompts = grpo.prompts_per_step * (1 + grpo.resample_rounds)
    return (
        f"Dropped groups are replaced in up to {_count(grpo.resample_rounds, 'round')}: at worst "
        f"{_count(prompts, 'prompt')} = {_count(prompts * grpo.group_size, 'trajectory')} are "
        "sampled for a step."
    )


def evaluations(settings: Settings) -> int:
    """How many evaluations a run makes: the base, every so many steps, and the last weights."""
    if not settings.eval.prompts:
        return 0
    every = settings.eval.every_steps
    return 2 if every == 0 else 1 + -(-settings.algorithm.steps // every)


def _evaluation(settings: Settings) -> str:
    evaluation = settings.eval
    count = evaluations(settings)
    if not count:
        return "No evaluation: the run will not know whether it got better."
    answers = evaluation.prompts * evaluation.samples
    when = f", every {evaluation.every_steps} steps" if evaluation.every_steps else ""
    how = f"at temperature {evaluation.temperature:g}" if evaluation.temperature else "greedy"
    limit = evaluation.max_new_tokens or settings.sampling.max_new_tokens
    return (
        f"Evaluation: {_count(evaluation.prompts, 'held-out prompt')} × "
        f"{_count(evaluation.samples, 'answer')} ({how}, up to {_count(limit, 'token')}), of the "
        f"base{when} and at the end = {_count(count, 'evaluation')} = "
        f"{_count(count * answers, 'answer')}."
    )


def _checkpoints(checkpoint: Checkpoint) -> str:
    every = "step" if checkpoint.every_steps == 1 else f"{checkpoint.every_steps} steps"
    newest = "newest stays" if checkpoint.keep == 1 else f"{checkpoint.keep} newest stay"
    kept = f", and every {checkpoint.keep_every}th step's" if checkpoint.keep_every else ""
    return f"A checkpoint every {every}: the {newest}, and the best and the last{kept}."


def _power(power: Power) -> Iterator[str]:
    """When it pauses by itself, and how much of the time it works."""
    when = []
    if power.on_battery == "pause":
        when.append("on battery")
    if power.on_thermal_pressure == "pause":
        when.append("under thermal pressure")
    if power.hours:
        when.append(f"outside {', '.join(power.hours)}")
    if when:
        yield f"Pauses by itself {' and '.join(when)}, and goes on by itself."
    if power.duty_cycle < 1:
        yield f"The GPU works {power.duty_cycle:.0%} of the time (power.duty_cycle)."


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number:,} {noun[:-1]}ies"
    return f"{number:,} {noun}{'es' if noun.endswith('ss') else 's'}"
