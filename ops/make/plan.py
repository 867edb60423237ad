"""The questions of a data recipe: the prompts of its task times the samples, each under a key of its own."""

from collections.abc import Sequence

import msgspec

from configs.data_consistency import is_recorded
from configs.data_schema import DataSampling, DataSettings, Magpie, StepByStep
from configs.tasks import Jsonl
from ops.make.records import Question
from runtime.errors import BadInput
from runtime.keys import derive
from runtime.tasks.prompt import Prompt, Task

INSTRUCTION = "instruction/"
ANSWER = "answer/"


def prompts(settings: DataSettings, task: Task) -> list[Prompt]:
    """Returns the task's training prompts that are asked about. Raises BadInput for more than there are."""
    wanted = getattr(settings.method, "prompts", 0)
    size = task.size("train")
    if size is None and not wanted:
        raise BadInput(f"method.prompts: needs a number, task {task.name} has no end")
    whole = is_recorded(settings) and isinstance(settings.task, Jsonl) and not settings.task.eval
    held_out = (task.size("eval") or 0) if whole else 0
    if size is not None and wanted > size + held_out:
        raise BadInput(
            f"method.prompts: needs at most the {size + held_out:,} training prompts of task "
            f"{task.name}, got {wanted:,}"
        )
    count = wanted or (size or 0) + held_out
    # No row is held out of data that has answers: nothing is trained here.
    inside = count if size is None else min(count, size)
    rows = [task.prompt("train", index) for index in range(inside)]
    late = [task.prompt("eval", index) for index in range(count - inside)]
    return rows + [msgspec.structs.replace(p, index=inside + p.index) for p in late]


def questions(settings: DataSettings, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """Returns the name of each question, and the prompt that it is of: prompt after prompt."""
    samples = 1 if is_recorded(settings) else getattr(settings.method, "samples", 1)
    return {f"{p.index}/{sample}": p for p in prompts for sample in range(samples)}


def question(settings: DataSettings, name: str, prompt: Prompt) -> Question:
    """Returns the question of that name."""
    messages = prompt.messages
    if isinstance(settings.method, StepByStep) and settings.method.instruction:
        *before, last = messages
        content = f"{last['content']}\n\n{settings.method.instruction}"
        messages = [*before, {**last, "content": content}]
    return Question(name=name, key=key_of(settings, name), messages=messages)


def key_of(settings: DataSettings, name: str) -> int:
    """Returns the key of a question: the key of its draws, and of the seed that an endpoint is sent."""
    return derive(settings.seed, "make-data", name)


# ── Magpie ───────────────────────────────────────────────────────────────────────────────────────


def instructions(settings: DataSettings, magpie: Magpie) -> list[Question]:
    """Returns questions without a message: the teacher writes the user's message."""
    names = [f"{INSTRUCTION}{index}" for index in range(magpie.instructions)]
    return [Question(name=name, key=key_of(settings, name), messages=[]) for name in names]


def instruction_sampling(settings: DataSettings, magpie: Magpie) -> DataSampling:
    """Returns how instructions are sampled."""
    return DataSampling(
        temperature=magpie.temperature,
        top_p=magpie.top_p,
        max_new_tokens=magpie.max_new_tokens,
        slots=settings.sampling.slots,
    )


def sampled_prompt(name: str, text: str) -> Prompt:
    """Returns the prompt that a sampled instruction is."""
    index = int(name.removeprefix(INSTRUCTION))
    return Prompt(task="magpie", index=index, messages=[{"role": "user", "content": text.strip()}])
