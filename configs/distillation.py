"""What distillation asks of the settings together."""

from collections.abc import Iterator

from configs.schema import (
    Distill,
    EndpointTeacher,
    FromData,
    FromStudent,
    FromTeacher,
    Jsonl,
    LocalTeacher,
    Mixed,
    SampledToken,
    Sampling,
    Settings,
    TextOnly,
    WholeDistribution,
)


def asks_actors(distill: Distill) -> bool:
    """Whether teachers have processes of their own: they answer, or say something to be sent."""
    return not only_hosted(distill)


def only_hosted(distill: Distill) -> bool:
    """Whether the learner's process has all that is asked of the teachers."""
    return is_hosted(distill) and not isinstance(distill.learn_from, FromTeacher)


def is_hosted(distill: Distill) -> bool:
    """Whether the learner's process loads the teachers."""
    return isinstance(distill.signal, WholeDistribution)


def is_token_level(distill: Distill) -> bool:
    """Whether teacher and student must share their tokens."""
    return not isinstance(distill.signal, TextOnly)


def student_samples(distill: Distill) -> bool:
    """Whether the student answers prompts to learn from."""
    return isinstance(distill.learn_from, FromStudent | Mixed)


def reads_data(distill: Distill) -> bool:
    """Whether it learns from the task's own answers."""
    return isinstance(distill.learn_from, FromData | Mixed)


def answers_per_prompt(distill: Distill) -> int:
    """Trajectories of one prompt."""
    return distill.learn_from.group_size if isinstance(distill.learn_from, FromStudent) else 1


def problems(distill: Distill, settings: Settings) -> Iterator[str]:
    """Every contradiction, a sentence each that names the keys."""
    yield from _combination(distill)
    yield from _teachers(distill, settings)
    yield from _task(distill, settings)
    yield from _numbers(distill, settings)


def _combination(distill: Distill) -> Iterator[str]:
    source, signal = distill.learn_from, distill.signal
    came = f'algorithm.learn_from.name = "{_tag(source)}"'
    if isinstance(signal, TextOnly) and isinstance(source, FromData):
        yield (
            f'algorithm.signal.name = "text" needs no teacher with {came}: that is algorithm "sft"'
        )
    elif isinstance(signal, TextOnly) and not isinstance(source, FromTeacher):
        yield f'algorithm.signal.name = "text" needs algorithm.learn_from.name = "teacher", got {came}'
    if isinstance(signal, SampledToken) and not isinstance(source, FromStudent):
        yield (
            'algorithm.signal.name = "sampled" needs algorithm.learn_from.name = "student", got '
            f"{came}: it weighs what the student sampled"
        )
    if (
        isinstance(signal, SampledToken | TextOnly)
        and source.divergence != type(source)().divergence
    ):
        yield (
            f'algorithm.learn_from.divergence has no effect with algorithm.signal.name = "{_tag(signal)}"'
            + (": it is reverse KL" if isinstance(signal, SampledToken) else "")
        )
    match source, signal:
        case FromTeacher(alpha=alpha), TextOnly() if alpha != FromTeacher().alpha:
            yield 'algorithm.learn_from.alpha has no effect with algorithm.signal.name = "text"'
    if isinstance(source, FromStudent) and source.reward and source.group_size < 2:
        yield (
            f"algorithm.learn_from.reward = {source.reward:g} needs algorithm.learn_from.group_size >= 2, "
            f"got {source.group_size}: an answer's reward is compared with the others'"
        )


def _teachers(distill: Distill, settings: Settings) -> Iterator[str]:
    if not distill.teachers:
        yield "algorithm.teachers needs at least one table, such as [algorithm.teachers.big]"
    for name, teacher in distill.teachers.items():
        key = f"algorithm.teachers.{name}"
        if isinstance(teacher, EndpointTeacher) and is_token_level(distill):
            yield (
                f'{key} is an endpoint, which gives text only: algorithm.signal.name = "text" with '
                f'algorithm.learn_from.name = "teacher" is for it, got "{_tag(distill.signal)}"'
            )
        if isinstance(teacher, LocalTeacher) and not isinstance(distill.learn_from, FromTeacher):
            for part in ("chat_template", "system"):
                if getattr(teacher, part):
                    yield (
                        f"{key}.{part} has no effect: the teacher answers no prompts itself with "
                        f'algorithm.learn_from.name = "{_tag(distill.learn_from)}"'
                    )
    named = isinstance(settings.task, Jsonl) and settings.task.teacher
    if len(distill.teachers) > 1 and not named:
        yield (
            f"algorithm.teachers has {len(distill.teachers)}, but task.teacher names no column that "
            "says whose a row is: the others would idle"
        )
    if len(distill.teachers) == 1 and named:
        yield "task.teacher has no effect: there is one teacher"
    if only_hosted(distill) and distill.cache_gb != Distill(teachers={}).cache_gb:
        yield 'algorithm.cache_gb has no effect with algorithm.signal.name = "full": nothing is stored'


def _task(distill: Distill, settings: Settings) -> Iterator[str]:
    task, source = settings.task, distill.learn_from
    if not isinstance(task, Jsonl):
        return
    rewarded = isinstance(source, FromStudent) and source.reward > 0
    if reads_data(distill) and not task.response:
        yield (
            f'algorithm.learn_from.name = "{_tag(source)}" needs task.response, the column with the '
            "answers"
        )
    if rewarded and not task.reward:
        yield "algorithm.learn_from.reward needs task.reward, a Python file that scores answers"
    if settings.eval.prompts and not task.reward and not task.response:
        yield (
            f"eval.prompts = {settings.eval.prompts} needs task.reward or task.response to judge "
            "answers by; 0 for no evaluation"
        )
    if not settings.eval.prompts and task.reward and not rewarded:
        yield "task.reward has no effect: algorithm.learn_from asks for none, and eval.prompts = 0"
    if not settings.eval.prompts and task.response and not reads_data(distill):
        yield "task.response has no effect: no data is learned from, and eval.prompts = 0"


def _numbers(distill: Distill, settings: Settings) -> Iterator[str]:
    sampling, actors = settings.sampling, settings.actors
    if isinstance(distill.learn_from, FromData) and sampling.temperature != Sampling().temperature:
        yield (
            'sampling.temperature has no effect with algorithm.learn_from.name = "data": nothing is '
            "sampled to learn from; evaluation has eval.temperature"
        )
    if student_samples(distill) and actors.samplers > distill.prompts_per_step:
        yield (
            f"actors.samplers = {actors.samplers} needs at least as many "
            f"algorithm.prompts_per_step, got {distill.prompts_per_step}: the others would idle"
        )
    if actors.micro_batch_tokens <= sampling.max_new_tokens:
        yield (
            f"actors.micro_batch_tokens = {actors.micro_batch_tokens} must exceed "
            f"sampling.max_new_tokens = {sampling.max_new_tokens}: "
            "a micro-batch holds at least one whole sequence"
        )


def _tag(record: object) -> str:
    return str(record.__struct_config__.tag)  # type: ignore[attr-defined]
