"""A teacher behind an OpenAI-compatible endpoint: every answer is stored in the moment it comes."""

import time
from collections.abc import Iterator, Sequence

from configs.data_schema import DataSampling
from configs.teachers import EndpointTeacher
from ops.make.records import Answer, Question
from ops.make.teacher import GO_ON, Desk
from runtime import chat
from runtime.endpoint import TRANSIENT, Client, Endpoint
from runtime.errors import RunFailed


class Remote:
    """Asks it, several at once. The key, if any, stays in the client."""

    def __init__(self, settings: EndpointTeacher) -> None:
        """Raises BadInput for settings that cannot be used."""
        self._settings = settings
        self._client = Client(
            Endpoint(
                url=settings.url,
                model=settings.model,
                key_variable=settings.key_variable,
                concurrency=settings.concurrency,
                timeout_s=settings.timeout_s,
                attempts=settings.attempts,
            )
        )

    def answer(
        self, questions: Sequence[Question], sampling: DataSampling, desk: Desk
    ) -> Iterator[None]:
        """As they come. Once `desk.stop` is asked no new one is, but those under way are paid for."""

        def asks() -> Iterator[chat.Ask]:
            for question in questions:
                if desk.stop.asked:
                    return
                yield self._ask(question, sampling)

        with desk.stop.gently("waiting for the answers under way"):
            for index, outcome in self._client.ask_all(asks()):
                self._settle(questions[index].name, outcome, desk)
                yield

    def close(self) -> None:
        """End what is under way."""
        self._client.close()

    def _ask(self, question: Question, sampling: DataSampling) -> chat.Ask:
        system = self._settings.system
        before = [{"role": "system", "content": system}] if system else []
        return chat.Ask(
            messages=[*before, *question.messages],
            key=question.key,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )

    def _settle(self, name: str, outcome: chat.Outcome, desk: Desk) -> None:
        if isinstance(outcome, chat.Answer):
            desk.progress.counts.tokens += outcome.answer_tokens or 0
            desk.took(
                Answer(
                    name=name,
                    text=outcome.text,
                    reasoning=outcome.reasoning,
                    stop=outcome.finish_reason,
                    tokens=outcome.answer_tokens,
                    model=outcome.model,
                    at=time.time(),
                )
            )
            return
        if outcome.kind == "stopped":
            return
        if outcome.kind == "unauthorized":
            variable = self._settings.key_variable
            key = f"the key in ${variable}" if variable else "requests without a key (key_variable)"
            raise RunFailed(f"{self._settings.url} does not take {key}: {outcome.reason}; {GO_ON}")
        desk.missed(name, outcome.kind, outcome.reason, passing=outcome.kind in TRANSIENT)
