"""An OpenAI-compatible endpoint as a generator: several requests at once, answers as they come."""

from collections.abc import Iterator, Sequence

from configs.teachers import EndpointTeacher
from policies.generators.protocol import Answer, MayContinue, Query
from policies.sampling import Sampling
from runtime import chat
from runtime.endpoint import Client, Endpoint


class EndpointGenerator:
    """One client of an endpoint. Its key, if it has one, stays in the client."""

    def __init__(self, teacher: EndpointTeacher) -> None:
        """Raises BadInput for settings that cannot be used."""
        self._system = teacher.system
        self._client = Client(
            Endpoint(
                url=teacher.url,
                model=teacher.model,
                key_variable=teacher.key_variable,
                concurrency=teacher.concurrency,
                timeout_s=teacher.timeout_s,
                attempts=teacher.attempts,
            )
        )

    def generate(
        self, queries: Sequence[Query], sampling: Sampling, may_continue: MayContinue
    ) -> Iterator[Answer]:
        """Yields answers and failures as they come; a request that was ended on request yields nothing.

        Once `may_continue` is False no request is begun, and those under way are waited for.
        """

        def asks() -> Iterator[chat.Ask]:
            for query in queries:
                if not may_continue():
                    self.wind_down()
                    return
                yield self._ask(query, sampling)

        for number, outcome in self._client.ask_all(asks()):
            name = queries[number].name
            if isinstance(outcome, chat.Answer):
                yield Answer(
                    name=name,
                    stop=outcome.finish_reason,
                    text=outcome.text,
                    new_tokens=outcome.answer_tokens,
                    reasoning=outcome.reasoning,
                    model=outcome.model,
                    seconds=outcome.seconds,
                )
            elif outcome.kind != "stopped":
                yield Answer(
                    name=name,
                    failure=outcome.kind,
                    reason=outcome.reason,
                    seconds=outcome.seconds,
                )

    def wind_down(self) -> None:
        """Lets requests under way come to their end, and begins none and repeats none."""
        self._client.wind_down()

    def close(self) -> None:
        """Ends what is under way; what is asked later ends at once."""
        self._client.close()

    def _ask(self, query: Query, sampling: Sampling) -> chat.Ask:
        system = [{"role": "system", "content": self._system}] if self._system else []
        return chat.Ask(
            messages=[*system, *query.messages],
            key=query.key,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
