"""Every setting of a data recipe (`pippin make-data`): a closed schema, like that of a run.

The tables of the teacher, the task and the verifier are those of a run. The table of the method, and the
tables that decide what is kept of its answers, are new. Each answer is counted once, under one outcome.
"""

from typing import Annotated, Literal

from msgspec import Meta

from configs.fields import Closed, Count, NotNegative, Text, Whole
from configs.run import Verifier
from configs.tasks import Task
from configs.teachers import EndpointTeacher, LocalTeacher


class Recorded(Closed, frozen=True, tag_field="name", tag="recorded"):
    """No teacher is asked: the answers are read from the column `task.response`."""

    by: str = ""
    """The author of those answers, such as a model's name; it is written into every row."""


Teacher = LocalTeacher | EndpointTeacher | Recorded


# ── methods ──────────────────────────────────────────────────────────────────────────────────────


class Rejection(Closed, frozen=True, tag_field="name", tag="rejection"):
    """Rejection sampling: keeps the samples of each prompt that the task's verifier passes."""

    prompts: Whole = 0
    """Number of the task's training prompts to use; 0 for all of a finite task."""
    samples: Count = 4
    keep: Whole = 0
    """Most answers to keep for each prompt; 0 for all that pass."""


class BestOfN(Closed, frozen=True, tag_field="name", tag="best_of_n"):
    """Best of n: keeps the sample of each prompt with the highest reward."""

    prompts: Whole = 0
    samples: Annotated[int, Meta(ge=2)] = 8
    require_pass: bool = False
    """Keeps the best sample only if it passes as well."""


class Traces(Closed, frozen=True, tag_field="name", tag="traces"):
    """Answers with their reasoning in front, between the recipe's `reasoning` marks."""

    prompts: Whole = 0
    samples: Count = 1
    keep: Whole = 0
    only_right: bool = False
    """Keeps only answers that the verifier passes; it sees the final answer without the reasoning."""
    require_reasoning: bool = False
    """Keeps only answers that contain reasoning."""


class StepByStep(Closed, frozen=True, tag_field="name", tag="step_by_step"):
    """Distilling step-by-step (Hsieh 2023, 2305.02301): label and rationale as two tasks.

    An answer is the rationale, then `mark`, then the label. It becomes two rows, whose prompts begin with
    `rationale_prefix` and `label_prefix`.
    """

    prompts: Whole = 0
    samples: Count = 1
    keep: Whole = 1
    instruction: str = "Think step by step, then end with one line: Answer: <answer>"
    """Text that is added after each prompt, for the teacher only."""
    mark: Text = "Answer:"
    """Text between rationale and label; the last one in an answer divides it."""
    label_prefix: Text = "[label] "
    rationale_prefix: Text = "[rationale] "
    only_right: bool = True
    judged: Literal["label", "whole"] = "label"
    """The text that the verifier sees: the label, or the whole answer, as the task gsm8k needs it."""


class Magpie(Closed, frozen=True, tag_field="name", tag="magpie"):
    """Magpie (2406.08464): the checkpoint writes the instructions itself, and then answers them.

    It continues its chat template's prefix up to the user's turn; the continuation is the instruction.
    """

    instructions: Count = 100
    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """Temperature at which instructions are sampled; for the answers it is `sampling.temperature`."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 256


Method = Rejection | BestOfN | Traces | StepByStep | Magpie


# ── sampling, and which answers are kept ─────────────────────────────────────────────────────────


class DataSampling(Closed, frozen=True):
    """The sampling of the teacher's answers.

    Truncation is allowed here, because only the text is learned and not the teacher's distribution.
    """

    temperature: NotNegative = 1.0
    """0 takes the likeliest token."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Whole = 0
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    max_new_tokens: Count = 512
    slots: Count = 32
    """Sequences that a local teacher decodes at once."""


class Reasoning(Closed, frozen=True):
    """The marks around the reasoning in an answer, for teachers that write it into their text."""

    begin: Text = "<think>"
    end: Text = "</think>"


class Limits(Closed, frozen=True):
    """Bounds on the length of a final answer, or of a sampled instruction."""

    shortest_characters: Count = 1
    longest_characters: Count = 65536


class EveryRow(Closed, frozen=True, tag_field="name", tag="none"):
    """Keeps every row, repeated ones too."""


class Exact(Closed, frozen=True, tag_field="name", tag="exact"):
    """Drops rows whose prompt and response both equal those of an earlier row."""


class Near(Closed, frozen=True, tag_field="name", tag="near"):
    """Drops equal rows and nearly equal ones, by the Jaccard similarity of their shingles (MinHash)."""

    threshold: Annotated[float, Meta(gt=0, le=1)] = 0.8
    unit: Literal["word", "char"] = "word"
    shingle: Count = 3
    hashes: Count = 128


class SftRows(Closed, frozen=True, tag_field="name", tag="sft"):
    """Rows of {prompt, response}, as configs/sft.toml reads them."""

    column: Literal["prompt", "messages"] = "prompt"
    """The form of a prompt: "prompt" writes a text if there is only a user's message; "messages" always
    writes a list."""


class PreferenceRows(Closed, frozen=True, tag_field="name", tag="preference"):
    """Rows of {prompt, chosen, rejected}: a prompt's best answer and its worst."""

    pairs: Count = 1
    """Most pairs of each prompt; the second pair is the second best answer and the second worst."""
    margin: NotNegative = 0.0
    """The reward of the chosen answer is higher than that of the rejected one by more than this."""


class DataSettings(Closed, frozen=True, kw_only=True):
    """A data recipe."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    exact: bool = False
    """Makes a local teacher compute bit for bit the same on each machine of a kind; slow."""
    teacher: Teacher
    method: Method
    task: Task | None = None
    """The task that gives the training prompts and the verifier; its held-out rows are not used."""
    sampling: DataSampling = DataSampling()
    reasoning: Reasoning = Reasoning()
    limits: Limits = Limits()
    dedup: EveryRow | Exact | Near = Exact()
    output: SftRows | PreferenceRows = SftRows()
    max_failures: Count = 20
    """Failures of the teacher in a row after which the command stops and names the first."""
    verifier: Verifier = Verifier()
