"""Contradictions between settings of a data recipe that are valid one by one."""

from collections.abc import Iterator

from configs.data_schema import (
    BestOfN,
    DataSampling,
    DataSettings,
    Magpie,
    PreferenceRows,
    Recorded,
    Rejection,
    StepByStep,
    Traces,
)
from configs.tasks import Gsm8k, Jsonl
from configs.teachers import EndpointTeacher, LocalTeacher


def needs_verdict(settings: DataSettings) -> bool:
    """Returns whether the task's verifier decides which answers are kept."""
    method = settings.method
    if isinstance(method, Traces | StepByStep):
        return method.only_right
    return isinstance(method, Rejection | BestOfN)


def has_verifier(settings: DataSettings) -> bool:
    """Returns whether the recipe's task can score an answer."""
    task = settings.task
    if isinstance(task, Jsonl):
        return bool(task.reward) or bool(task.response and not is_recorded(settings))
    return task is not None


def is_recorded(settings: DataSettings) -> bool:
    """Returns whether the answers are read from the task's file instead of asked of a teacher."""
    return isinstance(settings.teacher, Recorded)


def problems(settings: DataSettings) -> Iterator[str]:
    """Yields one sentence, with the keys, for each contradiction."""
    if isinstance(settings.method, Magpie):
        yield from _magpie(settings)
    elif settings.task is None:
        yield "task is missing: only Magpie makes its own prompts"
    yield from _teacher(settings)
    yield from _task(settings)
    yield from _method(settings)
    yield from _output(settings)
    if settings.limits.shortest_characters > settings.limits.longest_characters:
        yield "limits.shortest_characters exceeds limits.longest_characters: nothing would be kept"


def _magpie(settings: DataSettings) -> Iterator[str]:
    if settings.task is not None:
        yield "task has no effect: Magpie's prompts are sampled"
    if not isinstance(settings.teacher, LocalTeacher):
        yield (
            'method.name = "magpie" needs teacher.name = "local": it samples behind the chat '
            "template's prefix, and an endpoint takes whole messages only"
        )


def _teacher(settings: DataSettings) -> Iterator[str]:
    match settings.teacher:
        case EndpointTeacher():
            for name in ("top_k", "min_p", "slots"):
                if getattr(settings.sampling, name) != getattr(DataSampling(), name):
                    yield f"sampling.{name} has no effect: it is not sent to an endpoint"
            if settings.exact:
                yield "exact has no effect: Pippin does not control how an endpoint computes"
        case Recorded():
            if not isinstance(settings.task, Jsonl) or not settings.task.response:
                yield (
                    'teacher.name = "recorded" needs task.name = "jsonl" and task.response, the '
                    "column with the answers"
                )
            if settings.sampling != DataSampling():
                yield 'sampling has no effect with teacher.name = "recorded": nothing is sampled'
            if settings.exact:
                yield 'exact has no effect with teacher.name = "recorded": nothing is computed'
            samples = getattr(settings.method, "samples", None)
            if samples is not None and samples != type(settings.method)().samples:  # type: ignore[union-attr]
                yield (
                    'method.samples has no effect with teacher.name = "recorded": each row of the '
                    "file is one sample, and rows with equal prompts belong together"
                )


def _task(settings: DataSettings) -> Iterator[str]:
    task = settings.task
    if not isinstance(task, Jsonl):
        return
    if task.teacher:
        yield "task.teacher has no effect: a data recipe has one teacher"
    if task.reward and task.response and not is_recorded(settings):
        yield "task.response has no effect beside task.reward: answers are judged by the reward"
    if task.eval and task.eval_share != Jsonl(train="-").eval_share:
        yield "task.eval_share has no effect beside task.eval: leave one of them out"
    if not task.reward and task.pass_at != Jsonl(train="-").pass_at:
        yield "task.pass_at has no effect without task.reward"
    if needs_verdict(settings) and not has_verifier(settings):
        either = "" if is_recorded(settings) else ", or task.response to compare with"
        yield (
            f'method.name = "{_tag(settings.method)}" needs task.reward, a Python file that scores '
            f"answers{either}"
        )


def _method(settings: DataSettings) -> Iterator[str]:
    method, sampling = settings.method, settings.sampling
    samples = getattr(method, "samples", 1)
    if samples > 1 and sampling.temperature == 0 and not is_recorded(settings):
        yield (
            f"method.samples = {samples} needs sampling.temperature > 0: "
            "at 0 all answers to a prompt are the same"
        )
    if sampling.temperature == 0:
        for name in ("top_p", "top_k", "min_p"):
            if getattr(sampling, name) != getattr(DataSampling(), name):
                yield (
                    f"sampling.{name} has no effect at sampling.temperature = 0, "
                    "which takes the likeliest token"
                )
    if isinstance(method, StepByStep):
        if method.judged == "label" and isinstance(settings.task, Gsm8k) and method.only_right:
            yield (
                'method.judged = "label" passes nothing: the task gsm8k looks for "####" in the answer, '
                'so use method.mark = "####" and method.judged = "whole"'
            )
        if method.label_prefix == method.rationale_prefix:
            yield "method.label_prefix equals method.rationale_prefix: the two tasks need different ones"


def _output(settings: DataSettings) -> Iterator[str]:
    output, method = settings.output, settings.method
    if not isinstance(output, PreferenceRows):
        return
    if not isinstance(method, Rejection | BestOfN):
        yield (
            'output.name = "preference" needs method.name = "rejection" or "best_of_n", got '
            f'"{_tag(method)}": a pair needs a better and a worse answer'
        )
        return
    if method.samples < 2 * output.pairs and not is_recorded(settings):
        yield (
            f"output.pairs = {output.pairs} needs method.samples >= {2 * output.pairs}, got "
            f"{method.samples}: an answer is in one pair only"
        )
    if isinstance(method, Rejection) and method.keep:
        yield 'method.keep has no effect with output.name = "preference": see output.pairs'


def _tag(record: object) -> str:
    return str(record.__struct_config__.tag)  # type: ignore[attr-defined]
