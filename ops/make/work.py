"""One call's work on a recipe: every question is answered and every answer judged, each once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.data_consistency import has_verifier, needs_verdict
from configs.data_schema import DataSampling, DataSettings, Magpie
from configs.teachers import LocalTeacher
from ops.make import choose, plan, rows
from ops.make.records import Candidate, Judged, Outcome, Question
from ops.make.teacher import GO_ON, Desk, RecordedTeacher, Teacher
from runtime.errors import RunFailed
from runtime.tasks.prompt import Prompt, Task, Verdict

Found = tuple[list[str], list[Candidate], dict[str, Outcome]]
"""The names of all questions that were asked; whole answers; the outcomes of the others."""


class Work:
    """Works with a teacher, a task and a desk. `teacher` is loaded when there is something to ask."""

    def __init__(
        self,
        settings: DataSettings,
        task: Task | None,
        named: dict[str, Prompt],
        folder: Path | None,
        desk: Desk,
        teacher: Teacher | None,
    ) -> None:
        self._settings = settings
        self._task = task if has_verifier(settings) else None
        self._named = named
        self._folder = folder
        self._desk = desk
        self._teacher = teacher
        self._unjudged: list[str] = []

    def run(self) -> Found:
        """Asks and judges. Raises KeyboardInterrupt if it was stopped before all was there."""
        try:
            if isinstance(self._settings.method, Magpie):
                return self._magpie(self._settings.method)
            self._ask([plan.question(self._settings, n, p) for n, p in self._named.items()])
            found, outcomes = self._candidates({n: (n, p) for n, p in self._named.items()})
            return list(self._named), found, outcomes
        finally:
            if self._teacher is not None:
                self._teacher.close()

    # ── asking ───────────────────────────────────────────────────────────────────────────────────

    def _ask(self, questions: Sequence[Question], sampling: DataSampling | None = None) -> None:
        """Gets an answer or a failure for each of the questions."""
        desk, store = self._desk, self._desk.store
        missing = [q for q in questions if not store.has(q.name)]
        desk.progress.more(len(questions), len(questions) - len(missing))
        desk.fresh += [q.name for q in questions if q.name in store.answers]
        self._judge()
        if missing:
            for _ in self._ready().answer(missing, sampling or self._settings.sampling, desk):
                self._judge()
        if desk.stop.asked:
            raise KeyboardInterrupt
        desk.settle()
        self._judge()

    def _ready(self) -> Teacher:
        if self._teacher is None:
            settings = self._settings.teacher
            if isinstance(settings, LocalTeacher):
                from ops.make.local import Local

                assert self._folder is not None
                self._desk.progress.say(f"loading the teacher {settings.path}")
                self._teacher = Local(settings, self._folder)
            else:
                self._teacher = RecordedTeacher(self._named)
        return self._teacher

    def _magpie(self, magpie: Magpie) -> Found:
        """Samples instructions first, then answers those that are new and whole."""
        settings, store = self._settings, self._desk.store
        asked = plan.instructions(settings, magpie)
        self._ask(asked, plan.instruction_sampling(settings, magpie))
        outcomes: dict[str, Outcome] = {}
        fit: dict[str, str] = {}
        for name in (question.name for question in asked):
            answer = store.answers.get(name)
            text = answer.text.strip() if answer else ""
            if answer is None:
                outcomes[name] = ("failed", self._failure(name))
            elif outcome := choose.unfit(text, answer.stop, settings.limits):
                outcomes[name] = outcome
            elif answer.tokens == 1:
                outcomes[name] = ("rejected", "one_token")
            else:
                fit[name] = text
        again = rows.repeated(list(fit.values()), settings)
        named: dict[str, tuple[str, Prompt]] = {}
        for i, (name, text) in enumerate(fit.items()):
            if i in again:
                outcomes[name] = ("duplicate", again[i])
            else:
                second = plan.ANSWER + name.removeprefix(plan.INSTRUCTION)
                named[second] = (name, plan.sampled_prompt(name, text))
        self._ask([plan.question(settings, second, p) for second, (_, p) in named.items()])
        found, gone = self._candidates(named)
        return [question.name for question in asked], found, outcomes | gone

    # ── judging ──────────────────────────────────────────────────────────────────────────────────

    def _judge(self) -> None:
        """Sends what is new to the verifier. Raises RunFailed if the verifier fails too often in a row."""
        desk, counts = self._desk, self._desk.progress.counts
        fresh, desk.fresh = desk.fresh, []
        if self._task is None:
            return
        for name in fresh:
            if name in desk.store.verdicts:
                continue
            candidate = self._candidate(name, name, self._named[name])
            if choose.unfit(candidate.text, candidate.answer.stop, self._settings.limits):
                continue
            text = choose.judged_text(self._settings, candidate)
            verdict = self._task.verify(candidate.prompt, text)
            self._count(verdict)
            desk.store.put(Judged(name=name, verdict=verdict))
            counts.judged += 1
            counts.passed += bool(verdict.passed)
            desk.progress.show()

    def _count(self, verdict: Verdict) -> None:
        limit = self._settings.verifier.max_failures
        self._unjudged = (
            [*self._unjudged, f"{verdict.failure}: {verdict.detail}"] if verdict.failure else []
        )
        if len(self._unjudged) >= limit and needs_verdict(self._settings):
            raise RunFailed(
                f"the reward failed {limit} times in a row (verifier.max_failures); "
                f"the first: {self._unjudged[0]}; {GO_ON}"
            )

    # ── what is there ────────────────────────────────────────────────────────────────────────────

    def _candidates(
        self, named: Mapping[str, tuple[str, Prompt]]
    ) -> tuple[list[Candidate], dict[str, Outcome]]:
        """Returns whole answers, under the names by which they are counted, and the outcomes of the
        others.
        """
        store = self._desk.store
        found: list[Candidate] = []
        outcomes: dict[str, Outcome] = {}
        for name, (counted, prompt) in named.items():
            if name not in store.answers:
                outcomes[counted] = ("failed", self._failure(name))
                continue
            candidate = self._candidate(name, counted, prompt)
            outcome = choose.unfit(candidate.text, candidate.answer.stop, self._settings.limits)
            if outcome:
                outcomes[counted] = outcome
            else:
                found.append(candidate)
        return found, outcomes

    def _candidate(self, name: str, counted: str, prompt: Prompt) -> Candidate:
        answer = self._desk.store.answers[name]
        reasoning, text = choose.split(answer.text, answer.reasoning, self._settings.reasoning)
        return Candidate(
            name=counted,
            key=plan.key_of(self._settings, name),
            prompt=prompt,
            text=text,
            reasoning=reasoning,
            answer=answer,
            verdict=self._desk.store.verdicts.get(name),
        )

    def _failure(self, name: str) -> str:
        lasting = self._desk.store.failures.get(name)
        return lasting.kind if lasting else self._desk.passing[name]
