"""Every setting of a run: a closed schema. A key that is not here is an error, not a wish.

A tagged union picks the algorithm, the task, the surrogate and the correction, so that a setting
which would have no effect cannot be written down. Defaults are the tested ones; a recipe holds only
what differs. Nothing here imports MLX or Ray: a bad recipe fails in a fraction of a second.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Count = Annotated[int, Meta(ge=1)]
Whole = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Closed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all settings share: frozen, named, closed."""


# ── the model ────────────────────────────────────────────────────────────────────────────────────


class Full(Closed, frozen=True, tag_field="name", tag="full"):
    """Train every weight."""


class Lora(Closed, frozen=True, tag_field="name", tag="lora"):
    """Low-rank adapters beside frozen weights; on a quantised base this is QLoRA."""

    rank: Count = 8
    scale: Positive = 10.0
    """mlx-lm's factor on the adapter's output (not α: no division by the rank)."""
    layers: Annotated[int, Meta(ge=-1)] = -1
    """How many of the last blocks get adapters; -1 for all of them."""
    modules: list[Text] = []
    """Module names in a block, such as "self_attn.q_proj"; empty for every linear one."""


class Model(Closed, frozen=True):
    """The policy's checkpoint and which of its weights are trained."""

    path: Text = "seedling"
    """A folder in the Hugging Face layout, a hub id, or "seedling" for the one Pippin makes."""
    train: Full | Lora = Full()
    quantize_bits: Literal[0, 4, 8] = 0
    """Quantise the base when it is loaded; 0 leaves it as it is. Needs LoRA."""
    dtype: Literal["checkpoint", "float32", "float16", "bfloat16"] = "checkpoint"
    chat_template: dict[str, bool | int | float | str] = {}
    """Arguments of the chat template, such as { enable_thinking = false }."""
    system: str = ""
    """A system message before each prompt; empty for none."""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass: half the memory, about 1.9 times the time."""


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


class Addition(Closed, frozen=True, tag_field="name", tag="addition"):
    """``a+b=`` with numbers of up to `digits` digits."""

    digits: Annotated[int, Meta(ge=1, le=18)] = 2


class Sorting(Closed, frozen=True, tag_field="name", tag="sorting"):
    """Digits to be written in ascending order."""

    length: Annotated[int, Meta(ge=2, le=64)] = 6


class Countdown(Closed, frozen=True, tag_field="name", tag="countdown"):
    """Reach a target with given numbers and + - *: many right answers, so a verifier decides."""

    numbers: Annotated[int, Meta(ge=2, le=6)] = 3
    largest: Annotated[int, Meta(ge=2, le=1000)] = 9


class Chain(Closed, frozen=True, tag_field="name", tag="chain"):
    """A chain of additions modulo `modulus`, with the partial results as a scratchpad."""

    terms: Annotated[int, Meta(ge=2, le=64)] = 4
    modulus: Annotated[int, Meta(ge=2, le=100)] = 10


class Gsm8k(Closed, frozen=True, tag_field="name", tag="gsm8k"):
    """Grade-school mathematics from local JSONL files with `question` and `answer`."""

    train: Text
    eval: Text
    instruction: str = "Solve the problem step by step. End with the line: #### <answer>"


class Jsonl(Closed, frozen=True, tag_field="name", tag="jsonl"):
    """The user's own: prompts in JSONL, scored by a Python function or only imitated (SFT)."""

    train: Text
    eval: str = ""
    """Held-out prompts; empty: the last `eval_share` of the training file, never trained on."""
    eval_share: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    prompt: Text = "prompt"
    """Column with the prompt: a string, or a list of {role, content}."""
    response: str = ""
    """Column with the answer to imitate (needed by SFT)."""
    teacher: str = ""
    """Column with the name of the row's teacher, of `algorithm.teachers` (distillation)."""
    reward: str = ""
    """A Python file that defines ``reward(prompt, completion, row) -> float`` (needed by RL)."""
    pass_at: float = 1.0
    """The reward from which an answer counts as passed."""


Task = Addition | Sorting | Countdown | Chain | Gsm8k | Jsonl


# ── the GRPO family ──────────────────────────────────────────────────────────────────────────────


class Clip(Closed, frozen=True, tag_field="name", tag="clip"):
    """PPO's clipped surrogate (Schulman 2017), DAPO's two bounds (Yu 2025), dual clip (Ye 2020)."""

    low: Annotated[float, Meta(gt=0, le=1)] = 0.2
    high: Positive = 0.28
    dual: Annotated[float, Meta(ge=0)] = 3.0
    """Bound of the loss where the advantage is negative, as a ratio above 1; 0 for none."""


class Cispo(Closed, frozen=True, tag_field="name", tag="cispo"):
    """−sg(min(ratio, max_ratio))·A·log π (MiniMax-M1, 2506.13585): no token loses its gradient."""

    max_ratio: Positive = 5.0
    """Absolute cap of the ratio; there is no lower bound."""


class Gspo(Closed, frozen=True, tag_field="name", tag="gspo"):
    """Sequence-level ratio, the geometric mean of the tokens', and clip (2507.18071)."""

    low: Positive = 3e-4
    high: Positive = 4e-4


class DppoTv(Closed, frozen=True, tag_field="name", tag="dppo_tv"):
    """−sg(min(ratio, cap))·A·log π where the probability has not moved by delta (2602.04879)."""

    delta: Annotated[float, Meta(gt=0, le=1)] = 0.2
    max_ratio: Positive = 20.0


class Reinforce(Closed, frozen=True, tag_field="name", tag="reinforce"):
    """−A·log π (Williams 1992)."""


class Bypass(Closed, frozen=True, tag_field="name", tag="bypass"):
    """The ratio is taken straight to what really sampled: it is the correction."""


class Truncate(Closed, frozen=True, tag_field="name", tag="truncate"):
    """Decoupled: π_old is computed anew, and each token weighs min(π_old/μ, cap)."""

    cap: Annotated[float, Meta(ge=1)] = 2.0


class Mask(Closed, frozen=True, tag_field="name", tag="mask"):
    """Decoupled: a token weighs π_old/μ, or nothing outside [low, high]."""

    low: Annotated[float, Meta(gt=0, le=1)] = 0.5
    high: Annotated[float, Meta(ge=1)] = 2.0


class Kl(Closed, frozen=True):
    """Reverse KL to the reference policy, the model before training.

    It acts on the trajectories that are trained on: with drop_zero_variance = false, on all.
    """

    coefficient: NotNegative = 0.0
    """0 switches it off."""
    placement: Literal["loss_k2", "reward_k1"] = "loss_k2"
    """Half the squared log-ratio in the loss, or the log-ratio taken off the reward: reverse KL."""


class Overlong(Closed, frozen=True):
    """What happens to answers that approach or reach the length limit (DAPO)."""

    penalty_tokens: Whole = 0
    """Length of the zone before the limit in which the penalty grows from 0 to `penalty`."""
    penalty: NotNegative = 1.0
    mask_truncated: bool = False
    """Truncated answers give no gradient; their reward still counts in the group's mean."""


class Grpo(Closed, frozen=True, tag_field="name", tag="grpo"):
    """Group-relative policy optimisation and its family; presets are recipes."""

    steps: Count = 100
    prompts_per_step: Count = 16
    group_size: Annotated[int, Meta(ge=2)] = 8
    """Samples of each prompt."""
    updates_per_step: Count = 1
    """Optimiser steps on each batch of trajectories, each over a share of the groups."""
    advantage: Literal["group_mean", "group_std", "rloo", "batch_std"] = "group_mean"
    surrogate: Clip | Cispo | Gspo | DppoTv | Reinforce = Clip()
    correction: Bypass | Truncate | Mask = Bypass()
    normalizer: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """Sum over tokens divided by: all tokens of the step; each sequence's own, then the sequences;
    sequences × max_new_tokens (Dr. GRPO)."""
    kl: Kl = Kl()
    overlong: Overlong = Overlong()
    entropy_bonus: NotNegative = 0.0
    drop_zero_variance: bool = True
    zero_variance_tolerance: NotNegative = 1e-4
    """A group whose rewards differ by less tells nothing apart from noise."""
    resample_rounds: Whole = 0
    """Dynamic sampling (DAPO): how often dropped groups are replaced by new prompts; 0: never."""
    max_lag: Whole = 0
    """Weights versions by which sampling may be behind: 0 waits for each step, 1 overlaps one."""


class Sft(Closed, frozen=True, tag_field="name", tag="sft"):
    """Supervised fine-tuning: cross-entropy on the answers, averaged over the step's tokens."""

    steps: Count = 100
    rows_per_step: Count = 32


# ── evolution strategies ─────────────────────────────────────────────────────────────────────────


class LowRank(Closed, frozen=True, tag_field="name", tag="low_rank"):
    """E = A·Bᵀ/√rank for each matrix (EGGROLL, 2511.16652): a population decodes in one batch.

    Norms and biases, which have no low rank, are held still.
    """

    rank: Count = 1


class FullRank(Closed, frozen=True, tag_field="name", tag="full_rank"):
    """Every element has noise of its own; members are evaluated one after another."""

    vectors: bool = True
    """Norms and biases too. In half precision they lose most of it."""


class PlainStep(Closed, frozen=True, tag_field="name", tag="plain"):
    """θ += alpha·mean(fitness·noise), with 1/σ absorbed in alpha (2509.24372)."""

    alpha: Positive = 5e-4


class AdamwStep(Closed, frozen=True, tag_field="name", tag="adamw"):
    """The same mean as a gradient, through AdamW with the settings of `optimizer`."""


class Free(Closed, frozen=True, tag_field="name", tag="none"):
    """Nothing holds the weights near the base."""


class AnchorL2(Closed, frozen=True, tag_field="name", tag="l2"):
    """θ = θ₀ + (1 − α·strength)·(θ − θ₀) after each step (2605.30148), against forgetting."""

    strength: Positive


class AnchorSoft(Closed, frozen=True, tag_field="name", tag="soft_threshold"):
    """θ − θ₀ is moved towards 0 by α·strength, and stops there (2605.30148)."""

    strength: Positive


class Es(Closed, frozen=True, tag_field="name", tag="es"):
    """Evolution strategies: perturbed weights are scored, and the noise is averaged by score."""

    steps: Count = 100
    """Generations."""
    population: Annotated[int, Meta(ge=2)] = 32
    """Members of a generation; an antithetic pair counts as two."""
    prompts_per_step: Count = 16
    """Prompts that each member answers, the same ones for all."""
    fresh_prompts: bool = True
    """New prompts for each generation; false: the first generation's for all."""
    fitness: Literal["reward", "log_likelihood"] = "reward"
    """The task's reward, or the log-likelihood of the data's answers."""
    temperature: NotNegative = 0.0
    """At which members answer; 0 takes the likeliest token."""
    sigma: Positive = 1e-3
    """Standard deviation of each weight's noise."""
    antithetic: bool = True
    """Members come in pairs with opposite noise."""
    perturbation: LowRank | FullRank = LowRank()
    noise: Literal["rademacher", "uniform", "normal"] = "rademacher"
    """±1, which makes the update exact on every machine; or uniform; or a sum of four bytes."""
    layers: Annotated[int, Meta(ge=-1)] = -1
    """How many of the last blocks are perturbed; -1: everything that is trained, embedding too."""
    modules: list[Text] = []
    """Module names in a block, such as "self_attn.q_proj"; empty for all."""
    shaping: Literal["z_score", "centered_ranks", "group_mean"] = "z_score"
    """Fitness in deviations from the mean; as ranks in ±½; or less each prompt's mean, over the
    deviation of all."""
    update: PlainStep | AdamwStep = PlainStep()
    anchor: Free | AnchorL2 | AnchorSoft = Free()


# ── distillation ─────────────────────────────────────────────────────────────────────────────────


class Forward(Closed, frozen=True, tag_field="name", tag="forward"):
    """KL(teacher‖student): covers all that the teacher would say."""


class Reverse(Closed, frozen=True, tag_field="name", tag="reverse"):
    """KL(student‖teacher): gives up what the student cannot do as well."""


class Jsd(Closed, frozen=True, tag_field="name", tag="jsd"):
    """GKD's generalised Jensen–Shannon divergence (2306.13649); it vanishes at both ends of beta."""

    beta: Annotated[float, Meta(ge=0.1, le=0.9)] = 0.5
    """The teacher's share of the mixture."""


class SkewedForward(Closed, frozen=True, tag_field="name", tag="skewed_forward"):
    """KL from the teacher to a mixture with the student (DistiLLM, 2402.03898)."""

    skew: Annotated[float, Meta(gt=0, lt=1)] = 0.1


class SkewedReverse(Closed, frozen=True, tag_field="name", tag="skewed_reverse"):
    """KL from the student to a mixture with the teacher (DistiLLM)."""

    skew: Annotated[float, Meta(gt=0, lt=1)] = 0.1


class TotalVariation(Closed, frozen=True, tag_field="name", tag="total_variation"):
    """Half the sum of the differences of the probabilities."""


Divergence = Forward | Reverse | Jsd | SkewedForward | SkewedReverse | TotalVariation


class LocalTeacher(Closed, frozen=True, tag_field="name", tag="local"):
    """A checkpoint on this machine, frozen."""

    path: Text
    """As `model.path`; "seedling-grown" is the seedling after a longer warm start."""
    quantize_bits: Literal[0, 4, 8] = 0
    """Quantise it when it is loaded; 0 leaves it as it is."""
    dtype: Literal["checkpoint", "float32", "float16", "bfloat16"] = "checkpoint"
    chat_template: dict[str, bool | int | float | str] = {}
    """Arguments of its chat template, where it answers prompts itself."""
    system: str = ""
    """A system message before each prompt that it answers itself; empty for none."""


class EndpointTeacher(Closed, frozen=True, tag_field="name", tag="endpoint"):
    """An OpenAI-compatible endpoint: text only."""

    url: Text
    """Up to and including the version: "http://127.0.0.1:8080/v1"."""
    model: Text
    key_variable: str = ""
    """Name of the environment variable with the key; empty: none is sent."""
    concurrency: Count = 4
    """Requests under way at once."""
    attempts: Count = 5
    timeout_s: Seconds = 300.0
    """Of one attempt."""
    system: str = ""
    """A system message before each prompt; empty for none."""


Teacher = LocalTeacher | EndpointTeacher


class FromStudent(Closed, frozen=True, tag_field="name", tag="student"):
    """On-policy: the student answers, the teacher says what it would have said (2306.13649)."""

    group_size: Count = 1
    """Answers to each prompt."""
    reward: NotNegative = 0.0
    """Coefficient of the task's reward, less the group's mean, beside the teacher: RL with a
    teacher's KL. At 0 no reward is asked for."""
    divergence: Divergence = Reverse()


class FromData(Closed, frozen=True, tag_field="name", tag="data"):
    """Offline soft targets: (1 − alpha) cross-entropy + alpha divergence on the task's answers."""

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    divergence: Divergence = Forward()


class FromTeacher(Closed, frozen=True, tag_field="name", tag="teacher"):
    """Sequence-level (1606.07947): the teacher answers the prompts, once each, and is imitated."""

    alpha: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Share of the divergence beside the cross-entropy."""
    divergence: Divergence = Forward()


class Mixed(Closed, frozen=True, tag_field="name", tag="mixed"):
    """GKD: of each prompt the student's answer with this probability, else the data's."""

    student_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    alpha: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of the divergence on the data's answers; the rest is cross-entropy."""
    divergence: Divergence = Jsd()


class WholeDistribution(Closed, frozen=True, tag_field="name", tag="full"):
    """The teacher's whole distribution: it is hosted in the learner's process."""

    temperature: Positive = 1.0
    """Divides the logits of both; the gradient's scale stays."""


class TopK(Closed, frozen=True, tag_field="name", tag="top_k"):
    """Its k likeliest tokens, and the rest as one bucket."""

    k: Count = 64
    temperature: Positive = 1.0


class SampledToken(Closed, frozen=True, tag_field="name", tag="sampled"):
    """Its log-probability of what the student sampled, as an advantage: reverse KL."""

    credit: Literal["token", "reward_to_go"] = "token"
    """Each token's own, or the mean of it and all later ones (MiniLLM, 2306.08543)."""
    whiten: bool = False
    """Less the mean and over the deviation of the step's tokens (MiniLLM)."""


class TextOnly(Closed, frozen=True, tag_field="name", tag="text"):
    """Only what it wrote: cross-entropy. Any tokenizer will do, and any endpoint."""


class Distill(Closed, frozen=True, kw_only=True, tag_field="name", tag="distill"):
    """Distillation: a frozen teacher says of each token how likely it would have been."""

    steps: Count = 100
    prompts_per_step: Count = 32
    learn_from: FromStudent | FromData | FromTeacher | Mixed = FromStudent()
    signal: WholeDistribution | TopK | SampledToken | TextOnly = WholeDistribution()
    teachers: dict[str, Teacher]
    """By name; with several, `task.teacher` says whose a row is."""
    cache_gb: NotNegative = 4.0
    """Bound of the teacher cache, which all runs on this machine share; 0 for none."""


Algorithm = Grpo | Sft | Es | Distill


# ── the rest ─────────────────────────────────────────────────────────────────────────────────────


class Sampling(Closed, frozen=True):
    """How trajectories to learn from are sampled: from the whole distribution, by design.

    Truncated sampling (top-p, top-k, min-p) is an evaluation setting only: the learner would need
    the kept set of every token to know the probability of what was sampled.
    """

    temperature: Positive = 1.0
    max_new_tokens: Count = 64
    slots: Count = 64
    """Sequences decoded at once."""


class Optimizer(Closed, frozen=True):
    """AdamW (Loshchilov & Hutter 2019) with bias correction."""

    learning_rate: Positive = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Whole = 0
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

    every_steps: Whole = 0
    """0: only the base and the end."""
    prompts: Whole = 128
    """Held-out prompts; 0 for no evaluation."""
    samples: Count = 1
    """Answers to each prompt; pass@1 is their mean."""
    temperature: NotNegative = 0.0
    """0 takes the likeliest token."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Whole = 0
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    max_new_tokens: Whole = 0
    """0: as in training."""
    sampled: bool = False
    """Evaluate at temperature 1 as well, as a metric of its own. Evolution strategies move the likeliest
    answer and hardly the others: with one number alone that is not seen."""


class Checkpoint(Closed, frozen=True):
    """Saved aside, verified, published by one rename."""

    every_steps: Count = 1
    keep: Count = 2
    """The newest that stay; the best by evaluation and the last stay as well."""
    keep_every: Whole = 0
    """Every k-th step's checkpoint stays for good; 0: none."""


class Actors(Closed, frozen=True):
    """How many processes play each role."""

    samplers: Count = 1
    verifiers: Count = 1
    micro_batch_tokens: Count = 16384
    """Padded tokens of one forward and backward pass: changes memory, not the result."""
    restarts: Whole = 3
    """How often a part may die before the run stops, counted between steps that worked."""


class Verifier(Closed, frozen=True):
    """Scoring of answers."""

    timeout_s: Seconds = 10.0
    """Time limit of one call of a user's reward function; its process is killed."""
    max_failures: Count = 20
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


class Dashboard(Closed, frozen=True):
    """Ray's dashboard, on the loopback address behind a token."""

    enabled: bool = True
    port: Port = 0
    """0 takes a free one."""


class Settings(Closed, frozen=True, kw_only=True):
    """A run."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    exact: bool = False
    """Exact mode: stock BLAS on Linux, bit-reproducible, independent of the batch; slow there."""
    model: Model = Model()
    task: Task
    algorithm: Algorithm
    sampling: Sampling = Sampling()
    optimizer: Optimizer = Optimizer()
    eval: Eval = Eval()
    checkpoint: Checkpoint = Checkpoint()
    actors: Actors = Actors()
    verifier: Verifier = Verifier()
    deadlines: Deadlines = Deadlines()
    power: Power = Power()
    dashboard: Dashboard = Dashboard()
