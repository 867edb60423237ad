"""How much memory a run will take, from its settings and a checkpoint's headers: an upper estimate.

What stays (weights of every role, what the learner keeps of its optimiser) adds up; what comes and
goes (key-value memory, activations) does not, because one process computes on the GPU at a time. So
the peak is the sum of the first and the largest phase of the second. Pure functions, in bytes.

The activations' formula was fitted to Qwen3 networks in MLX 0.32.4 on a CPU (peak memory of one
forward and backward pass, seven shapes) and lies 0 to 15 % above them; elsewhere it is a guess of
the same kind, and fused attention needs less.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from configs.distillation import (
    answers_per_prompt,
    asks_actors,
    is_hosted,
    is_token_level,
    student_samples,
)
from configs.load import NOT_FOLDERS
from configs.schema import (
    AdamwStep,
    Distill,
    Es,
    FromTeacher,
    Grpo,
    LocalTeacher,
    SampledToken,
    Settings,
)
from policies.adapters.registry import adapter_for
from policies.optimizers.registry import OPTIMIZERS
from runtime.checkpoint_files import CheckpointFiles

GIB = 1024**3
FLOAT32 = 4
LOGITS_CHUNK_TOKENS = 512
"""`kernels.logprobs` makes the logits of so many tokens at a time."""
LOGITS_COPIES = 3
"""The logits of a chunk, their softmax and their gradient."""
KV_SLACK = 1.5
"""Key-value memory grows ahead of need and is moved by copying."""
DIVERGENCE_CHUNK_TOKENS = 128
DIVERGENCE_COPIES = 20
"""Of a chunk's logits, in a divergence's forward and backward pass (`kernels.teacher`)."""
QUANTIZATION_GROUP = 64
"""Weights that share a scale and a bias of 16 bits each."""
PROCESS_BYTES = 300 * 1024**2
"""Python, MLX and transformers before any weights: an allowance for each actor."""
RAY_BYTES = GIB
"""Ray's own processes and its store: an allowance."""
FITS, TIGHT = 0.60, 0.80
"""Shares of the machine's memory: a Mac lets its GPU have about two thirds to three quarters."""

PROMPT_TOKENS = {"gsm8k": 256, "jsonl": 512}
"""Assumed length of a prompt where data decides it; procedural tasks have short ones."""
PROCEDURAL_PROMPT_TOKENS = 64


class Network(Struct, frozen=True, kw_only=True):
    """The shape of a dense decoder-only transformer."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    weight_bytes: int
    """All weights as they are stored."""
    item_bytes: int
    """Of one activation."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear modules of a block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, queries),
            "self_attn.k_proj": (self.hidden, keys),
            "self_attn.v_proj": (self.hidden, keys),
            "self_attn.o_proj": (queries, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }


class Item(Struct, frozen=True):
    """One line of the estimate."""

    phase: str
    """"always", or the phase in which it is there."""
    what: str
    size_bytes: int


class Estimate(Struct, frozen=True):
    """Memory of a run at its peak, on a machine."""

    items: tuple[Item, ...]
    memory_bytes: int

    @property
    def peak_bytes(self) -> int:
        """What stays, and the largest phase of what comes and goes."""
        phases = {item.phase for item in self.items} - {"always"}
        return self._sum("always") + max((self._sum(phase) for phase in phases), default=0)

    @property
    def verdict(self) -> str:
        """ "fits", "tight" or "does not fit"."""
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
    """The estimate for prompts of `prompt_tokens` on a machine with `memory_bytes`.

    `teachers` are the networks of a distillation's local teachers, as far as they are known.
    """
    grpo = settings.algorithm if isinstance(settings.algorithm, Grpo) else None
    es = settings.algorithm if isinstance(settings.algorithm, Es) else None
    distill = settings.algorithm if isinstance(settings.algorithm, Distill) else None
    samples = grpo is not None or es is not None or settings.eval.prompts > 0
    samples = samples or (distill is not None and student_samples(distill))
    samplers = settings.actors.samplers if samples else 0
    base = base_bytes(network, settings)
    item = activation_item_bytes(network, settings)
    trained = trained_parameters(network, settings)
    items = [
        Item("always", "Ray and Python, an allowance", RAY_BYTES + (2 + samplers) * PROCESS_BYTES),
        Item("always", "learner: weights", base),
        *(Item("always", what, size) for what, size in _training(settings, network, trained, es)),
    ]
    adds_weights = adapter_for(settings.model.train).adds_weights
    if grpo and grpo.kl.coefficient and not adds_weights:
        items.append(Item("always", "learner: weights of the reference policy", base))
    if samplers:
        adapter = trained * FLOAT32 if adds_weights else 0
        what = "sampler: weights" if samplers == 1 else f"{samplers} samplers: weights"
        items.append(Item("always", what, samplers * (base + adapter)))
        length = longest_answer_tokens(settings) + prompt_tokens
        cache = kv_cache_bytes(network, settings.sampling.slots, length, item)
        items.append(Item("sampling", f"keys and values, {settings.sampling.slots} slots", cache))
        logits = settings.sampling.slots * network.vocabulary * FLOAT32 * LOGITS_COPIES
        items.append(Item("sampling", "logits of a decoding step", logits))
    if es is not None:
        return Estimate(tuple(items), memory_bytes)
    if distill is not None:
        items += _teaching(settings, distill, network, teachers or {}, prompt_tokens)
    tokens, length = micro_batch(settings, prompt_tokens)
    checkpointing = settings.model.gradient_checkpointing
    activations = activation_bytes(network, tokens, length, item, checkpointing)
    chunk = min(tokens, LOGITS_CHUNK_TOKENS)
    logits = chunk * network.vocabulary * FLOAT32 * LOGITS_COPIES
    items.append(Item("learning", f"activations of {tokens:,} tokens", activations))
    items.append(Item("learning", f"logits of {chunk:,} tokens", logits))
    return Estimate(tuple(items), memory_bytes)


def _teaching(
    settings: Settings,
    distill: Distill,
    network: Network,
    teachers: Mapping[str, Network],
    prompt_tokens: int,
) -> Iterator[Item]:
    """What teachers take: their weights wherever they are, and the largest phase of their work."""
    tokens, length = micro_batch(settings, prompt_tokens)
    if is_token_level(distill) and not isinstance(distill.signal, SampledToken):
        size = min(tokens, DIVERGENCE_CHUNK_TOKENS) * network.vocabulary * FLOAT32
        yield Item("learning", "logits of teacher and student, a chunk", size * DIVERGENCE_COPIES)
    if asks_actors(distill):
        yield Item("always", "teachers' processes", len(distill.teachers) * PROCESS_BYTES)
    for name, teacher in teachers.items():
        chosen = distill.teachers[name]
        assert isinstance(chosen, LocalTeacher)
        model = replace(settings.model, quantize_bits=chosen.quantize_bits, dtype=chosen.dtype)
        theirs = replace(settings, model=model)
        item = activation_item_bytes(teacher, theirs)
        block = round(
            1.5 * activation_bytes(replace(teacher, layers=0), tokens, length, item, False)
        )
        if is_hosted(distill):
            yield Item("always", f"learner: weights of teacher {name}", base_bytes(teacher, theirs))
            yield Item("learning", f"activations of teacher {name}", block)
        if asks_actors(distill):
            yield Item("always", f"teacher {name}: weights", base_bytes(teacher, theirs))
            phase = f"teacher {name} works"
            yield Item(phase, "activations", block)
            logits = LOGITS_CHUNK_TOKENS * teacher.vocabulary * FLOAT32 * LOGITS_COPIES
            yield Item(phase, "logits of a chunk", logits)
            if isinstance(distill.learn_from, FromTeacher):
                longest = settings.sampling.max_new_tokens + prompt_tokens
                cache = kv_cache_bytes(teacher, settings.sampling.slots, longest, item)
                yield Item(phase, f"keys and values, {settings.sampling.slots} slots", cache)


# ── formulas ─────────────────────────────────────────────────────────────────────────────────────


def base_bytes(network: Network, settings: Settings) -> int:
    """One copy of the weights: as stored, converted, or quantised with a scale and bias a group."""
    model = settings.model
    if model.quantize_bits:
        return round(network.parameters * (model.quantize_bits / 8 + 4 / QUANTIZATION_GROUP))
    if model.dtype == "checkpoint":
        return network.weight_bytes
    return network.parameters * (4 if model.dtype == "float32" else 2)


def activation_item_bytes(network: Network, settings: Settings) -> int:
    """Bytes of one activation."""
    if settings.model.dtype == "checkpoint":
        return network.item_bytes
    return 4 if settings.model.dtype == "float32" else 2


def trained_parameters(network: Network, settings: Settings) -> int:
    """Parameters that the optimiser moves, as the adapter counts them."""
    return adapter_for(settings.model.train).parameter_count(network)


def _training(
    settings: Settings, network: Network, trained: int, es: Es | None
) -> list[tuple[str, int]]:
    """What is kept for the parameters that are moved: float32, whatever the weights."""
    optimizer = OPTIMIZERS.of(settings.optimizer)
    name, moments = optimizer.STATE_NAME, optimizer.STATE_PER_WEIGHT * trained * FLOAT32
    if es is not None:  # every sampler follows with a master of its own
        holders = 1 + settings.actors.samplers
        kept = [("float32 masters of learner and samplers", holders * trained * FLOAT32)]
        if isinstance(es.update, AdamwStep):
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
    """Keys and values of every slot at full length."""
    per_token = 2 * network.layers * network.kv_heads * network.head_dim * item_bytes
    return round(slots * length * per_token * KV_SLACK)


def activation_bytes(
    network: Network, tokens: int, length: int, item_bytes: int, checkpointing: bool
) -> int:
    """What one forward and backward pass over `tokens` in rows of `length` keeps.

    A block keeps its norms and residuals, queries, keys, values and the four arrays of a gated
    network, and unfused attention its scores: 6h + 3(H + 2K)d + 4I + H·length items a token. The
    pass keeps that for every block, and 1.5 blocks' worth while it works; with gradient
    checkpointing a block's input, and three blocks' worth while it works.
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
    """Tokens of the largest micro-batch and the length of its rows."""
    length = prompt_tokens + settings.sampling.max_new_tokens
    rows = rows_per_step(settings)
    return min(max(settings.actors.micro_batch_tokens, length), rows * length), length


def rows_per_step(settings: Settings) -> int:
    """Sequences that one step learns from, at most."""
    match settings.algorithm:
        case Grpo() as grpo:
            return grpo.prompts_per_step * grpo.group_size
        case Es() as es:
            return es.prompts_per_step * es.population
        case Distill() as distill:
            return distill.prompts_per_step * answers_per_prompt(distill)
        case sft:
            return sft.rows_per_step


def longest_answer_tokens(settings: Settings) -> int:
    """The longest answer that a sampler ever makes."""
    return max(settings.sampling.max_new_tokens, settings.eval.max_new_tokens)


def assumed_prompt_tokens(settings: Settings) -> int:
    """How long prompts are taken to be, since no tokenizer is at hand."""
    name = str(settings.task.__struct_config__.tag)
    return PROMPT_TOKENS.get(name, PROCEDURAL_PROMPT_TOKENS)


# ── networks ─────────────────────────────────────────────────────────────────────────────────────


def network_of(files: CheckpointFiles) -> Network | None:
    """The network of a checkpoint folder; None where its config lacks what the estimate needs."""
    config = files.text_config
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        shape = {
            "layers": int(config["num_hidden_layers"]),
            "hidden": hidden,
            "intermediate": int(config.get("intermediate_size") or 4 * hidden),
            "heads": heads,
            "kv_heads": int(config.get("num_key_value_heads") or heads),
            "head_dim": int(config.get("head_dim") or hidden // heads),
            "vocabulary": int(config["vocab_size"]),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    sizes = [t.size_bytes // max(math.prod(t.shape), 1) for t in files.tensors.values()]
    packed = _packing(config)
    parameters = sum(
        math.prod(t.shape) * (packed if t.dtype == "U32" else 1) for t in files.tensors.values()
    )
    return Network(
        **shape,
        parameters=parameters,
        weight_bytes=files.weights_bytes,
        item_bytes=2 if files.quantized or max(sizes) <= 2 else 4,
    )


def _packing(config: dict[str, Any]) -> int:
    """Quantised weights in one 32-bit word."""
    quantization = config.get("quantization") or config.get("quantization_config") or {}
    bits = quantization.get("bits", 32) if isinstance(quantization, dict) else 32
    return 32 // bits if isinstance(bits, int) and 0 < bits <= 32 else 1


def _qwen3(billions: float, *shape: int) -> Network:
    hidden, intermediate, layers, heads = shape
    parameters = round(billions * 1e9)
    return Network(
        parameters=parameters,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        weight_bytes=2 * parameters,
        item_bytes=2,
    )


QWEN3 = {
    0.6: _qwen3(0.596, 1024, 3072, 28, 16),
    1.7: _qwen3(1.72, 2048, 6144, 28, 16),
    4.0: _qwen3(4.02, 2560, 9728, 36, 32),
    8.0: _qwen3(8.19, 4096, 12288, 36, 32),
    14.0: _qwen3(14.8, 5120, 17408, 40, 40),
    32.0: _qwen3(32.8, 5120, 25600, 64, 64),
}
"""Shapes that stand in for a checkpoint that is not here, by billions of parameters."""

SEEDLING = Network(
    parameters=1_000_000,
    layers=4,
    hidden=128,
    intermediate=512,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocabulary=512,
    weight_bytes=4_000_000,
    item_bytes=4,
)
"""Stands in for Pippin's own checkpoint before it is made: its order of magnitude."""

SIZE_IN_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
BITS_IN_NAME = re.compile(r"(?<!\d)([48])-?bit", re.IGNORECASE)


def assumed_network(name: str) -> tuple[Network, str] | None:
    """A stand-in for a checkpoint of this name, and the assumption in words; None without a size.

    "mlx-community/Llama-3.2-1B-4bit" → the nearest Qwen3 shape, scaled, in 4 bits.
    """
    if name in NOT_FOLDERS:
        return SEEDLING, f"the {name} is not made yet: about 1 million parameters are assumed"
    found = SIZE_IN_NAME.search(name.rpartition("/")[2])
    if found is None:
        return None
    billions = float(found[1]) / (1 if found[2].lower() == "b" else 1000)
    if not billions:
        return None
    nearest = min(QWEN3, key=lambda size: max(size / billions, billions / size))
    network = QWEN3[nearest]
    parameters = network.parameters if nearest == billions else round(billions * 1e9)
    bits = BITS_IN_NAME.search(name)
    item = int(bits[1]) / 8 + 4 / QUANTIZATION_GROUP if bits else 2
    stand_in = replace(network, parameters=parameters, weight_bytes=round(parameters * item))
    stored = f"{bits[1]} bits" if bits else "16 bits"
    return stand_in, (
        f"{name} is not on this machine yet: by its name, {parameters / 1e9:.2g} billion "
        f"parameters in {stored} in the shape of Qwen3-{nearest:g}B are assumed"
    )
