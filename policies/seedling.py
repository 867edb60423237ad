"""The seedling: a small Qwen3-architecture checkpoint that Pippin raises itself.

A random network and a character tokenizer, warmed up by the real supervised loop on the recipe
configs/seedling.toml, until it is right now and then. The same seed and recipe give the same weights.
"""

from pathlib import Path
from typing import Any

from policies.characters import VOCABULARY, write_tokenizer
from policies.random_checkpoint import create_checkpoint

ARCHITECTURE: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


def write_blank(folder: Path, seed: int) -> None:
    """The seedling before its warm start."""
    create_checkpoint(folder, ARCHITECTURE, seed)
    write_tokenizer(folder)
