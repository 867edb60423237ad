"""Every setting of a data recipe (`pippin make-data`): closed, like a run's, in a run's own words.

The teacher, the task and the verifier are the tables that a run has; what is new is the method, and
what becomes of its answers. An answer is counted once, whatever happens to it.
"""

from typing import Annotated, Literal

from msgspec import Meta

from configs.fields import Closed, Count, NotNegative, Text, Whole
from configs.run import Verifier
from configs.tasks import Task
from configs.teachers import EndpointTeacher, LocalTeacher


class Recorded(Closed, frozen=True, tag_field="name", tag="recorded"):
    """Nobody is asked: the answers are the task's own (`task.response`), made by whoever wrote them."""

    by: str = ""
    """Who that was: goes into every row."""


Teacher = LocalTeacher | EndpointTeacher | Recorded


# ── methods ──────────────────────────────────────────────────────────────────────────────────────


class Rejection(Closed, frozen=True, tag_field="name", tag="rejection"):
    """Rejection sampling: of the samples of each prompt, those that the task's verifier passes."""

    prompts: Whole = 0
    """Of the task's training prompts; 0 for all of a finite task."""
    samples: Count = 4
    keep: Whole = 0
    """At most so many of each prompt; 0 for all that pass."""


class BestOfN(Closed, frozen=True, tag_field="name", tag="best_of_n"):
    """Of the samples of each prompt, the one with the highest reward."""

    prompts: Whole = 0
    samples: Annotated[int, Meta(ge=2)] = 8
    require_pass: bool = False
    """The best is kept only if it passes as well."""


class Traces(Closed, frozen=True, tag_field="name", tag="traces"):
    """Answers with their reasoning in front, between the recipe's `reasoning` marks."""

    prompts: Whole = 0
    samples: Count = 1
    keep: Whole = 0
    only_right: bool = False
    """Only where the verifier passes the final answer, which it sees without the reasoning."""
    require_reasoning: bool = False
    """Only answers that have some."""


class StepByStep(Closed, frozen=True, tag_field="name", tag="step_by_step"):
    """Distilling step-by-step (Hsieh 2023, 2305.02301): label and rationale as two tasks.

    An answer is the rationale, then `mark`, then the label; it becomes two rows, told apart by what
    their prompts begin with.
    """

    prompts: Whole = 0
    samples: Count = 1
    keep: Whole = 1
    instruction: str = "Think step by step, then end with one line: Answer: <answer>"
    """Behind each prompt, for the teacher only."""
    mark: Text = "Answer:"
    """The last one in an answer divides it."""
    label_prefix: Text = "[label] "
    rationale_prefix: Text = "[rationale] "
    only_right: bool = True
    judged: Literal["label", "whole"] = "label"
    """What the verifier sees: gsm8k's wants the mark too."""


class Magpie(Closed, frozen=True, tag_field="name", tag="magpie"):
    """Magpie (2406.08464): the checkpoint itself continues its chat template's prefix up to the user's
    turn, which gives an instruction; then it answers that.
    """

    instructions: Count = 100
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """Of the instructions; that of the answers is `sampling.temperature`."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 256


Method = Rejection | BestOfN | Traces | StepByStep | Magpie


# ── what becomes of an answer ────────────────────────────────────────────────────────────────────


class DataSampling(Closed, frozen=True):
    """How the teacher answers. Truncation is fine here: nothing of its distribution is learned."""

    temperature: NotNegative = 1.0
    """0 takes the likeliest token."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Whole = 0
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    max_new_tokens: Count = 512
    slots: Count = 32
    """Sequences that a local teacher decodes at once."""


class Reasoning(Closed, frozen=True):
    """Where an answer's reasoning ends, for teachers that write it into their text."""

    begin: Text = "<think>"
    end: Text = "</think>"


class Limits(Closed, frozen=True):
    """Of a final answer, or of an instruction that was sampled."""

    shortest_characters: Count = 1
    longest_characters: Count = 65536


class EveryRow(Closed, frozen=True, tag_field="name", tag="none"):
    """Repetitions stay."""


class Exact(Closed, frozen=True, tag_field="name", tag="exact"):
    """Rows that are equal, prompt and response together."""


class Near(Closed, frozen=True, tag_field="name", tag="near"):
    """And those that are nearly equal, by the Jaccard similarity of their shingles (MinHash)."""

    threshold: Annotated[float, Meta(gt=0, le=1)] = 0.8
    unit: Literal["word", "char"] = "word"
    shingle: Count = 3
    hashes: Count = 128


class SftRows(Closed, frozen=True, tag_field="name", tag="sft"):
    """{prompt, response}: what configs/sft.toml reads."""

    column: Literal["prompt", "messages"] = "prompt"
    """"prompt": a text where a user's message is all there is; "messages": always a list."""


class PreferenceRows(Closed, frozen=True, tag_field="name", tag="preference"):
    """{prompt, chosen, rejected}: the best of a prompt's answers with its worst."""

    pairs: Count = 1
    """Of each prompt at most: then the second best with the second worst, and so on."""
    margin: NotNegative = 0.0
    """The chosen one's reward is higher by more than this."""


class DataSettings(Closed, frozen=True, kw_only=True):
    """A data recipe."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    exact: bool = False
    """A local teacher computes bit for bit the same on each machine of a kind; slow."""
    teacher: Teacher
    method: Method
    task: Task | None = None
    """Its training prompts and its verifier. Rows that it holds out are not asked about."""
    sampling: DataSampling = DataSampling()
    reasoning: Reasoning = Reasoning()
    limits: Limits = Limits()
    dedup: EveryRow | Exact | Near = Exact()
    output: SftRows | PreferenceRows = SftRows()
    max_failures: Count = 20
    """Answers in a row that the teacher may fail to give; then it stops and names the first."""
    verifier: Verifier = Verifier()
