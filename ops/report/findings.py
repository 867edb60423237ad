"""The findings of a report: a row for each contestant, the promise in numbers, the students compared.

All contestants are judged on the same prompts: a prompt counts for none of them if an answer to it could not
be judged, or if its right answer does not fit the context of one of them.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from msgspec import Struct

from ops.report.contestants import Contestant
from ops.report.cost import Cost, cached, unequal
from ops.report.measure import Measured, rate
from runtime.tasks.prompt import Prompt

QUALITY, SPEED, MEMORY = 0.9, 10.0, 0.5
"""The promise: at least this share of the teacher's quality, so many times its speed, in at most this share
of its memory (the promise says "a fraction"; this is the most that we call one).
"""
BEYOND_CHANCE = 2.0
"""The number of standard errors by which two students have to differ."""


class Standing(Struct, frozen=True, kw_only=True):
    """Holds a contestant's row. None marks what could not be measured."""

    name: str
    role: str
    where: str
    parameters: int | None = None
    quality: float | None = None
    stderr: float | None = None
    perplexity_per_token: float | None = None
    perplexity_per_byte: float | None = None
    tokens_per_s: float | None = None
    weights_bytes: int | None = None
    peak_bytes: int | None = None
    rounds: list[float] = []


class Claim(Struct, frozen=True):
    """Holds one clause of the promise: the number, whether it meets the target, and both in words."""

    what: str
    value: float | None
    kept: bool | None
    """Whether the clause is kept; None if it could not be measured."""
    needed: str
    sentence: str

    @property
    def verdict(self) -> str:
        """Returns whether the clause is kept, in one word."""
        return {True: "kept", False: "missed", None: "unknown"}[self.kept]


class Judged(Struct, frozen=True):
    """Holds the prompts that count."""

    answers: list[int]
    """The prompts to which the answers of all contestants were judged."""
    texts: list[int]
    """The prompts whose right answer all contestants could read."""


def judged(found: Mapping[str, Measured], count: int) -> Judged:
    """Returns the prompts on which all contestants can be compared."""
    compared = list(found.values())
    return Judged(
        [i for i in range(count) if all(m.passed[i] is not None for m in compared)],
        [i for i in range(count) if all(m.nats[i] is not None for m in compared)],
    )


def standing(
    contestant: Contestant, found: Measured | None, on: Judged, prompts: Sequence[Prompt]
) -> Standing:
    """Returns a row of the table."""
    if found is None:
        return Standing(name=contestant.name, role=contestant.role, where=contestant.where)
    nats = sum(found.nats[i] or 0.0 for i in on.texts)
    tokens = sum(found.answer_tokens[i] for i in on.texts)
    size = sum(len((prompts[i].demonstration or "").encode()) for i in on.texts)
    marks = [float(bool(found.passed[i])) for i in on.answers]
    return Standing(
        name=contestant.name,
        role=contestant.role,
        where=contestant.where,
        parameters=found.parameters,
        quality=statistics.fmean(marks) if marks else None,
        stderr=stderr(marks) if marks else None,
        perplexity_per_token=perplexity(nats, tokens),
        perplexity_per_byte=perplexity(nats, size),
        tokens_per_s=rate(found),
        weights_bytes=found.weights_bytes,
        peak_bytes=found.peak_bytes,
        rounds=found.tokens_per_s,
    )


def promise(
    teacher: Contestant,
    student: Contestant,
    found: Mapping[str, Measured],
    on: Judged,
    prompts: Sequence[Prompt],
) -> list[Claim]:
    """Returns the student against one teacher, on the prompts that are that teacher's."""
    big, small = found[teacher.name], found[student.name]
    theirs = {i for i, p in enumerate(prompts) if p.teacher in ("", teacher.key)}
    on = Judged([i for i in on.answers if i in theirs], [i for i in on.texts if i in theirs])
    ours = standing(student, small, on, prompts), standing(teacher, big, on, prompts)
    claims = [_quality(*ours, by="token" if big.tokenizer == small.tokenizer else "byte")]
    speed = statistics.median(s / b for s, b in zip(small.tokens_per_s, big.tokens_per_s))
    claims.append(
        Claim(
            "speed",
            speed,
            speed >= SPEED,
            f"at least {SPEED:.0f} times",
            f"{speed:.1f} times the speed: {rate(small):,.0f} against {rate(big):,.0f} tokens/s",
        )
    )
    for what, mine, its in (
        ("memory of the weights", small.weights_bytes, big.weights_bytes),
        ("peak memory of decoding", small.peak_bytes, big.peak_bytes),
    ):
        share = mine / its
        claims.append(
            Claim(
                what,
                share,
                share <= MEMORY,
                f"at most {MEMORY:.0%}",
                f"{share:.0%} of the {what}: {size_text(mine)} against {size_text(its)}",
            )
        )
    return claims


def _quality(mine: Standing, its: Standing, by: str) -> Claim:
    """Returns the claim by pass rate, or by perplexity where the teacher itself passes nothing or
    answers are not judged.
    """
    both = [getattr(one, f"perplexity_per_{by}") for one in (mine, its)]
    if mine.quality is not None and its.quality and mine.stderr is not None:
        share = mine.quality / its.quality
        sentence = (
            f"{share:.0%} of the teacher's quality: a pass rate of {mine.quality:.3f} ± {mine.stderr:.3f} "
            f"against {its.quality:.3f} ± {its.stderr:.3f}"
        )
    elif None not in both:
        share = both[1] / both[0]
        why = "answers are not judged here" if its.quality is None else "the teacher passes nothing"
        sentence = (
            f"{share:.0%} of the teacher's quality, by perplexity per {by} since {why}: {both[0]:.3f} "
            f"against {both[1]:.3f}, the lower the better"
        )
    else:
        share, sentence = None, "quality cannot be compared: the answers are not judged"
    kept = None if share is None else share >= QUALITY
    return Claim("quality", share, kept, f"at least {QUALITY:.0%}", sentence)


def comparison(
    student: Contestant,
    other: Contestant,
    found: Mapping[str, Measured],
    costs: Mapping[str, Cost],
    on: Judged,
    prompts: Sequence[Prompt],
) -> str:
    """Returns which student is better, by how much against chance, and whether their compute was equal."""
    a, b = found[student.name], found[other.name]
    sentences = []
    if on.answers:
        gaps = [float(bool(a.passed[i])) - float(bool(b.passed[i])) for i in on.answers]
        gap, error = statistics.fmean(gaps), stderr(gaps)
        better = "better than" if gap > 0 else "worse than"
        # Where all prompts differ alike, one at least might have differed otherwise.
        if not gap or abs(gap) <= BEYOND_CHANCE * max(error, 1 / len(gaps)):
            better = "not distinguishable from"
        sentences.append(f"{better} {other.name} by pass rate ({gap:+.3f} ± {error:.3f}, paired)")
    if on.texts:
        by = "token" if a.tokenizer == b.tokenizer else "byte"
        both = [standing(c, found[c.name], on, prompts) for c in (student, other)]
        mine, its = (getattr(one, f"perplexity_per_{by}") for one in both)
        sentences.append(f"perplexity per {by} {mine:.3f} against {its:.3f}")
    one, two = costs[student.key], costs[other.key]
    equal = "NOT at equal compute" if unequal(one, two) else "at about equal compute"
    known = " (earlier teacher outputs are in neither)" if cached(one) or cached(two) else ""
    sentences.append(f"{equal}: {one.work_s:.1f} s of work against {two.work_s:.1f} s{known}")
    return f"{student.name}: {'; '.join(sentences)}"


def notes(
    compared: Sequence[Contestant],
    found: Mapping[str, Measured],
    on: Judged,
    costs: Sequence[Cost],
) -> list[str]:
    """Returns what a reader has to know of how it was measured."""
    sentences = []
    count = max(len(m.passed) for m in found.values())
    if on.answers and len(on.answers) < count:
        sentences.append(f"{count - len(on.answers)} of {count} prompts are left out for all: "
                    "an answer could not be judged, or the prompt was too long for a model")  # fmt: skip
    if on.texts and len(on.texts) < count:
        sentences.append(f"{count - len(on.texts)} of {count} right answers are left out of the perplexity: "
                    "there is none, or it is too long for a model")  # fmt: skip
    if tokenizers_differ(found):
        sentences.append(
            "the tokenizers differ: perplexity per token and tokens/s are not of the same tokens"
        )
    folders = {c.where for c in compared if c.role in ("before", "against")}
    if len(folders) > 1:
        sentences.append(
            f"the runs did not begin with the same checkpoint: {', '.join(sorted(folders))}"
        )
    for cost in costs:
        if cost.lost_steps:
            sentences.append(
                f"{cost.run}: metrics of {cost.lost_steps} steps are lost, its cost is higher"
            )
        if cached(cost):
            sentences.append(
                f"{cost.run}: {cost.cached_share:.0%} of its teacher outputs came from the teacher cache, "
                "and its seconds do not have the work behind that"
            )
        if cost.hosted:
            sentences.append(
                f"{cost.run}: its teacher works in the learner's process, so the learner's seconds are of "
                "both, and it is asked about every trained token"
            )
    return sentences


def tokenizers_differ(found: Mapping[str, Measured]) -> bool:
    """Returns whether the contestants use different tokenizers."""
    return len({measured.tokenizer for measured in found.values()}) > 1


def stderr(values: Sequence[float]) -> float:
    """Returns the standard error of a mean; 0 for one value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def perplexity(nats: float, count: int) -> float | None:
    """Returns e to the mean surprise; None without values."""
    return math.exp(nats / count) if count else None


def size_text(size: float) -> str:
    """Returns bytes in the unit that fits."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
