"""A character-level tokenizer with a chat template, written as Hugging Face's own files.

The seedling and the tests use it. Printable ASCII has one id for each character, and a role is one token, so
a prompt of six characters takes eight tokens, and a model of 100,000 weights can learn the vocabulary.
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models

SPECIAL = ["<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>"]
CHARACTERS = [chr(c) for c in range(32, 127)] + ["\n"]
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: i for i, token in enumerate(SPECIAL + CHARACTERS)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<end>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    end = ids["<end>"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    generation = {"eos_token_id": end, "pad_token_id": ids["<pad>"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2, sort_keys=True))
