"""Tasks that make their own instances, with a held-out set by construction.

Whether an instance is held out is a hash of its content, never of the seed: train and eval cannot
share one, whatever the seeds, and every run is evaluated on the same prompts. An instance that a
split must not have is drawn again, which leaves the distribution within the split as it was.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from runtime.errors import BadInput, RunFailed
from runtime.keys import Stream, derive
from runtime.tasks.prompt import Prompt, Split, Verdict

HELD_OUT_ONE_IN = 8
ATTEMPTS = 10_000
"""Draws for one prompt. The opening check sees to it that this many cannot all miss (1e-20)."""
WRONG_ATTEMPTS = 8
"""Slips that are tried for a wrong answer."""
OPENING_DRAWS = 1000
OPENING_HITS = 5
"""Instances of each split that the opening draws must meet."""


class Instance(Struct, frozen=True, kw_only=True):
    """One question. Two with the same `identity` are the same for the split."""

    identity: tuple[int | str, ...]
    question: str
    truth: Any
    demonstration: str


Draw = Callable[[Stream], Instance | None]
"""An instance from a stream's draws; None if these draws make none."""
Judge = Callable[[Any, str], Verdict]
"""The verdict on (truth, completion without surrounding whitespace)."""


class Procedural:
    """An endless `Task` from a way to draw instances and a way to judge answers.

    Raises BadInput if the settings leave so few instances that a split has none.
    """

    def __init__(self, name: str, seed: int, draw: Draw, judge: Judge) -> None:
        self.name = name
        self._seed = seed
        self._draw = draw
        self._judge = judge
        self._require_both_splits()

    def size(self, split: Split) -> int | None:
        """None: instances do not end."""
        return None

    def prompt(self, split: Split, index: int) -> Prompt:
        """Prompt `index`; that of "eval" is the same for every seed."""
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
        """Returns the demonstration with a slip that makes it wrong; None if none of some does."""
        text = instance.demonstration
        for _ in range(WRONG_ATTEMPTS):
            slip = slipped(text, stream)
            if not self._judge(instance.truth, slip.strip()).passed:
                return slip
        return None

    def verify(self, prompt: Prompt, completion: str) -> Verdict:
        """Judge one answer by its text without surrounding whitespace."""
        return self._judge(prompt.truth, completion.strip())

    def close(self) -> None:
        """Nothing was started."""

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
    """Returns a text with two neighbours exchanged where they differ, or else one character changed."""
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
    """One point for a right answer; `parts` beside "correct" are shown, not rewarded."""
    score = float(correct)
    return Verdict(reward=score, passed=correct, parts={"correct": score, **parts})
