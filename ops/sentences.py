"""Explains the numbers of a recipe, a sentence each: which numbers are multiplied, and how often."""

from collections.abc import Iterator

from configs.run import Checkpoint, Power
from configs.schema import Settings
from configs.tasks import judges
from configs.wording import count
from ops.estimate import micro_batch


def explain(settings: Settings, prompt_tokens: int) -> list[str]:
    """Returns the sentences, in the order in which a run meets the numbers."""
    facts = settings.facts
    lines = list(settings.algorithm.sentences(settings))
    if facts.samples and facts.generation is None:
        lines.append(_decoding(settings, facts.rows_per_step))
    if facts.gradients:
        rows = facts.rows_per_step // facts.updates_per_step
        lines.append(_micro_batches(settings, rows, prompt_tokens))
    lines += [_evaluation(settings), _checkpoints(settings.checkpoint)]
    return [*lines, *_power(settings.power)]


def _decoding(settings: Settings, trajectories: int) -> str:
    slots, samplers = settings.sampling.slots, settings.actors.samplers
    each = "" if samplers == 1 else f"{samplers} samplers × "
    if trajectories <= slots * samplers:
        return f"{each}{count(slots, 'slot')} decode all {trajectories:,} trajectories at once."
    return (
        f"{each}{count(slots, 'slot')} decode {slots * samplers:,} of the {trajectories:,} "
        "trajectories at once; a slot that ends takes the next one."
    )


def _micro_batches(settings: Settings, rows: int, prompt_tokens: int) -> str:
    limit = settings.actors.micro_batch_tokens
    _, length = micro_batch(settings, prompt_tokens)
    passes = -(-rows // max(limit // length, 1))
    return (
        f"{limit:,} padded tokens a micro-batch: with prompts of {prompt_tokens} tokens "
        f"(assumed), {count(passes, 'forward and backward pass')} an optimiser step at most; "
        "the cut changes memory, not the result."
    )


def evaluations(settings: Settings) -> int:
    """Returns how many evaluations a run makes: the base, every so many steps, and the last weights."""
    if not settings.eval.prompts:
        return 0
    every = settings.eval.every_steps
    return 2 if every == 0 else 1 + -(-settings.algorithm.steps // every)


def _evaluation(settings: Settings) -> str:
    evaluation = settings.eval
    made = evaluations(settings)
    if not made:
        return "No evaluation: the run will not know whether it got better."
    when = f", every {evaluation.every_steps} steps" if evaluation.every_steps else ""
    pairs = settings.facts.reads_pairs
    if pairs and not judges(settings.task):
        return (
            f"Evaluation: {_compared(settings)}, for the base{when} and at the end = "
            f"{count(made, 'evaluation')}; none is sampled, since nothing judges it."
        )
    answers = evaluation.prompts * evaluation.samples
    how = f"at temperature {evaluation.temperature:g}" if evaluation.temperature else "greedy"
    limit = evaluation.max_new_tokens or settings.sampling.max_new_tokens
    return (
        f"Evaluation: {count(evaluation.prompts, 'held-out prompt')} × "
        f"{count(evaluation.samples, 'answer')} ({how}, up to {count(limit, 'token')}), of the "
        f"base{when} and at the end = {count(made, 'evaluation')} = "
        f"{count(made * answers, 'answer')}."
        + (f" With each, {_compared(settings)}." if pairs else "")
    )


def _compared(settings: Settings) -> str:
    """Returns what an evaluation of preferences compares, in words."""
    rows = count(settings.eval.prompts, "held-out row")
    return f"the answers of {rows} are compared (preference_accuracy, reward_margin)"


def _checkpoints(checkpoint: Checkpoint) -> str:
    every = "step" if checkpoint.every_steps == 1 else f"{checkpoint.every_steps} steps"
    newest = "newest stays" if checkpoint.keep == 1 else f"{checkpoint.keep} newest stay"
    kept = f", and every {checkpoint.keep_every}th step's" if checkpoint.keep_every else ""
    return f"A checkpoint every {every}: the {newest}, and the best and the last{kept}."


def _power(power: Power) -> Iterator[str]:
    """Yields when the run pauses by itself, and how much of the time it works."""
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
