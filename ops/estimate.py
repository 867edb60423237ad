"""Estimates from above how much memory a run will take, from its settings and a checkpoint's headers.

What stays (weights of every role, what the learner keeps of its optimiser) adds up; what comes and
goes (key-value memory, activations) does not, because one process computes on the GPU at a time. So
the peak is the sum of the first and the largest phase of the second. Pure functions, in bytes.

The activations' formula was fitted to Qwen3 networks in MLX 0.32.4 on a CPU (peak memory of one
forward and backward pass, seven shapes) and lies 0 to 15 % above them; elsewhere it is a guess of
the same kind, and fused attention needs less.
"""

from collections.abc import Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from configs.schema import Settings
from configs.tasks import judges
from configs.teachers import LocalTeacher
from ops.network import QUANTIZATION_GROUP, Network
from policies.adapters.registry import adapter_for
from policies.optimizers.registry import OPTIMIZERS

GIB = 1024**3
FLOAT32 = 4
LOGITS_CHUNK_TOKENS = 512
"""`kernels.logprobs` makes the logits of so many tokens at a time."""
LOGITS_COPIES = 3
"""The logits of a chunk, their softmax and their gradient."""
KV_SLACK = 1.5
"""The factor by which key-value memory grows ahead of need and is moved by copying."""
DIVERGENCE_CHUNK_TOKENS = 128
DIVERGENCE_COPIES = 20
"""Copies of a chunk's logits in a divergence's forward and backward pass (`kernels.teacher`)."""
PROCESS_BYTES = 300 * 1024**2
"""Python, MLX and transformers before any weights: an allowance for each actor."""
RAY_BYTES = GIB
"""Ray's own processes and its store: an allowance."""
FITS, TIGHT = 0.60, 0.80
"""Shares of the machine's memory: a Mac lets its GPU have about two thirds to three quarters."""

PROMPT_TOKENS = {"gsm8k": 256, "jsonl": 512}
"""Assumed length of a prompt where data decides it; procedural tasks have short ones."""
PROCEDURAL_PROMPT_TOKENS = 64


class Item(Struct, frozen=True):
    """Holds one line of the estimate."""

    phase: str
    """"always", or the phase in which the item is there."""
    what: str
    size_bytes: int


class Estimate(Struct, frozen=True):
    """Holds the memory of a run at its peak, on a machine."""

    items: tuple[Item, ...]
    memory_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Returns the sum of what stays, and of the largest phase of what comes and goes."""
        phases = {item.phase for item in self.items} - {"always"}
        return self._sum("always") + max((self._sum(phase) for phase in phases), default=0)

    @property
    def verdict(self) -> str:
        """Returns "fits", "tight" or "does not fit"."""
        share = self.peak_bytes / self.memory_bytes
        return "fits" if share <= FITS else "tight" if share <= TIGHT else "does not fit"

    def _sum(self, phase: str) -> int:
        return sum(item.size_bytes for item in self.items if item.phase == phase)


def estimate(
    settings: Settings,
    network: Network,
    memory_bytes: int,
    prompt_tokens: int,
    teachers: Mapping[str, Network] | None = None,
) -> Estimate:
    """Returns the estimate for prompts of `prompt_tokens` on a machine with `memory_bytes`.

    `teachers` are the networks of a distillation's local teachers, as far as they are known.
    """
    facts = settings.facts
    evaluates = settings.eval.prompts > 0 and judges(settings.task)
    samplers = settings.actors.samplers if facts.samples or evaluates else 0
    base = base_bytes(network, settings)
    trained = trained_parameters(network, settings)
    items = [
        Item("always", "Ray and Python, an allowance", RAY_BYTES + (2 + samplers) * PROCESS_BYTES),
        Item("always", "learner: weights", base),
        *(Item("always", what, size) for what, size in _training(settings, network, trained)),
    ]
    if facts.reference and not adapter_for(settings.model.train).adds_weights:
        items.append(Item("always", "learner: weights of the reference policy", base))
    if samplers:
        items += _sampling(settings, network, samplers, prompt_tokens)
    if facts.gradients:
        items += _teaching(settings, network, teachers or {}, prompt_tokens)
        items += _learning(settings, network, prompt_tokens)
    return Estimate(tuple(items), memory_bytes)


def _sampling(
    settings: Settings, network: Network, samplers: int, prompt_tokens: int
) -> Iterator[Item]:
    """Yields the items that the samplers hold, and those that decoding takes."""
    adds_weights = adapter_for(settings.model.train).adds_weights
    adapter = trained_parameters(network, settings) * FLOAT32 if adds_weights else 0
    what = "sampler: weights" if samplers == 1 else f"{samplers} samplers: weights"
    yield Item("always", what, samplers * (base_bytes(network, settings) + adapter))
    length = longest_answer_tokens(settings) + prompt_tokens
    slots = settings.sampling.slots
    cache = kv_cache_bytes(network, slots, length, activation_item_bytes(network, settings))
    yield Item("sampling", f"keys and values, {slots} slots", cache)
    logits = slots * network.vocabulary * FLOAT32 * LOGITS_COPIES
    yield Item("sampling", "logits of a decoding step", logits)


def _learning(settings: Settings, network: Network, prompt_tokens: int) -> Iterator[Item]:
    """Yields the items of one forward and backward pass."""
    tokens, length = micro_batch(settings, prompt_tokens)
    item = activation_item_bytes(network, settings)
    checkpointing = settings.model.gradient_checkpointing
    activations = activation_bytes(network, tokens, length, item, checkpointing)
    yield Item("learning", f"activations of {tokens:,} tokens", activations)
    chunk = min(tokens, LOGITS_CHUNK_TOKENS)
    logits = chunk * network.vocabulary * FLOAT32 * LOGITS_COPIES
    yield Item("learning", f"logits of {chunk:,} tokens", logits)


def _teaching(
    settings: Settings,
    network: Network,
    teachers: Mapping[str, Network],
    prompt_tokens: int,
) -> Iterator[Item]:
    """Yields the items of teachers: their weights wherever they are, and the largest phase of their
    work.
    """
    facts = settings.facts
    tokens, length = micro_batch(settings, prompt_tokens)
    if facts.compares_distributions:
        size = min(tokens, DIVERGENCE_CHUNK_TOKENS) * network.vocabulary * FLOAT32
        yield Item("learning", "logits of teacher and student, a chunk", size * DIVERGENCE_COPIES)
    if facts.asks_teachers:
        yield Item("always", "teachers' processes", len(facts.teachers) * PROCESS_BYTES)
    for name, teacher in teachers.items():
        chosen = facts.teachers[name]
        assert isinstance(chosen, LocalTeacher)
        model = replace(settings.model, quantize_bits=chosen.quantize_bits, dtype=chosen.dtype)
        theirs = replace(settings, model=model)
        item = activation_item_bytes(teacher, theirs)
        block = round(
            1.5 * activation_bytes(replace(teacher, layers=0), tokens, length, item, False)
        )
        if facts.hosts_teachers:
            yield Item("always", f"learner: weights of teacher {name}", base_bytes(teacher, theirs))
            yield Item("learning", f"activations of teacher {name}", block)
        if facts.asks_teachers:
            yield Item("always", f"teacher {name}: weights", base_bytes(teacher, theirs))
            phase = f"teacher {name} works"
            yield Item(phase, "activations", block)
            logits = LOGITS_CHUNK_TOKENS * teacher.vocabulary * FLOAT32 * LOGITS_COPIES
            yield Item(phase, "logits of a chunk", logits)
            if facts.teachers_answer:
                longest = settings.sampling.max_new_tokens + prompt_tokens
                cache = kv_cache_bytes(teacher, settings.sampling.slots, longest, item)
                yield Item(phase, f"keys and values, {settings.sampling.slots} slots", cache)


# ── formulas ─────────────────────────────────────────────────────────────────────────────────────


def base_bytes(network: Network, settings: Settings) -> int:
    """Returns the bytes of one copy of the weights: as stored, converted, or quantised with a scale and
    bias a group.
    """
    model = settings.model
    if model.quantize_bits:
        return round(network.parameters * (model.quantize_bits / 8 + 4 / QUANTIZATION_GROUP))
    if model.dtype == "checkpoint":
        return network.weight_bytes
    return network.parameters * (4 if model.dtype == "float32" else 2)


def activation_item_bytes(network: Network, settings: Settings) -> int:
    """Returns bytes of one activation."""
    if settings.model.dtype == "checkpoint":
        return network.item_bytes
    return 4 if settings.model.dtype == "float32" else 2


def trained_parameters(network: Network, settings: Settings) -> int:
    """Returns the parameters that the optimiser moves, as the adapter counts them."""
    return adapter_for(settings.model.train).parameter_count(network)


def _training(settings: Settings, network: Network, trained: int) -> list[tuple[str, int]]:
    """Returns the items that are kept for the parameters that are moved: float32, whatever the weights."""
    facts = settings.facts
    optimizer = OPTIMIZERS.of(settings.optimizer)
    name, moments = optimizer.STATE_NAME, optimizer.STATE_PER_WEIGHT * trained * FLOAT32
    if not facts.gradients:  # every sampler updates a master of its own
        holders = 1 + settings.actors.samplers
        kept = [("float32 masters of learner and samplers", holders * trained * FLOAT32)]
        if facts.optimizer:
            kept.append((f"{name} beside each", holders * moments))
        return [*kept, ("learner: the base, for the drift from it", trained * FLOAT32)]
    adds_weights = adapter_for(settings.model.train).adds_weights
    is_float32 = activation_item_bytes(network, settings) == FLOAT32
    owns = "learner: adapters" if adds_weights else "learner: float32 copy of the weights"
    master = [(owns, trained * FLOAT32)] if adds_weights or not is_float32 else []
    return [
        *master,
        ("learner: gradients", trained * FLOAT32),
        (f"learner: {name}", moments),
    ]


def kv_cache_bytes(network: Network, slots: int, length: int, item_bytes: int) -> int:
    """Returns the bytes of keys and values of every slot at full length."""
    per_token = 2 * network.layers * network.kv_heads * network.head_dim * item_bytes
    return round(slots * length * per_token * KV_SLACK)


def activation_bytes(
    network: Network, tokens: int, length: int, item_bytes: int, checkpointing: bool
) -> int:
    """Returns the bytes that one forward and backward pass over `tokens` in rows of `length` keeps.

    A block keeps its norms and residuals, queries, keys, values and the four arrays of a gated network,
    and unfused attention its scores: 6h + 3(H + 2K)d + 4I + H·length items a token. The pass keeps that
    for every block, and 1.5 blocks' worth while it works. With gradient checkpointing it keeps a
    block's input for every block, and three blocks' worth while it works.
    """
    block = (
        6 * network.hidden
        + 3 * (network.heads + 2 * network.kv_heads) * network.head_dim
        + 4 * network.intermediate
        + network.heads * length
    )
    if checkpointing:
        return round(tokens * item_bytes * (network.layers * network.hidden + 3 * block))
    return round(tokens * item_bytes * (network.layers + 1.5) * block)


def micro_batch(settings: Settings, prompt_tokens: int) -> tuple[int, int]:
    """Returns the tokens of the largest micro-batch and the length of its rows."""
    length = prompt_tokens + settings.sampling.max_new_tokens
    rows = settings.facts.rows_per_step
    return min(max(settings.actors.micro_batch_tokens, length), rows * length), length


def longest_answer_tokens(settings: Settings) -> int:
    """Returns the longest answer that a sampler ever makes."""
    return max(settings.sampling.max_new_tokens, settings.eval.max_new_tokens)


def assumed_prompt_tokens(settings: Settings) -> int:
    """Returns the assumed length of prompts, since no tokenizer is at hand."""
    name = str(settings.task.__struct_config__.tag)
    return PROMPT_TOKENS.get(name, PROCEDURAL_PROMPT_TOKENS)
