"""Settings of the policy's checkpoint, and of which of its weights are trained."""

from typing import Annotated, Literal

from configs.fields import Closed, Positive, Text, up_to


class Full(Closed, frozen=True, tag_field="name", tag="full"):
    """Trains every weight."""


class Lora(Closed, frozen=True, tag_field="name", tag="lora"):
    """Low-rank adapters beside frozen weights; on a quantised base this is QLoRA."""

    rank: Annotated[int, up_to(4096)] = 8
    scale: Positive = 10.0
    """mlx-lm's factor on the adapter's output (not α: no division by the rank)."""
    layers: Annotated[int, up_to(1000, -1)] = -1
    """Number of the last blocks that get adapters; -1 for all of them."""
    modules: list[Text] = []
    """Module names in a block, such as "self_attn.q_proj"; empty for every linear one."""


class Model(Closed, frozen=True):
    """The policy's checkpoint and which of its weights are trained."""

    path: Text = "seedling"
    """A folder in the Hugging Face layout, a hub id, or "seedling" for the one Pippin makes."""
    train: Full | Lora = Full()
    quantize_bits: Literal[0, 4, 8] = 0
    """Bits to which the base is quantised when it is loaded; 0 leaves it as it is. Needs LoRA."""
    dtype: Literal["checkpoint", "float32", "float16", "bfloat16"] = "checkpoint"
    chat_template: dict[str, bool | int | float | str] = {}
    """Arguments of the chat template, such as { enable_thinking = false }."""
    special_tokens_in_text: bool = False
    """Turns text that spells out a special token, such as <|im_end|>, into that token; false: such text is
    read as plain text, counted and shown."""
    add_special_tokens: Literal["tokenizer", "none"] = "tokenizer"
    """What stands before a prompt where the checkpoint has no chat template: what its tokenizer puts before
    every text (Llama-3, Gemma: BOS), or nothing. A template writes its own."""
    system: str = ""
    """A system message before each prompt; empty for none."""
    gradient_checkpointing: bool = False
    """Recomputes each block in the backward pass: half the memory, about 1.9 times the time."""
