"""``pippin check RECIPE``: the resolved settings, what they mean, and whether they fit here.

Answers in a fraction of a second: nothing here imports MLX, Ray, NumPy or transformers. It judges
a checkpoint by its headers and only looks whether data files exist; a launch looks into them.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from configs import SettingsError, load
from configs.dump import to_toml
from configs.schema import Settings
from configs.tasks import Gsm8k, Jsonl
from configs.teachers import LocalTeacher
from ops.check_text import spelled_in_files
from ops.estimate import (
    GIB,
    Estimate,
    assumed_prompt_tokens,
    estimate,
)
from ops.network import Network, assumed_network, network_of
from ops.sentences import explain
from ops.terminal import say
from runtime.checkpoint_files import cached, inspect
from runtime.errors import BadInput


def run(recipe: str, overrides: Sequence[str] = (), *, prompt: bool = False) -> int:
    """Prints all that can be said of `recipe` before it runs. Returns 0 if nothing speaks against it.

    With `prompt`, the first prompt is printed token by token, too, which imports the tokenizer's library.
    Raises BadInput for a recipe that cannot be used, and, after printing, for a checkpoint or a data
    file that is missing or damaged.
    """
    try:
        settings = load(recipe, overrides)
    except SettingsError as error:
        raise BadInput(str(error)) from None
    prompt_tokens = assumed_prompt_tokens(settings)
    say(f"# {recipe}, resolved\n\n{to_toml(settings)}")
    say("# What the numbers mean\n")
    for sentence in explain(settings, prompt_tokens):
        say(f"- {sentence}")
    problems = [*_missing_files(recipe, settings), *_missing_teachers(settings)]
    try:
        network, assumption = find_network(settings.model.path)
    except BadInput as error:
        network, assumption = None, "unknown: the checkpoint cannot be used"
        problems.insert(0, str(error))
    say("\n# Memory\n")
    for line in _memory(settings, network, assumption, prompt_tokens):
        say(line)
    if problems:
        raise BadInput("\n".join(problems))
    for note in spelled_in_files(settings):
        say(f"\nnote: {note}")
    if prompt:
        from ops.check_prompt import prompt_lines

        say("\n# The first prompt\n")
        for line in prompt_lines(settings):
            say(line)
    return 0


def find_network(path: str) -> tuple[Network | None, str]:
    """Returns the network of `model.path` and, in words, the source of that knowledge.

    Raises BadInput for a folder that is damaged or missing.
    """
    folder = Path(path) if Path(path).is_absolute() else None
    folder = folder or (cached(path) if "/" in path else None)
    if folder is not None:
        network = network_of(inspect(folder))
        if network is None:
            return None, f"unknown: {folder / 'config.json'} describes no plain transformer"
        size = f"{network.parameters / 1e6:,.1f} million parameters"
        return network, f"from the headers in {folder}: {size}"
    stand_in = assumed_network(path)
    if stand_in is None:
        return None, f"unknown: {path} is not on this machine yet and its name says no size"
    return stand_in


def memory_doubt(settings: Settings) -> str:
    """Returns the verdict on a checkpoint that is here, if it is anything but good; else ""."""
    network, _ = find_network(settings.model.path)
    if network is None:
        return ""
    tokens = assumed_prompt_tokens(settings)
    teachers = {name: found for name, (found, _) in _teachers(settings).items() if found}
    result = estimate(settings, network, machine_memory_bytes(), tokens, teachers)
    return "" if result.verdict == "fits" else f"memory: {_verdict(settings, result)}"


def _teachers(settings: Settings) -> dict[str, tuple[Network | None, str]]:
    """Returns the networks of local teachers by name, and the source of that knowledge."""
    found: dict[str, tuple[Network | None, str]] = {}
    for name, teacher in settings.facts.teachers.items():
        if isinstance(teacher, LocalTeacher):
            try:
                found[name] = find_network(teacher.path)
            except BadInput as error:
                found[name] = None, f"cannot be used: {error}"
    return found


def machine_memory_bytes() -> int:
    """Returns all memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _missing_files(recipe: str, settings: Settings) -> Iterator[str]:
    task = settings.task
    names = ("train", "eval", "reward") if isinstance(task, Jsonl) else ("train", "eval")
    if not isinstance(task, Gsm8k | Jsonl):
        return
    for name in names:
        path = getattr(task, name)
        if path and not Path(path).is_file():
            kind = "a folder" if Path(path).is_dir() else "missing"
            yield f"{recipe}: task.{name} needs a file, {path} is {kind}"


def _missing_teachers(settings: Settings) -> Iterator[str]:
    for name, teacher in settings.facts.teachers.items():
        if isinstance(teacher, LocalTeacher):
            try:
                find_network(teacher.path)
            except BadInput as error:
                yield f"algorithm.teachers.{name}: {error}"


def _memory(
    settings: Settings, network: Network | None, assumption: str, prompt_tokens: int
) -> Iterator[str]:
    yield f"Checkpoint: {assumption}."
    if network is None:
        return
    teachers = _teachers(settings)
    for name, (_, where) in teachers.items():
        yield f"Teacher {name}: {where}."
    known = {name: found for name, (found, _) in teachers.items() if found is not None}
    result = estimate(settings, network, machine_memory_bytes(), prompt_tokens, known)
    yield f"Prompts of {prompt_tokens} tokens are assumed, and answers of full length.\n"
    for item in result.items:
        phase = "" if item.phase == "always" else f" (while {item.phase})"
        yield f"  {_gib(item.size_bytes):>10}  {item.what}{phase}"
    yield f"  {_gib(result.peak_bytes):>10}  at the peak: one phase at a time\n"
    yield _verdict(settings, result)


def _verdict(settings: Settings, result: Estimate) -> str:
    share = result.peak_bytes / result.memory_bytes
    line = (
        f"Verdict: {result.verdict}: about {_gib(result.peak_bytes)} of this machine's "
        f"{_gib(result.memory_bytes)} ({share:.0%})."
    )
    advice = _advice(settings, result) if result.verdict != "fits" else ""
    return f"{line} {advice}".rstrip()


def _advice(settings: Settings, result: Estimate) -> str:
    """Returns the advice that would shrink the largest item of the estimate."""
    largest = max(result.items, key=lambda item: item.size_bytes)
    if largest.phase == "learning":
        if not settings.model.gradient_checkpointing:
            return "Try model.gradient_checkpointing = true, or fewer actors.micro_batch_tokens."
        return "Try fewer actors.micro_batch_tokens."
    if largest.phase == "sampling":
        return "Try fewer sampling.slots."
    if settings.model.train.__struct_config__.tag == "full":
        return 'Try model.train.name = "lora": gradients and moments shrink to the adapters\'.'
    if not settings.model.quantize_bits:
        return "Try model.quantize_bits = 4."
    return "Try a smaller checkpoint."


def _gib(size_bytes: int) -> str:
    if size_bytes >= GIB / 10:
        return f"{size_bytes / GIB:.1f} GiB"
    return f"{size_bytes / 1024**2:.1f} MiB"
