"""Small tokenizers with the machinery and the chat templates of the families that people train."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer

CORPUS = [
    "Say hello to the user, and then to the assistant of the system.",
    "user assistant system model end start turn im_end im_start header id eot",
    "What is 17 + 25? It is 42.\n\nThe answer: 42.\n",
    "def f(x):\n    return x ** 2\n\n\n# häßlich, naïve, 日本語, 🙂\t<b>tags</b> [INST] {json}",
    "<|im_end|> <start_of_turn> </s> <|eot_id|> [/INST] are written here as letters",
] * 8
WORDS = r"'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def _special(*tokens: str, **how: bool) -> list[AddedToken]:
    return [AddedToken(t, special=True, normalized=False, **how) for t in tokens]


def _plain(*tokens: str) -> list[AddedToken]:
    return [AddedToken(t, special=False, normalized=False) for t in tokens]


def _bpe(**how: Any) -> Tokenizer:
    return Tokenizer(models.BPE(**how))


def _train(tokenizer: Tokenizer, initial: list[str], kinds: list[str] | None = None) -> Tokenizer:
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=initial, special_tokens=kinds or [], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _qwen() -> tuple[Tokenizer, str, dict[str, Any]]:
    tokenizer = _bpe()
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_special_tokens(_special("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.add_tokens(_plain("<think>", "</think>", "<tool_call>"))
    template = (
        "{% for m in messages %}{% set text = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in text %}"
        "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
        "{{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
        "{% if enable_thinking is defined and enable_thinking is false %}"
        "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
    )
    return tokenizer, template, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def _llama3() -> tuple[Tokenizer, str, dict[str, Any]]:
    tokenizer = _bpe(ignore_merges=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    _train(tokenizer, pre_tokenizers.ByteLevel.alphabet())
    tokenizer.add_special_tokens(
        _special(
            "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
            "<|eot_id|>", *(f"<|reserved_special_token_{i}|>" for i in range(40)),
        )
    )  # fmt: skip
    template = (
        "{{- bos_token }}{% for m in messages %}"
        "{{- '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\\n\\n' }}"
        "{{- m['content'] | trim }}{{- '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    )
    return tokenizer, template, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}


def _gemma() -> tuple[Tokenizer, str, dict[str, Any]]:
    tokenizer = _bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence([  # type: ignore[assignment]
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
    ])  # fmt: skip
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    _train(tokenizer, list("▁<>_|"), ["<pad>", "<eos>", "<bos>", "<unk>", *bytes_])
    spec = json.loads(tokenizer.to_str())
    kept = {"<pad>", "<eos>", "<bos>", "<unk>"}  # the bytes are no added tokens
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in kept]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_tokens(
        _plain("<start_of_turn>", "<end_of_turn>", "\n\n", "\n\n\n", "<b>", "</b>")
    )
    template = (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{% set first = messages[0]['content'] + '\\n\\n' %}{% set loop_messages = messages[1:] %}"
        "{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
        "{% for m in loop_messages %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') }}"
        "{{ m['content'] | trim }}{{ '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    )
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return tokenizer, template, names


def _phi3() -> tuple[Tokenizer, str, dict[str, Any]]:
    tokenizer = _bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer.normalizer = normalizers.Sequence([  # type: ignore[assignment]
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"),
    ])  # fmt: skip
    tokenizer.decoder = decoders.Sequence([  # type: ignore[assignment]
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    _train(tokenizer, list("▁<>_|"), ["<unk>", "<s>", "</s>", *bytes_])
    spec = json.loads(tokenizer.to_str())
    kept = {"<unk>", "<s>", "</s>"}
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in kept]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens(
        _special("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", rstrip=True)
    )
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )
    return tokenizer, template, {"bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>"}


def _mistral() -> tuple[Tokenizer, str, dict[str, Any]]:
    tokenizer = _bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence([  # type: ignore[assignment]
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    _train(tokenizer, list("▁<>_[]/"), ["<unk>", "<s>", "</s>", *bytes_])
    spec = json.loads(tokenizer.to_str())
    kept = {"<unk>", "<s>", "</s>"}
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] in kept]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.add_special_tokens(_special("[INST]", "[/INST]", "[TOOL_CALLS]"))
    template = (
        "{% set ns = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set ns.system = m.content + '\\n\\n' %}{% endif %}{% endfor %}"
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
        "{{ '[INST] ' + (ns.system if loop.last else '') + m.content + '[/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles') }}{% endif %}{% endfor %}"
    )
    return tokenizer, template, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def _unigram() -> tuple[Tokenizer, str, dict[str, Any]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")  # type: ignore[assignment]
    trainer = UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(CORPUS, trainer)
    template = (
        "{{ bos_token }}{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}"
        "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}### Assistant:\n{% endif %}"
    )
    return tokenizer, template, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


FAMILIES: dict[str, Callable[[], tuple[Tokenizer, str, dict[str, Any]]]] = {
    "qwen3": _qwen,
    "llama3": _llama3,
    "gemma": _gemma,
    "phi3": _phi3,
    "mistral": _mistral,
    "unigram": _unigram,
}
LOOKALIKES = {
    "qwen3": ["<|im_end|>", "<|im_start|>", "<|endoftext|>"],
    "llama3": ["<|eot_id|>", "<|begin_of_text|>", "<|reserved_special_token_7|>"],
    "gemma": ["<end_of_turn>", "<start_of_turn>", "<eos>", "<bos>"],
    "phi3": ["<|end|>", "<|user|>", "</s>", "<|assistant|>"],
    "mistral": ["[/INST]", "[INST]", "</s>", "[TOOL_CALLS]"],
    "unigram": ["</s>", "<s>", "<unk>"],
}


def write_family(folder: Path, family: str) -> Path:
    """tokenizer.json and tokenizer_config.json of a family in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, template, names = FAMILIES[family]()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
