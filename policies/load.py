"""A checkpoint becomes a policy: found, checked and loaded.

Any dense mlx-lm architecture in the Hugging Face layout, on full-precision or quantised weights. The
split into trunk and head is checked against the unsplit model.

Safetensors only: pickles and code that comes with a checkpoint are refused by
`runtime.checkpoint_files` before anything here opens them.
"""

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from configs.model import Model
from policies import mlx_lm_port
from policies.adapters.registry import adapter_for
from policies.arrays import number
from policies.policy import Policy
from policies.tokens import Tokens
from runtime.checkpoint_files import inspect
from runtime.errors import BadInput
from runtime.plain_text import printable

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
SPLIT_TOLERANCE = 1e-2
"""Largest difference of logits, relative to their size, between the split and the whole model:
generous, because half precision may take another kernel; a wrong split is off by far more."""
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]


def locate(path: str) -> Path:
    """Returns the checkpoint's folder: a local one, or a hub id through the local cache.

    Raises BadInput if there is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise BadInput(f"model.path: needs a checkpoint folder or a hub id, {path!r} is neither")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises many kinds; all mean the same to a person
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"model.path: {path!r} is no folder here and could not be had from the hub: {reason}"
        ) from None


def context_length(folder: Path) -> int:
    """Returns how many tokens the checkpoint in `folder` was made for, prompt and answer together."""
    config = json.loads((folder / "config.json").read_bytes())
    text = config.get("text_config", config)
    return int(text.get("max_position_embeddings") or 2**31)


def load_tokens(settings: Model, folder: Path) -> Tokens:
    """Returns the tokenizer alone: no weights are read.

    It stops at each end token of generation_config.json, or else of config.json, at its own, and where
    the chat template ends an assistant's turn.
    Raises BadInput for a tokenizer that is damaged or names no end token.
    """
    vocabulary = inspect(folder).text_config["vocab_size"]
    try:
        wrapper = mlx_lm_port.load_tokenizer(folder)
        tokens = Tokens(
            wrapper,
            folder,
            settings.chat_template,
            settings.system,
            special_tokens_in_text=settings.special_tokens_in_text,
            adds_special_tokens=settings.add_special_tokens == "tokenizer",
        )
    except Exception as error:  # transformers and tokenizers raise bare Exceptions
        raise BadInput(
            f"{folder / 'tokenizer.json'}: no tokenizer could be made of it: {_reason(error)}"
        ) from None
    if not tokens.named_ends:
        raise BadInput(f"{folder}: the tokenizer names no end-of-sequence token")
    if beyond := [token for token in sorted(tokens.named_ends) if not 0 <= token < vocabulary]:
        raise BadInput(
            f"{folder}: eos_token_id needs ids below vocab_size, {vocabulary}, got {beyond[0]}"
        )
    return tokens


def _reason(error: Exception) -> str:
    """Returns a library's error on one printable line of bounded length: it may repeat a stranger's text."""
    return printable(" ".join((str(error) or type(error).__name__).split()), 300)


def load_policy(settings: Model, folder: Path, seed: int) -> Policy:
    """Returns the checkpoint in `folder`, ready to sample from or to train, evaluated on this thread.

    Raises BadInput for one that is damaged, foreign, of an architecture that cannot be split, or
    that cannot be trained as `settings.train` asks.
    """
    policy = _loaded(settings, folder)
    _make_trainable(policy, settings, seed)
    policy.recompute = settings.gradient_checkpointing
    mx.eval(policy.model.parameters())
    return policy


def load_frozen(settings: Model, folder: Path) -> Policy:
    """Returns the same with nothing trained, whatever `settings.train` says: a teacher, quantised or not."""
    policy = _loaded(settings, folder)
    policy.model.freeze()
    return policy


def check_loads(settings: Model, folder: Path, *, frozen: bool = False) -> Policy:
    """Returns the checkpoint as `load_policy`, or `load_frozen`, would load it, its weights still on disk.

    Raises BadInput for whatever they would refuse but NaN logits. One block of the network is
    computed, on the CPU: another run may hold the GPU, and the whole may not fit beside it.
    """
    with mx.stream(mx.cpu):
        policy = _built(settings, folder)
        if frozen:
            policy.model.freeze()
        else:
            _make_trainable(policy, settings, seed=0)
        _logits(policy)  # of all blocks, without computing them: shapes and types are checked
        with policy.first_block_alone():
            _check_split(policy, whole=False)
    return policy


def _make_trainable(policy: Policy, settings: Model, seed: int) -> None:
    policy.adapter = adapter_for(settings.train)
    policy.adapter.attach(policy.model, seed)


def _loaded(settings: Model, folder: Path) -> Policy:
    """Returns the checkpoint's policy, evaluated."""
    policy = _built(settings, folder)
    mx.eval(policy.model.parameters())
    _check_split(policy)
    return policy


def _built(settings: Model, folder: Path) -> Policy:
    """Returns the checkpoint's policy, its weights still on disk."""
    files = inspect(folder)
    if settings.dtype != "checkpoint" and files.quantized:
        raise BadInput(f"model.dtype: {folder} is quantised, its dtype cannot be changed")
    try:
        model, config = mlx_lm_port.load_network(folder)
    except Exception as error:  # an architecture's code, on a config that may say anything
        raise BadInput(f"{folder}: mlx-lm cannot load it: {_reason(error)}") from None
    _check_attention(model, config, folder)
    policy = Policy(model, config, load_tokens(settings, folder), folder, context_length(folder))
    if settings.dtype != "checkpoint":
        model.set_dtype(DTYPES[settings.dtype])
    if settings.quantize_bits and not files.quantized:
        policy.config = mlx_lm_port.quantize(policy.model, policy.config, settings.quantize_bits)
    model.eval()
    return policy


def _check_attention(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    if not mlx_lm_port.has_one_attention_cache_a_block(model):
        raise BadInput(
            f"{folder}: {config.get('model_type', '?')} is not a dense attention model with one "
            "key-value cache a layer, which Pippin needs"
        )


def _logits(policy: Policy) -> tuple[mx.array, mx.array]:
    """Returns logits of four tokens by the whole model and by its parts, not computed yet."""
    tokens = mx.array([[1, 2, 3, 1]]) % policy.vocabulary
    try:
        unsplit = policy.model(tokens)[0].astype(mx.float32)
        split = policy.project(policy.hidden(tokens)[0]).astype(mx.float32)
    except Exception as error:  # an architecture's code, on a config that may say anything
        raise BadInput(f"{policy.folder}: mlx-lm cannot run it: {_reason(error)}") from None
    return unsplit, split


def _check_split(policy: Policy, *, whole: bool = True) -> None:
    """Raises BadInput unless trunk and head give what the model gives; `whole` if all blocks are there."""
    kind = policy.config.get("model_type", "?")
    try:
        unsplit, split = _logits(policy)
    except BadInput:
        if not whole:
            return  # one block alone is no network of this architecture: loading will tell
        raise
    gap, size = number(mx.abs(unsplit - split).max()), number(mx.abs(unsplit).max())
    if not math.isfinite(size):
        if not whole:
            return
        raise BadInput(f"{policy.folder}: its weights give NaN or infinite logits")
    if not gap <= SPLIT_TOLERANCE * max(size, 1e-6):
        raise BadInput(
            f"{policy.folder}: {kind} cannot be split into trunk and head (off by {gap:.3g})"
        )
