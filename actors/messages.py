"""The messages between the actors. Payloads (trajectory batches) travel beside them as Arrow.

The records are defined in a module of their own: a record that is defined in a script arrives broken.
"""

from msgspec import Struct, field

from runtime.ledger import Ledger
from runtime.settlement import Row, Settled
from runtime.tasks.prompt import Prompt
from runtime.versions import WeightsVersion


class Hello(Struct, frozen=True, kw_only=True):
    """Says that an actor has started."""

    pid: int
    backend: str
    """The backend that MLX computes with: "metal", "openblas", "reference"; "" for actors without
    arrays.
    """
    seconds: float


class Members(Struct, frozen=True, kw_only=True):
    """Names a share of a generation of evolution strategies: members `first` to `first + count`."""

    first: int
    count: int


class Generate(Struct, frozen=True, kw_only=True):
    """Asks a sampler for `group_size` answers to each prompt."""

    step: int
    purpose: str
    """"sample" or "eval"; it goes into the random keys."""
    prompts: list[Prompt]
    group_size: int
    weights: WeightsVersion
    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    members: Members | None = None
    """The members, each of which answers each prompt once: a row's sample is its member's number."""
    likelihood: bool = False
    """True if nothing is sampled: members score the data's answers by their log-likelihood."""


class Generated(Struct, frozen=True, kw_only=True):
    """Reports what a sampler did: the small half of its answer, beside the batch."""

    rows: int
    interrupted: bool
    """True if a pause was asked for: some rows can be continued, others were not begun and are left
    out.
    """
    sampled_tokens: int
    prefilled_tokens: int
    seconds: float
    waited_s: float
    """Seconds of waiting for the GPU."""
    loaded_s: float
    """Seconds of reading weights."""
    memory_bytes: int


class TeacherRequest(Struct, frozen=True, kw_only=True):
    """Asks a teacher to answer each prompt, once."""

    step: int
    prompts: list[Prompt]
    temperature: float
    max_new_tokens: int


class TeacherReport(Struct, frozen=True, kw_only=True):
    """Reports what a teacher did: the small half of its answer, beside the batch."""

    dropped: list[str | None]
    """The reason why a row of the batch is not trained on, in the batch's order."""
    interrupted: bool
    """True if a pause was asked for: rows are missing, or have no teacher outputs."""
    first_failure: str = ""
    """A sentence about the first row that is dropped."""
    tokens: int = 0
    """Tokens that were scored or sampled in this call, not known from before."""
    cached_rows: int = 0
    asked_rows: int = 0
    one_token_answers: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    """Seconds of waiting for the GPU."""
    memory_bytes: int = 0


class Judged(Struct, frozen=True, kw_only=True):
    """Reports what a verifier knows of each row of a batch, in its order."""

    rows: list[Row]
    seconds: float


class Learn(Struct, frozen=True, kw_only=True):
    """Asks for one optimiser step (or a few) on a step's batches, with the decisions about each batch's
    rows.
    """

    step: int
    settled: list[list[Settled]]
    """The decision about each row, by batch."""
    state: "RunState"
    """The state of the run that a checkpoint of this step must hold."""
    checkpoint: bool
    keep: list[int]
    """Steps whose checkpoints stay besides the newest."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of collecting the step: kept in the checkpoint beside the learner's own."""


class Unfinished(Struct, frozen=True, kw_only=True):
    """Names answers of a step or an evaluation that is not done, kept as sampled."""

    purpose: str
    step: int
    batches: int = 0
    """The number of the batches beside this message that belong to this work."""


class Save(Struct, frozen=True, kw_only=True):
    """Asks for a checkpoint of the present step, with the unfinished answers of later work."""

    state: "RunState"
    keep: list[int]
    metrics: dict[str, float]
    unfinished: list[Unfinished]
    """The unfinished work, in the order of the batches beside it."""


class RunState(Struct, frozen=True, kw_only=True):
    """Holds where a run stands after a step: what the conductor needs to go on."""

    step: int = 0
    cursor: int = 0
    """The number of prompts pulled from the task's stream."""
    ledger: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0


class Learned(Struct, frozen=True, kw_only=True):
    """Reports what one step did."""

    weights: WeightsVersion
    metrics: dict[str, float]
    trajectories_digest: str
    optimizer_digest: str = ""
    """The optimiser's digest; known when a checkpoint was written."""


class Restored(Struct, frozen=True, kw_only=True):
    """Reports where the learner stands after loading the newest good checkpoint, or the base."""

    state: RunState
    weights: WeightsVersion
    versions: list[WeightsVersion]
    """All versions that can still be sampled with."""
    optimizer_digest: str
    trajectories_digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the checkpoint's step, in case its line is lost."""
    unfinished: list[Unfinished] = field(default_factory=list)
    """The work that a pause interrupted: `Learner.earlier` gives its rows."""
    note: str = ""
    """A checkpoint that was damaged and passed over, by name."""
