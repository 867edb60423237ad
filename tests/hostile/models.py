"""Some two hundred checkpoints as a stranger might send them: one good one, and what was done to it."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policies.characters import write_tokenizer
from policies.random_checkpoint import create_checkpoint
from tests.policies.checkpoints import config

Attack = Callable[[Path], object]
WEIGHTS = "model.safetensors"
EMBEDDING = "model.embed_tokens.weight"
BILLION = 10**9


def write_good(folder: Path) -> Path:
    """One layer of width 64, which `pippin check` and a launch take."""
    create_checkpoint(folder, config("qwen3", num_hidden_layers=1), seed=1)
    write_tokenizer(folder)
    return folder


# ── tools ────────────────────────────────────────────────────────────────────────────────────────


def edited(name: str, **changes: Any) -> Attack:
    """A JSON file with other values; ... removes a key."""

    def attack(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not ...}
        (folder / name).write_text(json.dumps(kept))

    return attack


def written(name: str, content: bytes) -> Attack:
    return lambda folder: (folder / name).write_bytes(content)


def linked(name: str, target: str) -> Attack:
    def attack(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return attack


def replaced(name: str, make: Callable[[Path], object]) -> Attack:
    def attack(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return attack


def grown(name: str, size: int) -> Attack:
    """A sparse file: its size is told, its bytes are nowhere."""

    def attack(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return attack


def header(change: Callable[[dict[str, Any]], object]) -> Attack:
    """Another header of the weights file in front of the same bytes."""

    def attack(folder: Path) -> None:
        raw = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        listed = json.loads(raw[8 : 8 + length])
        change(listed)
        text = json.dumps(listed).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return attack


def tensor(**changes: Any) -> Attack:
    return header(lambda listed: listed[EMBEDDING].update(changes))


def index(weight_map: Any) -> Attack:
    return written(f"{WEIGHTS}.index.json", json.dumps({"weight_map": weight_map}).encode())


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Attack:
    def attack(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return attack


def numbers(value: float) -> Attack:
    """One weight of the embedding is this."""

    def attack(folder: Path) -> None:
        raw = bytearray((folder / WEIGHTS).read_bytes())
        (length,) = struct.unpack("<Q", raw[:8])
        at = 8 + length + json.loads(raw[8 : 8 + length])[EMBEDDING]["data_offsets"][0]
        raw[at : at + 4] = struct.pack("<f", value)
        (folder / WEIGHTS).write_bytes(raw)

    return attack


def renamed(old: str, new: str) -> Attack:
    return header(lambda listed: listed.update({new: listed.pop(old)}))


def _swap(listed: dict[str, Any]) -> None:
    """Two tensors in one place, another place in none."""
    first, second = sorted(name for name in listed if name.endswith("layernorm.weight"))[:2]
    listed[first]["data_offsets"] = listed[second]["data_offsets"]


# ── the attacks ──────────────────────────────────────────────────────────────────────────────────

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings",
)  # fmt: skip
SMALL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
READ_TOO = ("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "vocab.json")


def attacks() -> dict[str, Attack]:
    """By name. Each either is refused with one sentence or works."""
    found: dict[str, Attack] = {}
    for key in SIZES:
        for value in (-1, 0, BILLION, 2**70, 1e308, "64", None, [64], True):
            found[f"config.json: {key} = {value!r:.20}"] = edited("config.json", **{key: value})
    for name in (*SMALL_FILES, *READ_TOO):
        found[f"{name} is a pipe"] = replaced(name, os.mkfifo)
        found[f"{name} leads to /dev/zero"] = linked(name, "/dev/zero")
        found[f"{name} leads to a key"] = linked(name, "../key")
        found[f"{name} leads to itself"] = linked(name, name)
        found[f"{name} is a folder"] = replaced(name, Path.mkdir)
        found[f"{name} has a terabyte"] = grown(name, 1 << 40)
    for name in SMALL_FILES:
        found[f"{name} is empty"] = written(name, b"")
        found[f"{name} is deep"] = written(name, b"[" * 100_000)
        found[f"{name} is no UTF-8"] = written(name, b'{"model_type": "\xff\xfe"}')
        found[f"{name} is a list"] = written(name, b"[1, 2, 3]")
    found |= _of_weights() | _of_indexes() | _of_configs() | _of_tokenizers()
    return found


def _of_weights() -> dict[str, Attack]:
    huge = [[2**31, 2**31, 2**31], [-128, -64], [128, 64, 1, 1, 1, 1, 1, 1, 1, 1], [], [128.5, 64]]
    return {
        "weights are a pipe": replaced(WEIGHTS, os.mkfifo),
        "weights lead to /dev/zero": linked(WEIGHTS, "/dev/zero"),
        "weights lead to a key": linked(WEIGHTS, "../key"),
        "weights lead nowhere": linked(WEIGHTS, "nowhere"),
        "weights are a folder": replaced(WEIGHTS, Path.mkdir),
        "weights have a terabyte": grown(WEIGHTS, 1 << 40),
        "weights are cut": lambda folder: os.truncate(folder / WEIGHTS, 9_000),
        "weights are all header": written(WEIGHTS, struct.pack("<Q", 2**63)),
        "a header of 99 MB": written(WEIGHTS, struct.pack("<Q", 99_000_000) + b"{}"),
        "a header that is deep": written(WEIGHTS, struct.pack("<Q", 90_000) + b'{"a":' * 18_000),
        "two tensors share bytes": header(_swap),
        "a tensor is missing": header(lambda listed: listed.pop("model.norm.weight")),
        "a tensor too many": renamed("model.norm.weight", "model.norm.bias"),
        "a name with control characters": renamed("model.norm.weight", "\x1b[2J\n\0"),
        "a name of a megabyte": renamed("model.norm.weight", "x" * 1_000_000),
        "a second layer that is not there": renamed(
            "model.layers.0.self_attn.q_proj.weight", "model.layers.99999999999.q.weight"
        ),
        "NaN": numbers(float("nan")),
        "infinity": numbers(float("inf")),
        **{f"shape {shape}": tensor(shape=shape) for shape in huge},
        **{f"dtype {d}": tensor(dtype=d) for d in ("I32", "U32", "F64", "F4", "BOOL", "", "x" * 999)},
        "offsets backwards": tensor(data_offsets=[32768, 0]),
        "offsets below zero": tensor(data_offsets=[-32768, 0]),
        "offsets beyond": tensor(data_offsets=[2**62, 2**62 + 32768]),
        "a second weights file with the same": lambda folder: (folder / "model-2.safetensors").write_bytes(
            (folder / WEIGHTS).read_bytes()
        ),
        "a pickle instead": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
    }  # fmt: skip


def _of_indexes() -> dict[str, Attack]:
    names = (
        "../key", "/etc/passwd", "a/../../key", "..", "", "model.safetensors\0", "/dev/zero",
        "x" * 5_000, "model.bin", "C:\\model.safetensors", "./model.safetensors", "\u202e",
    )  # fmt: skip
    found: dict[str, Attack] = {f"weight_map to {n!r:.25}": index({EMBEDDING: n}) for n in names}
    return found | {
        "weight_map with a tensor that is in no file": index({"nothing": WEIGHTS}),
        "weight_map is a list": index([EMBEDDING]),
        "weight_map of numbers": index({EMBEDDING: 1}),
        "an index that is a pipe": replaced(f"{WEIGHTS}.index.json", os.mkfifo),
    }


def _of_configs() -> dict[str, Attack]:
    kinds = ("mamba", "nothing", "../x", "os", "", "x" * 9_999, "rwkv7", "\x1b[2J", 5, "bert")
    other: dict[str, dict[str, Any]] = {
        "auto_map": {"auto_map": {"AutoModel": "evil.Model"}},
        "model_file": {"model_file": "evil.py"},
        "text_config is a list": {"text_config": [1]},
        "rope_scaling is a text": {"rope_scaling": "linear"},
        "rope_scaling of nothing": {"rope_scaling": {"type": "nothing", "factor": -1}},
        "rope_theta is a text": {"rope_theta": "x"},
        "rms_norm_eps is a text": {"rms_norm_eps": "x"},
        "quantization of 3.5 bits": {"quantization": {"group_size": 64, "bits": 3.5}},
        "quantization of nothing": {"quantization": {"group_size": 0, "bits": 0}},
        "quantization is a text": {"quantization": "4bit"},
        "quantization_config unknown": {"quantization_config": {"quant_method": "nothing"}},
        "quantization_config empty": {"quantization_config": {"bits": 4}},
        "tie_word_embeddings is not so": {"tie_word_embeddings": False},
        "a megabyte of text": {"_name_or_path": "x" * 1_000_000},
        "an eos that is no token": {"eos_token_id": "end"},
        "an eos beyond": {"eos_token_id": 2**40},
    }
    return {
        **{f"model_type {kind!r:.20}": edited("config.json", model_type=kind) for kind in kinds},
        **{f"config: {name}": edited("config.json", **change) for name, change in other.items()},
        "eos ids that are lists": edited("generation_config.json", eos_token_id=[[1], "x"]),
        "no eos": lambda folder: (
            edited("generation_config.json", eos_token_id=...)(folder),
            edited("tokenizer_config.json", eos_token=...)(folder),
        ),
    }


def _of_tokenizers() -> dict[str, Attack]:
    def added(count: int, text: str = "<a{}>") -> Attack:
        new = [{"id": 5, "content": text.format(i), "special": True, "single_word": False,
                "lstrip": False, "rstrip": False, "normalized": False} for i in range(count)]  # fmt: skip
        return tokenizer(lambda content: content["added_tokens"].extend(new))

    def normal(**kind: Any) -> Attack:
        return tokenizer(lambda content: content.update(normalizer=kind))

    expand = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1_000_000}
    doubling = [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"}] * 8
    template = "tokenizer_config.json"
    forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    return {
        "99,999 added tokens": added(99_999),
        "an added token of a megabyte": added(1, "x" * 1_000_000),
        "an added token of nothing": added(1, ""),
        "each letter a special token": tokenizer(
            lambda c: c["added_tokens"].extend(
                [dict(c["added_tokens"][0], content=chr(i), id=i - 26) for i in range(33, 120)]
            )
        ),
        "a letter becomes a million": normal(**expand),
        "a letter becomes a hundred million": normal(type="Sequence", normalizers=doubling),
        "a normalizer of nothing": normal(type="Nothing"),
        "a regex that takes for ever": normal(
            type="Replace", pattern={"Regex": "(a|aa|a.)*(b|a*)*c"}, content=""
        ),
        "no model": tokenizer(lambda content: content.pop("model")),
        "a model of nothing": tokenizer(lambda content: content["model"].update(type="Nothing")),
        "merges of nothing": tokenizer(lambda c: c["model"].update(merges=[["q", "zz"]])),
        "ids below zero": tokenizer(lambda c: c["model"]["vocab"].update(a=-5)),
        "ids beyond": tokenizer(lambda c: c["model"]["vocab"].update(a=2**33)),
        "tokenizer auto_map": edited(template, auto_map={"AutoTokenizer": ["evil.T", None]}),
        "tokenizer of no class": edited(template, tokenizer_class="os.system"),
        "a chat_template_type of nothing": edited(template, chat_template_type="../../evil"),
        "a tool_parser_type of nothing": edited(template, tool_parser_type="os"),
        "a template that loops for ever": edited(template, chat_template=forever),
        "a template that raises": edited(template, chat_template="{{ raise_exception('no') }}"),
        "a template that prints megabytes": edited(
            template, chat_template="{% for a in range(99999) %}0123456789{% endfor %}"
        ),
        "a template that does not compile": edited(template, chat_template="{% if %}"),
        "a template that is a list": edited(template, chat_template=[1, 2]),
        "a template of two megabytes": edited(template, chat_template="x" * 2_000_000),
        "a template with powers": edited(template, chat_template="{{ 9 ** (9 ** (9 ** 9)) }}"),
        "a template that prints nothing": edited(template, chat_template="{{ '' }}"),
    }  # fmt: skip
