"""Checks that a checkpoint's folder is whole, safe and consistent before any library opens it.

It reads JSON and the headers of safetensors files by hand, so that a folder is checked in milliseconds
without MLX, and a damaged one is reported before a process starts. Only safetensors are accepted: a pickle
can run code when it is read, and so can a Python file that a config refers to; both are refused.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from runtime.checkpoint_copy import check_small_files, check_weights, opened
from runtime.checkpoint_sizes import check_sizes
from runtime.errors import BadInput
from runtime.safetensors_header import Tensor, read_header
from runtime.tokenizer_growth import check_growth

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model[\w.-]*\.safetensors")
"""Matches the names of weights files that mlx-lm reads, without a folder."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
REMOTE_CODE = ("auto_map", "model_file")
"""Keys of config.json that refer to a checkpoint's own Python code (transformers, mlx-lm)."""

MAX_SPECIAL_TOKENS = 20_000
"""Largest number of added tokens, since each one is searched for in every text."""
MAX_TOKEN_CHARACTERS = 4_096


class CheckpointFiles(Struct, frozen=True):
    """A checkpoint folder that passed the checks."""

    folder: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    tensors: dict[str, Tensor]

    @property
    def text_config(self) -> dict[str, Any]:
        """Returns the language model's configuration, which multimodal checkpoints nest."""
        return {**self.config, **self.config.get("text_config", {})}

    @property
    def quantized(self) -> bool:
        """Returns whether the weights are stored in mlx-lm's quantised form."""
        return bool(self.config.get("quantization") or self.config.get("quantization_config"))

    @property
    def weights_bytes(self) -> int:
        """Returns the size of all tensors in bytes."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


class _TokenizerModel(Struct):
    vocab: dict[str, int] | list[Any] = field(default_factory=dict)


class _AddedToken(Struct):
    id: int
    content: str = ""


class _Tokenizer(Struct):
    """The fields of tokenizer.json that contain token ids."""

    model: _TokenizerModel
    added_tokens: list[_AddedToken] = []


class _Index(Struct):
    weight_map: dict[str, str]


def inspect(folder: str | Path) -> CheckpointFiles:
    """Returns the checkpoint in `folder` after checking its small files and the headers of its weights.

    Raises BadInput with one sentence that names the file, what it needs and what it has.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "missing"
        raise BadInput(f"{folder}: needs a folder with a checkpoint, but it is {kind}")
    check_small_files(folder)
    config = _config(folder)
    shards = _shards(folder)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        listed = read_header(shard)
        if twice := tensors.keys() & listed.keys():
            raise BadInput(f"{shard}: {min(twice)} is in another weights file too; needs it once")
        tensors |= listed
    files = CheckpointFiles(folder, config, shards, tensors)
    _check_index(files)
    _check_tokenizer(files)
    check_sizes(folder / "config.json", files.text_config, tensors, files.quantized)
    return files


def cached(hub_id: str) -> Path | None:
    """Returns the folder of a hub id in this machine's Hugging Face cache, or None; downloads nothing."""
    home = os.environ.get("HF_HOME") or Path(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    folder = repository / "snapshots" / revision
    return folder if revision and (folder / "config.json").exists() else None


# ── the small files ──────────────────────────────────────────────────────────────────────────────


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    config = _json(path, dict[str, Any], "the model's settings")
    for key in REMOTE_CODE:
        if key in config:
            raise BadInput(
                f"{path}: {key} asks for Python code that comes with the checkpoint, which "
                "Pippin does not run; needs an architecture that mlx-lm has itself"
            )
    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"\w[\w.-]{0,99}", kind):
        raise BadInput(f"{path}: needs a model_type, a text that names the architecture")
    if not isinstance(config.get("text_config", {}), dict):
        raise BadInput(f"{path}: text_config needs an object")
    return config


def _check_tokenizer(files: CheckpointFiles) -> None:
    path = files.folder / "tokenizer.json"
    settings = files.folder / "tokenizer_config.json"
    if settings.exists() and "auto_map" in _json(
        settings, dict[str, Any], "a tokenizer's settings"
    ):
        raise BadInput(
            f"{settings}: auto_map asks for Python code that comes with the checkpoint, "
            "which Pippin does not run"
        )
    tokenizer = _json(path, _Tokenizer, "the tokenizer")
    size = files.text_config.get("vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise BadInput(
            f"{files.folder / 'config.json'}: vocab_size needs an integer ≥ 1, got {size}"
        )
    _check_added(path, tokenizer.added_tokens)
    check_growth(path, _json(path, dict[str, Any], "the tokenizer"))
    largest = _largest_id(tokenizer)
    if largest < 0:
        raise BadInput(f"{path}: needs a vocabulary, it has no tokens")
    if largest >= size:
        raise BadInput(
            f"{path}: the tokenizer has ids up to {largest}, but the model's vocab_size is {size}: "
            "they do not belong together"
        )


def _check_added(path: Path, added: list[_AddedToken]) -> None:
    if len(added) > MAX_SPECIAL_TOKENS:
        raise BadInput(
            f"{path}: needs at most {MAX_SPECIAL_TOKENS:,} added tokens, has {len(added):,}"
        )
    for token in added:
        if not 0 < len(token.content) <= MAX_TOKEN_CHARACTERS or token.id < 0:
            raise BadInput(
                f"{path}: the added token of id {token.id} needs a text of 1 to "
                f"{MAX_TOKEN_CHARACTERS:,} characters and an id ≥ 0, has {len(token.content):,} characters"
            )


def _largest_id(tokenizer: _Tokenizer) -> int:
    vocabulary = tokenizer.model.vocab
    # WordPiece and BPE give each token its id; Unigram lists them in order.
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([max(ids, default=-1), *(token.id for token in tokenizer.added_tokens)])


def _json(path: Path, kind: Any, what: str) -> Any:
    try:
        with opened(path) as file:
            return msgspec.json.decode(file.read(), type=kind)
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: needs {path.name} ({what}), which is missing") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: not the JSON of {what}: {error}") from None


# ── the weights ──────────────────────────────────────────────────────────────────────────────────


def _shards(folder: Path) -> tuple[Path, ...]:
    """Returns the weights files that mlx-lm reads (``model*.safetensors``), with all that the index names."""
    present = sorted(folder.glob("model*.safetensors"))
    for path in present:
        check_weights(path)
    index = folder / INDEX
    if index.exists():
        names = sorted(set(_json(index, _Index, "the list of weights files").weight_map.values()))
        for name in names:
            if not SHARD.fullmatch(name):
                raise BadInput(
                    f"{index}: weight_map needs names such as model-00001-of-00002.safetensors, "
                    f"got {name[:100]!r}"
                )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise BadInput(
                f"{index}: names {len(names)} weights files, of which {len(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing: {', '.join(missing[:5])}"
            )
    if present:
        return tuple(present)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        raise BadInput(
            f"{folder / pickles[0]}: a pickle, which can run code when it is read; needs "
            "model.safetensors: convert the checkpoint first"
        )
    other = sorted(p.name for p in folder.glob("*.safetensors"))
    has = f", it has {', '.join(other[:3])}" if other else ""
    raise BadInput(f"{folder}: needs model.safetensors (the weights), which is missing{has}")


def _check_index(files: CheckpointFiles) -> None:
    index = files.folder / INDEX
    if not index.exists():
        return
    listed = _json(index, _Index, "the list of weights files").weight_map
    missing = sorted(listed.keys() - files.tensors.keys())
    if missing:
        raise BadInput(
            f"{index}: names {len(listed)} tensors, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} in no weights file: {', '.join(missing[:3])[:200]}"
        )


def fingerprint(files: CheckpointFiles) -> str:
    """Returns a digest of the checkpoint's config, and of every tensor's name, dtype, shape and offsets.

    It reads headers only, which takes milliseconds, so it detects another model but not a changed weight.
    """
    tensors = sorted((n, t.dtype, t.shape, t.data_offsets) for n, t in files.tensors.items())
    summary = json.dumps([files.config, tensors, files.weights_bytes], sort_keys=True)
    return hashlib.sha256(summary.encode()).hexdigest()
