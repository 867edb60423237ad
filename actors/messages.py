"""What the actors say to each other. Payloads (trajectory batches) travel beside them as Arrow.

Defined in a module of their own: a record that is defined in a script arrives broken.
"""

from msgspec import Struct, field

from runtime.ledger import Ledger
from runtime.settlement import Row, Settled
from runtime.tasks.prompt import Prompt
from runtime.versions import WeightsVersion


class Hello(Struct, frozen=True, kw_only=True):
    """An actor has started."""

    pid: int
    backend: str
    """What MLX computes with: "metal", "openblas", "reference"; "" for actors without arrays."""
    seconds: float


class Members(Struct, frozen=True, kw_only=True):
    """A share of a generation of evolution strategies: members `first` to `first + count`."""

    first: int
    count: int


class Generate(Struct, frozen=True, kw_only=True):
    """Sample `group_size` answers to each prompt."""

    step: int
    purpose: str
    """"sample" or "eval": part of the random keys."""
    prompts: list[Prompt]
    group_size: int
    weights: WeightsVersion
    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    members: Members | None = None
    """Each of them answers each prompt once: a row's sample is its member's number."""
    likelihood: bool = False
    """Nothing is sampled: members score the data's answers by their log-likelihood."""


class Generated(Struct, frozen=True, kw_only=True):
    """What a sampler did: the small half of its answer, beside the batch."""

    rows: int
    interrupted: bool
    """Somebody asked to pause: some rows can be continued, others were not begun and are left out."""
    sampled_tokens: int
    prefilled_tokens: int
    seconds: float
    waited_s: float
    """For the GPU."""
    loaded_s: float
    """Reading weights."""
    memory_bytes: int


class TeacherRequest(Struct, frozen=True, kw_only=True):
    """Have a teacher answer each prompt, once."""

    step: int
    prompts: list[Prompt]
    temperature: float
    max_new_tokens: int


class TeacherReport(Struct, frozen=True, kw_only=True):
    """What a teacher did: the small half of its answer, beside the batch."""

    dropped: list[str | None]
    """Why a row of the batch is not trained on, in its order."""
    interrupted: bool
    """Somebody asked to pause: rows are missing, or have nothing said about them."""
    first_failure: str = ""
    """A sentence about the first row that is dropped."""
    tokens: int = 0
    """Scored or sampled now, not known from before."""
    cached_rows: int = 0
    asked_rows: int = 0
    one_token_answers: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0
    """For the GPU."""
    memory_bytes: int = 0


class Judged(Struct, frozen=True, kw_only=True):
    """What a verifier knows of each row of a batch, in its order."""

    rows: list[Row]
    seconds: float


class Learn(Struct, frozen=True, kw_only=True):
    """One optimiser step (or a few) on a step's batches, with the decisions about each batch's rows."""

    step: int
    settled: list[list[Settled]]
    """What becomes of each row, by batch."""
    state: "RunState"
    """What a checkpoint of this step must know of the run."""
    checkpoint: bool
    keep: list[int]
    """Steps whose checkpoints stay besides the newest."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of collecting the step: kept in the checkpoint beside the learner's own."""


class Unfinished(Struct, frozen=True, kw_only=True):
    """Answers of a step or an evaluation that is not done, kept as sampled."""

    purpose: str
    step: int
    batches: int = 0
    """How many of the batches beside this message are of it."""


class Save(Struct, frozen=True, kw_only=True):
    """Checkpoint the present step, with what is under way behind it."""

    state: "RunState"
    keep: list[int]
    metrics: dict[str, float]
    unfinished: list[Unfinished]
    """In the order of the batches beside it."""


class RunState(Struct, frozen=True, kw_only=True):
    """Where a run stands behind a step: what the conductor needs to go on."""

    step: int = 0
    cursor: int = 0
    """Prompts pulled from the task's stream."""
    ledger: Ledger = field(default_factory=Ledger)
    seconds: float = 0.0


class Learned(Struct, frozen=True, kw_only=True):
    """What one step did."""

    weights: WeightsVersion
    metrics: dict[str, float]
    trajectories_digest: str
    optimizer_digest: str = ""
    """Known when a checkpoint was written."""


class Restored(Struct, frozen=True, kw_only=True):
    """Where the learner stands after loading the newest good checkpoint, or the base."""

    state: RunState
    weights: WeightsVersion
    versions: list[WeightsVersion]
    """All that can still be sampled with."""
    optimizer_digest: str
    trajectories_digest: str
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the checkpoint's step, should its line have been lost."""
    unfinished: list[Unfinished] = field(default_factory=list)
    """What a pause interrupted: `Learner.earlier` gives the rows."""
    note: str = ""
    """A checkpoint that was damaged and passed over, by name."""
