"""Small random checkpoints, written as a download would lie there: for tests of everything above."""

from pathlib import Path
from typing import Any

from policies.characters import write_tokenizer
from policies.random_checkpoint import create_checkpoint

FAMILIES = ("qwen3", "llama", "gemma3_text")
VOCABULARY = 128
WINDOW = 8
"""Of gemma's local layers: shorter than the tests' sequences, so that the window's mask matters."""

_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
_FAMILY: dict[str, dict[str, Any]] = {
    "qwen3": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "gemma3_text": {
        "tie_word_embeddings": True,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10_000.0,
    },
}


def config(family: str, *, quantized: bool = False, **changes: Any) -> dict[str, Any]:
    """config.json of a family, with `changes` on top."""
    quantization = {"quantization": {"group_size": 32, "bits": 4}} if quantized else {}
    return {"model_type": family, **_SHAPE, **_FAMILY[family], **quantization, **changes}


def write(
    folder: Path, family: str, *, quantized: bool = False, seed: int = 1, **changes: Any
) -> Path:
    """A checkpoint with weights and tokenizer in `folder`, which is returned."""
    create_checkpoint(folder, config(family, quantized=quantized, **changes), seed)
    write_tokenizer(folder)
    return folder
