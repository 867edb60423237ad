import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.checkpoint_files import INDEX, cached, inspect
from runtime.errors import BadInput


def weights(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A safetensors file of zeros: name → (dtype, shape, bytes)."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "mlx"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(at)


def tokenizer(ids: int, added: list[int] | None = None) -> dict[str, Any]:
    return {
        "model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(ids)}, "merges": []},
        "added_tokens": [{"id": i, "content": f"<{i}>"} for i in added or []],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that is as it should be."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 8}))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(6, [6, 7])))
    (folder / "model.safetensors").write_bytes(
        weights({"a.weight": ("F32", [2, 3], 24), "b.weight": ("BF16", [4], 8)})
    )
    return folder


def complaint(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        inspect(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "model")


def test_a_whole_checkpoint_is_described(folder: Path) -> None:
    files = inspect(folder)
    assert files.config["model_type"] == "qwen3"
    assert files.shards == (folder / "model.safetensors",)
    assert files.tensors["a.weight"].shape == (2, 3)
    assert files.tensors["b.weight"].size_bytes == 8
    assert files.weights_bytes == 32
    assert not files.quantized


def test_it_reads_what_safetensors_and_mlx_lm_write(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros((3, 5), np.float16)}, folder / "model.safetensors")
    assert inspect(folder).tensors["x"].size_bytes == 30


def test_a_nested_configuration_is_the_text_model_s(folder: Path) -> None:
    config = {"model_type": "gemma3", "text_config": {"vocab_size": 8}, "quantization": {"bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    files = inspect(folder)
    assert files.text_config["vocab_size"] == 8
    assert files.quantized


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    assert complaint(tmp_path / "none") == "model: needs a folder with a checkpoint, " \
        "but it is missing"  # fmt: skip
    (tmp_path / "file").write_text("")
    assert complaint(tmp_path / "file").endswith("but it is a file")


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: Any) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return lambda folder: void((folder / name).write_bytes(data))


def only(name: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / "model.safetensors").rename(folder / name))


def void(_: object) -> None: ...


GOOD = weights({"a": ("F32", [4], 16)})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("config.json"), "model: needs config.json (the model's settings), which is miss"),
        (write("config.json", b"{"), "model/config.json: not the JSON of the model's settings: "),
        (write("config.json", [1]), "model/config.json: not the JSON of the model's settings: "),
        (write("config.json", {"vocab_size": 8}), "model/config.json: needs a model_type"),
        (
            write("config.json", {"model_type": "x", "vocab_size": 8, "auto_map": {}}),
            "model/config.json: auto_map asks for Python code that comes with the checkpoint",
        ),
        (
            write("config.json", {"model_type": "x", "vocab_size": 8, "model_file": "m.py"}),
            "model/config.json: model_file asks for Python code",
        ),
        (
            write("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["t.py", None]}}),
            "model/tokenizer_config.json: auto_map asks for Python code",
        ),
        (remove("tokenizer.json"), "model: needs tokenizer.json (the tokenizer), which is missing"),
        (write("tokenizer.json", b"\xff"), "model/tokenizer.json: not the JSON of the tokenizer: "),
        (write("tokenizer.json", {"model": {}}), "model/tokenizer.json: needs a vocabulary"),
        (
            write("tokenizer.json", tokenizer(9)),
            "model/tokenizer.json: the tokenizer has ids up to 8, but the model's vocab_size is 8",
        ),
        (
            write("tokenizer.json", tokenizer(6, [11])),
            "model/tokenizer.json: the tokenizer has ids up to 11, but the model's vocab_size is 8",
        ),
        (
            write("tokenizer.json", {"model": {"vocab": [["a", -1.0]] * 9}}),
            "model/tokenizer.json: the tokenizer has ids up to 8, but",
        ),
        (
            write("config.json", {"model_type": "qwen3"}),
            "model/config.json: vocab_size needs an integer ≥ 1, got None",
        ),
        (
            remove("model.safetensors"),
            "model: needs model.safetensors (the weights), which is missing",
        ),
        (
            only("pytorch_model.bin"),
            "model/pytorch_model.bin: a pickle, which can run code when it is read; needs "
            "model.safetensors",
        ),
        (only("consolidated.pt"), "model/consolidated.pt: a pickle"),
        (
            only("adapters.safetensors"),
            "model: needs model.safetensors (the weights), which is missing, it has adapters.safe",
        ),
        (
            write("model.safetensors", GOOD[:-1]),
            f"model/model.safetensors: file ends early: needs {len(GOOD)} bytes, "
            f"has {len(GOOD) - 1}",
        ),
        (
            write("model.safetensors", GOOD[:20]),
            f"model/model.safetensors: file ends early: needs {len(GOOD) - 16} bytes, has 20",
        ),
        (
            write("model.safetensors", b"abc"),
            "model/model.safetensors: file ends early: needs 8 bytes, has 3",
        ),
        (
            write("model.safetensors", b""),
            "model/model.safetensors: file ends early: needs 8 bytes, has 0",
        ),
        (
            write("model.safetensors", GOOD + b"x"),
            f"model/model.safetensors: needs {len(GOOD)} bytes, has {len(GOOD) + 1}",
        ),
        (
            write("model.safetensors", b"version https://git-lfs spec"),
            "model/model.safetensors: a git-lfs pointer",
        ),
        (
            write("model.safetensors", b"PK\x03\x04 this is a zip file, not weights"),
            "model/model.safetensors: no safetensors file: its header would be",
        ),
        (
            write("model.safetensors", (4).to_bytes(8, "little") + b"{...."),
            "model/model.safetensors: no safetensors file, its header is damaged: ",
        ),
        (
            write("model.safetensors", weights({})),
            "model/model.safetensors: needs weights, it lists no tensor",
        ),
        (
            write("model.safetensors", weights({"a": ("F32", [4], 12)})),
            "model/model.safetensors: a needs 16 bytes for its shape, the header gives it 12",
        ),
        (
            write(INDEX, {"weight_map": {"a": "model-1.safetensors", "b": "model.safetensors"}}),
            f"model/{INDEX}: names 2 weights files, of which 1 is missing: model-1.safetensors",
        ),
        (write(INDEX, {}), f"model/{INDEX}: not the JSON of the list of weights files: "),
    ],
)
def test_damage_is_one_sentence_with_file_needed_and_came(
    folder: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    damage(folder)
    assert complaint(folder).startswith(sentence)


def test_an_index_leads_to_all_its_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = ["model-1.safetensors", "model-2.safetensors"]
    for name in names:
        (folder / name).write_bytes(weights({f"{name}.w": ("F32", [4], 16)}))
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"{n}.w": n for n in names}}))
    assert inspect(folder).shards == tuple(folder / name for name in names)
    (folder / names[1]).write_bytes(b"short")
    assert "model-2.safetensors: file ends early" in complaint(folder)


def test_a_hub_id_is_found_in_the_local_cache_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert cached("org/name") is None
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc\n")
    assert cached("org/name") is None
    (snapshot / "config.json").write_text("{}")
    assert cached("org/name") == snapshot
