"""The teachers of `make-data`: a local checkpoint, an endpoint, or the task's own column, by one interface.

A teacher writes each answer into the store as it comes, and gives control back now and then, so that
answers are judged while others are still to be asked for: a verifier that is broken shows at once.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from msgspec import Struct, field

from configs.data_schema import DataSampling
from ops.make.progress import Progress
from ops.make.records import Answer, Begun, Failed, Question
from ops.make.stop import Stop
from ops.make.store import Store
from runtime.errors import RunFailed
from runtime.tasks.prompt import Prompt

GO_ON = "the same command goes on, without asking again for what is there"


class Desk(Struct):
    """Holds what a teacher works with: the store of its answers, the progress line, and the signal to
    stop.
    """

    store: Store
    progress: Progress
    stop: Stop
    max_failures: int
    passing: dict[str, str] = field(default_factory=dict)
    """The failures of this call that another call may not have, by question."""
    fresh: list[str] = field(default_factory=list)
    """The answers that have not been judged yet."""
    in_a_row: list[str] = field(default_factory=list)
    lasting: list[Failed] = field(default_factory=list)
    """The failures that another call would have too, if the teacher is in order: not yet written."""

    def took(self, answer: Answer) -> None:
        """Takes an answer that has come."""
        self.store.put(answer)
        self.fresh.append(answer.name)
        self.in_a_row.clear()
        self.settle()
        self.progress.counts.answered += 1
        self.progress.show()

    def unaskable(self, name: str, kind: str, reason: str) -> None:
        """Notes a failure that is the question's fault, not the teacher's."""
        self.store.put(Failed(name=name, kind=kind, reason=reason))
        self.progress.counts.failed += 1

    def missed(self, name: str, kind: str, reason: str, *, passing: bool) -> None:
        """Notes that no answer has come. Raises RunFailed when that happens too often in a row."""
        if passing:
            self.passing[name] = kind
        else:
            self.lasting.append(Failed(name=name, kind=kind, reason=reason))
        self.progress.counts.failed += 1
        self.progress.show()
        self.in_a_row.append(f"{kind}: {reason}")
        if len(self.in_a_row) >= self.max_failures:
            raise RunFailed(
                f"the teacher failed {self.max_failures} times in a row (max_failures); "
                f"the first: {self.in_a_row[0]}; {GO_ON}"
            )

    def settle(self) -> None:
        """Writes down earlier failures as lasting: the teacher answers now, so it would fail at them
        again.
        """
        for failed in self.lasting:
            self.store.put(failed)
        self.lasting.clear()

    def interrupted(self, name: str, tokens: list[int], logprobs: list[float]) -> None:
        """Keeps an answer that is to be continued."""
        if tokens:
            self.store.put(Begun(name=name, tokens=tokens, logprobs=logprobs))


class Teacher(Protocol):
    """Answers questions. It is loaded and ready."""

    def answer(
        self, questions: Sequence[Question], sampling: DataSampling, desk: Desk
    ) -> Iterator[None]:
        """Answers all questions, unless `desk.stop` is asked. Yields whenever some answers may be
        judged.
        """
        ...

    def close(self) -> None:
        """Releases what the teacher holds."""
        ...


class RecordedTeacher:
    """Answers with the demonstrations of the task, which a dataset holds already."""

    def __init__(self, prompts: dict[str, Prompt]) -> None:
        """Takes `prompts` by the name of their question."""
        self._prompts = prompts

    def answer(
        self, questions: Sequence[Question], sampling: DataSampling, desk: Desk
    ) -> Iterator[None]:
        """Looks up each answer."""
        for question in questions:
            text = self._prompts[question.name].demonstration or ""
            desk.took(Answer(name=question.name, text=text, stop="data", at=time.time()))
            if desk.stop.asked:
                return
            yield

    def close(self) -> None:
        """Does nothing: this teacher holds nothing."""
