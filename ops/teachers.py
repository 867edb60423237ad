"""Checks before a run what can be known to be wrong with a distillation's teachers."""

import socket
from pathlib import Path
from typing import Any

from configs.schema import Settings
from configs.teachers import EndpointTeacher, LocalTeacher
from runtime.checkpoint_files import inspect
from runtime.endpoint import Client, Endpoint
from runtime.errors import BadInput
from runtime.exchange import address
from runtime.tasks.prompt import Prompt, check_teacher

CONNECT_S = 5.0


def check_teachers(settings: Settings) -> list[str]:
    """Returns what can run and will probably not do what was meant, a sentence each. Raises BadInput
    for a teacher that is not there or cannot teach this student.
    """
    from policies.frozen import model_of
    from policies.load import load_tokens

    facts, student = settings.facts, Path(settings.model.path)
    mine = load_tokens(settings.model, student)
    doubts = []
    for name, teacher in facts.teachers.items():
        key = f"algorithm.teachers.{name}"
        if isinstance(teacher, EndpointTeacher):
            _check_endpoint(key, teacher)
            continue
        folder = Path(teacher.path)
        files = inspect(folder)
        theirs = load_tokens(model_of(teacher), folder)
        if facts.shares_tokens and theirs.fingerprint != mine.fingerprint:
            raise BadInput(
                f"{key}: a signal for each token needs one tokenizer, but {folder / 'tokenizer.json'} is "
                f"another than {student / 'tokenizer.json'}; with any two, text can be learned from: "
                'algorithm.learn_from.name = "teacher" and algorithm.signal.name = "text"'
            )
        if facts.teacher_top_k:
            for whose, config in (("teacher", files), ("student", inspect(student))):
                vocabulary = int(config.text_config["vocab_size"])
                if facts.teacher_top_k > vocabulary:
                    raise BadInput(
                        f"algorithm.signal.k = {facts.teacher_top_k} exceeds the {vocabulary} tokens of the "
                        f"{whose}'s vocabulary ({key})"
                    )
        if facts.shares_tokens and theirs.stop_tokens - mine.stop_tokens:
            doubts.append(
                f"{key} ends answers with tokens {_listed(theirs.stop_tokens)}, the student with "
                f"{_listed(mine.stop_tokens)}: it will learn to end with one at which it is not stopped; "
                "name them all as eos_token_id in its generation_config.json"
            )
    return doubts


def _listed(tokens: frozenset[int]) -> str:
    return ", ".join(map(str, sorted(tokens)))


def _check_endpoint(key: str, teacher: EndpointTeacher) -> None:
    try:
        Client(
            Endpoint(url=teacher.url, model=teacher.model, key_variable=teacher.key_variable)
        ).close()
    except BadInput as error:
        raise BadInput(f"{key}: {error}") from None
    where = address(teacher.url)
    try:
        socket.create_connection((where.host, where.port), CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # an invalid host name cannot be encoded
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(
            f"{key}.url: needed a server at {where.host}:{where.port}, none answers: {reason}"
        ) from None


class Readers:
    """Holds the teachers that have to read a prompt, with their own tokens and context."""

    def __init__(self, settings: Settings) -> None:
        from policies.frozen import model_of
        from policies.load import context_length, load_tokens

        self._limits: dict[str, tuple[Any, int]] = {}
        self._facts = facts = settings.facts
        makes = facts.samples or facts.teachers_answer
        answer = settings.sampling.max_new_tokens if makes else 0
        for name, teacher in facts.teachers.items():
            if isinstance(teacher, LocalTeacher):
                folder = Path(teacher.path)
                limit = context_length(folder) - answer
                self._limits[name] = load_tokens(model_of(teacher), folder), limit

    def check(self, prompt: Prompt) -> None:
        """Raises BadInput for a prompt that its teacher has no room for, or whose teacher does not
        exist.
        """
        check_teacher(prompt, self._facts.teachers)
        name = prompt.teacher or next(iter(self._facts.teachers))
        if name not in self._limits:
            return
        tokens, limit = self._limits[name]
        count = len(tokens.prompt(prompt.messages))
        if count > limit:
            raise BadInput(
                f"{prompt.place}: the prompt has {count} tokens, but teacher {name}'s context leaves "
                f"{max(limit, 0)}"
            )
