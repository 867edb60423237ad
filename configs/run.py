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
    Temperature,
    Text,
    up_to,
)
from configs.model import Model
from configs.tasks import Task


class Sampling(Closed, frozen=True):
    """How trajectories to learn from are sampled: from the whole distribution, by design.

    Truncated sampling (top-p, top-k, min-p) is an evaluation setting only: the learner would need
    the kept set of every token to know the probability of what was sampled.
    """

    temperature: Temperature = 1.0
    max_new_tokens: Annotated[int, up_to(2**20)] = 64
    slots: Annotated[int, up_to(4096)] = 64
    """Sequences decoded at once."""


class Optimizer(Closed, frozen=True, tag_field="name", tag="adamw"):
    """AdamW (Loshchilov & Hutter 2019) with bias correction."""

    learning_rate: Positive = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, up_to(10**7, 0)] = 0
    final_share: Fraction = 0.0
    """Where the schedule ends, as a share of the learning rate."""
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    """Global norm to which gradients are scaled down; 0 for no limit."""


class Eval(Closed, frozen=True):
    """Held-out evaluation: the base before step 1, every `every_steps`, and the last weights."""

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
    """Evaluate at temperature 1 as well, as a metric of its own. Evolution strategies move the likeliest
    answer and hardly the others: with one number alone that is not seen."""


class Checkpoint(Closed, frozen=True):
    """Saved aside, verified, published by one rename."""

    every_steps: Annotated[int, up_to(10**7)] = 1
    keep: Annotated[int, up_to(10**7)] = 2
    """The newest that stay; the best by evaluation and the last stay as well."""
    keep_every: Annotated[int, up_to(10**7, 0)] = 0
    """Every k-th step's checkpoint stays for good; 0: none."""


class Actors(Closed, frozen=True):
    """How many processes play each role."""

    samplers: Annotated[int, up_to(64)] = 1
    verifiers: Annotated[int, up_to(64)] = 1
    micro_batch_tokens: Count = 16384
    """Padded tokens of one forward and backward pass: changes memory, not the result."""
    restarts: Annotated[int, up_to(1000, 0)] = 3
    """How often a part may die before the run stops, counted between steps that worked."""


class Verifier(Closed, frozen=True):
    """Scoring of answers."""

    timeout_s: Seconds = 10.0
    """Time limit of one call of a user's reward function; its process is killed."""
    max_failures: Annotated[int, up_to(10**6)] = 20
    """Failures in a row after which the run stops and names the first."""


class Deadlines(Closed, frozen=True):
    """How long the conductor waits for each part before it calls it stuck, in seconds."""

    start_s: Seconds = 180.0
    generate_s: Seconds = 1800.0
    score_s: Seconds = 900.0
    learn_s: Seconds = 1800.0


class Power(Closed, frozen=True):
    """When and how hard a run works on a machine that its owner also carries around and uses."""

    on_battery: Literal["run", "pause"] = "run"
    on_thermal_pressure: Literal["run", "pause"] = "run"
    """From the level "serious" on."""
    hours: list[Text] = []
    """When it may work, such as ["22:00-07:00"], in local time; empty: always."""
    duty_cycle: Annotated[float, Meta(ge=0.05, le=1)] = 1.0
    """Share of the time that the GPU works: the actors rest between tokens and micro-batches."""
    keep_awake: bool = True
    """On macOS: the machine does not go to sleep by idling while the run goes on."""


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
    """Everything of a run but its algorithm: what an algorithm may ask about when it checks itself."""

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
