"""Settings of a run apart from its algorithm: model, task, sampling, evaluation, processes, limits."""

from typing import Annotated, Literal

from msgspec import Meta

from configs.fields import (
    Closed,
    Count,
    Fraction,
    NotNegative,
    Port,
    Positive,
    Seconds,
    Text,
    up_to,
)
from configs.model import Model
from configs.tasks import Task


class Sampling(Closed, frozen=True):
    """The sampling of trajectories to learn from, which is always from the whole distribution.

    Truncated sampling (top-p, top-k, min-p) is an evaluation setting only: the learner would need
    the kept set of every token to know the probability of what was sampled.
    """

    temperature: Positive = 1.0
    max_new_tokens: Annotated[int, up_to(2**20)] = 64
    slots: Annotated[int, up_to(4096)] = 64
    """Sequences decoded at once."""


class Optimizer(Closed, frozen=True, tag_field="name", tag="adamw"):
    """AdamW (Loshchilov & Hutter 2019) with bias correction."""

    learning_rate: Positive = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, up_to(10**7, 0)] = 0
    final_share: Fraction = 0.0
    """The learning rate at the end of the schedule, as a share of `learning_rate`."""
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    """Global norm to which gradients are scaled down; 0 for no limit."""


class Eval(Closed, frozen=True):
    """Held-out evaluation: before step 1, after every `every_steps` steps, and of the last weights."""

    every_steps: Annotated[int, up_to(10**7, 0)] = 0
    """0: only the base and the end."""
    prompts: Annotated[int, up_to(10**6, 0)] = 128
    """Held-out prompts; 0 for no evaluation."""
    samples: Annotated[int, up_to(1024)] = 1
    """Answers to each prompt; pass@1 is their mean."""
    temperature: NotNegative = 0.0
    """0 takes the likeliest token."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, up_to(2**20, 0)] = 0
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    max_new_tokens: Annotated[int, up_to(2**20, 0)] = 0
    """0: as in training."""
    sampled: bool = False
    """Evaluates at temperature 1 as well, as a metric of its own. Evolution strategies change the likeliest
    answer and hardly the others, which one number alone does not show."""


class Checkpoint(Closed, frozen=True):
    """The times at which checkpoints are saved, and the choice of those that stay."""

    every_steps: Annotated[int, up_to(10**7)] = 1
    keep: Annotated[int, up_to(10**7)] = 2
    """Number of the newest checkpoints that stay; the best by evaluation and the last stay as well."""
    keep_every: Annotated[int, up_to(10**7, 0)] = 0
    """The checkpoints of every k-th step are never deleted; 0: none."""


class Actors(Closed, frozen=True):
    """Number of processes of each role."""

    samplers: Annotated[int, up_to(64)] = 1
    verifiers: Annotated[int, up_to(64)] = 1
    micro_batch_tokens: Count = 16384
    """Padded tokens of one forward and backward pass: changes memory, not the result."""
    restarts: Annotated[int, up_to(1000, 0)] = 3
    """How often an actor may die before the run stops, counted between steps that succeed."""


class Verifier(Closed, frozen=True):
    """Limits of the scoring of answers."""

    timeout_s: Seconds = 10.0
    """Time limit of one call of a user's reward function; past it the function's process is killed."""
    max_failures: Annotated[int, up_to(10**6)] = 20
    """Failures in a row after which the run stops and names the first."""


class Deadlines(Closed, frozen=True):
    """Seconds that the conductor waits for an actor's reply before it treats the actor as stuck."""

    start_s: Seconds = 180.0
    generate_s: Seconds = 1800.0
    score_s: Seconds = 900.0
    learn_s: Seconds = 1800.0


class Power(Closed, frozen=True):
    """Limits of a run's times and load, on a machine that its owner uses for other work too."""

    on_battery: Literal["run", "pause"] = "run"
    on_thermal_pressure: Literal["run", "pause"] = "run"
    """What the run does at thermal pressure of the level "serious" or above."""
    hours: list[Text] = []
    """Times of day when the run may work, such as ["22:00-07:00"], in local time; empty: always."""
    duty_cycle: Annotated[float, Meta(ge=0.05, le=1)] = 1.0
    """Share of the time that the GPU works: the throttle sleeps between tokens and micro-batches."""
    keep_awake: bool = True
    """Keeps macOS from idle sleep while the run goes on."""


class Mismatch(Closed, frozen=True):
    """How far sampler and learner may be apart at the sampled tokens, in nats on average.

    Judged at the tokens that the learner's own weights sampled, before a step's first update: staleness has
    no part in it there, and only kernels, precision or padding differ.
    """

    warn_nats: NotNegative = 0.01
    """From here on the run's status warns."""
    fail_nats: Positive = 0.1
    """From here on the run fails, and the weights before the step are kept."""


class Dashboard(Closed, frozen=True):
    """Ray's dashboard, on the loopback address behind a token."""

    enabled: bool = True
    port: Port = 0
    """0 takes a free one."""


class RunSettings(Closed, frozen=True, kw_only=True):
    """All settings of a run but its algorithm's; an algorithm reads them when it checks its own."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    exact: bool = False
    """Exact mode: stock BLAS on Linux, bit-reproducible, independent of the batch; slow there."""
    model: Model = Model()
    task: Task
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    actors: Actors = Actors()
    verifier: Verifier = Verifier()
    deadlines: Deadlines = Deadlines()
    power: Power = Power()
    mismatch: Mismatch = Mismatch()
    dashboard: Dashboard = Dashboard()
