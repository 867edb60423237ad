"""The seedling: a small checkpoint of the Qwen3 architecture that Pippin trains itself.

It begins as a random network with a character tokenizer. The ordinary supervised loop warms it up on the
recipe configs/seedling.toml until some of its answers are right. The same seed and recipe give the same
weights.
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
    """Writes the seedling's checkpoint as it is before the warm start."""
    create_checkpoint(folder, ARCHITECTURE, seed)
    write_tokenizer(folder)
