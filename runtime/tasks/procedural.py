"""Tasks that make their own instances, with a held-out set by construction.

A hash of an instance's content, never of the seed, decides whether it is held out. So train and eval cannot
share an instance, whatever the seeds are, and every run is evaluated on the same prompts. An instance of the
other split is drawn again, which leaves the distribution within the split unchanged.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from runtime.errors import BadInput, RunFailed
from runtime.keys import Stream, derive
from runtime.tasks.prompt import Prompt, Split, Verdict

HELD_OUT_ONE_IN = 8
ATTEMPTS = 10_000
"""Largest number of draws for one prompt. After the opening check, all of them miss with a probability of
1e-20."""
WRONG_ATTEMPTS = 8
"""Number of slips that are tried to get a wrong answer."""
OPENING_DRAWS = 1000
OPENING_HITS = 5
"""Number of instances of each split that must be among the opening draws."""


class Instance(Struct, frozen=True, kw_only=True):
    """One question; instances with the same `identity` are in the same split."""

    identity: tuple[int | str, ...]
    question: str
    truth: Any
    demonstration: str


Draw = Callable[[Stream], Instance | None]
"""A function that returns an instance by a stream's draws, or None if these draws give none."""
Judge = Callable[[Any, str], Verdict]
"""A function that returns the verdict on (truth, completion without surrounding whitespace)."""


class Procedural:
    """An endless `Task`, made of a function that draws instances and one that judges answers.

    Raises BadInput if the settings leave so few instances that a split has none.
    """

    def __init__(self, name: str, seed: int, draw: Draw, judge: Judge) -> None:
        self.name = name
        self._seed = seed
        self._draw = draw
        self._judge = judge
        self._require_both_splits()

    def size(self, split: Split) -> int | None:
        """Returns None, because there is no end of instances."""
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        """Returns prompt `index`; prompts of "eval" are the same for every seed."""
        seed = self._seed if split == "train" else 0
        for attempt in range(ATTEMPTS):
            instance = self._draw(Stream(seed, self.name, split, index, attempt))
            if instance and self._held_out(instance) == (split == "eval"):
                return Prompt(
                    task=self.name,
                    index=index,
                    messages=[{"role": "user", "content": instance.question}],
                    truth=instance.truth,
                    demonstration=instance.demonstration,
                    rejected=self._wrong(instance, Stream(seed, self.name, split, index, "wrong")),
                )
        raise RunFailed(f"task {self.name}: none of {ATTEMPTS} draws is an instance of {split!r}")

    def _wrong(self, instance: Instance, stream: Stream) -> str | None:
        """Returns the demonstration with a slip that makes it wrong; None if no tried slip does."""
        text = instance.demonstration
        for _ in range(WRONG_ATTEMPTS):
            slip = slipped(text, stream)
            if not self._judge(instance.truth, slip.strip()).passed:
                return slip
        return None

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """Judges one answer by its text without surrounding whitespace."""
        return self._judge(prompt.truth, completion.strip())

    def close(self) -> None:
        """Does nothing, because no process was started."""

    def _held_out(self, instance: Instance) -> bool:
        return derive("held out", self.name, *instance.identity) % HELD_OUT_ONE_IN == 0

    def _require_both_splits(self) -> None:
        met = {False: 0, True: 0}
        for number in range(OPENING_DRAWS):
            instance = self._draw(Stream(0, self.name, "opening", number))
            if instance:
                met[self._held_out(instance)] += 1
            if min(met.values()) >= OPENING_HITS:
                return
        raise BadInput(
            f"task {self.name}: needed settings with instances both to train on and to hold out, "
            f"of {OPENING_DRAWS} drawn {met[False]} are to train on and {met[True]} to hold out"
        )


def slipped(text: str, stream: Stream) -> str:
    """Returns a text with a slip: two different neighbours exchanged, a digit changed, or the end cut off."""
    places = [i for i in range(len(text) - 1) if text[i] != text[i + 1]]
    if places and stream.integer(0, 1):
        i = stream.choice(places)
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    places = [i for i, character in enumerate(text) if character.isdigit()]
    if not places:
        return text[:-1]
    i = stream.choice(places)
    return text[:i] + stream.choice([d for d in "0123456789" if d != text[i]]) + text[i + 1 :]


def right_or_wrong(correct: bool, **parts: float) -> Verdict:
    """Returns a verdict with reward 1 for a right answer, else 0; `parts` are reported and not rewarded."""
    score = float(correct)
    return Verdict(reward=score, passed=correct, parts={"correct": score, **parts})
