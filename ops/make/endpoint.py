"""A teacher behind an OpenAI-compatible endpoint: every answer is stored in the moment it comes."""

import time
from collections.abc import Iterator, Sequence

from configs.data_schema import DataSampling
from configs.teachers import EndpointTeacher
from ops.make.queries import queries, sampling_of
from ops.make.records import Answer, Question
from ops.make.teacher import GO_ON, Desk
from policies.generators.endpoint import EndpointGenerator
from policies.generators.protocol import Answer as Generated
from runtime.endpoint import TRANSIENT
from runtime.errors import RunFailed


class Remote:
    """Asks an endpoint, several questions at once."""

    def __init__(self, settings: EndpointTeacher) -> None:
        """Raises BadInput for settings that cannot be used."""
        self._settings = settings
        self._generator = EndpointGenerator(settings)

    def answer(
        self, questions: Sequence[Question], sampling: DataSampling, desk: Desk
    ) -> Iterator[None]:
        """Stores answers as they come. Raises RunFailed if the endpoint fails too often or refuses the key.

        Once it fails or `desk.stop` is asked, nothing new is asked, and answers under way are waited
        for, as long as their attempt may take: they are paid for.
        """
        failures: list[RunFailed] = []

        def may_continue() -> bool:
            return not (desk.stop.asked or failures)

        asked = queries(questions, desk.store)
        with desk.stop.gently("waiting for the answers under way"):
            for made in self._generator.generate(asked, sampling_of(sampling), may_continue):
                try:
                    self._settle(made, desk)
                except RunFailed as failure:
                    failures.append(failure)
                    self._generator.wind_down()
                yield
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Ends what is under way."""
        self._generator.close()

    def _settle(self, made: Generated, desk: Desk) -> None:
        if made.failure == "unauthorized":
            variable = self._settings.key_variable
            key = f"the key in ${variable}" if variable else "requests without a key (key_variable)"
            raise RunFailed(f"{self._settings.url} does not take {key}: {made.reason}; {GO_ON}")
        if made.failure:
            desk.missed(made.name, made.failure, made.reason, passing=made.failure in TRANSIENT)
            return
        desk.progress.counts.tokens += made.new_tokens or 0
        desk.took(
            Answer(
                name=made.name,
                text=made.text,
                reasoning=made.reasoning,
                stop=made.stop,
                tokens=made.new_tokens,
                model=made.model,
                at=time.time(),
            )
        )
