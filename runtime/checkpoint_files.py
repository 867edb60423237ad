"""What lies in a checkpoint's folder, before anything opens it: whole, safe, and fitting together.

Reads JSON and the headers of safetensors files by hand (8 bytes of length, then JSON), so that a
folder is judged in milliseconds without MLX, and a damaged one is named before a process starts.
Safetensors only: a pickle can run code when it is read, and so can a Python file that a config asks
for; both are refused.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from runtime.errors import BadInput

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
REMOTE_CODE = ("auto_map", "model_file")
"""Keys of config.json by which a checkpoint brings its own Python (transformers, mlx-lm)."""

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""
LFS_POINTER = b"version https://git-lfs"


class Tensor(Struct, frozen=True):
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes in the file."""
        return self.data_offsets[1] - self.data_offsets[0]


class CheckpointFiles(Struct, frozen=True):
    """A checkpoint folder that was found whole."""

    folder: Path
    config: dict[str, Any]
    shards: tuple[Path, ...]
    tensors: dict[str, Tensor]

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration, which multimodal ones nest."""
        return {**self.config, **self.config.get("text_config", {})}

    @property
    def quantized(self) -> bool:
        """Whether the weights are stored in mlx-lm's quantised form."""
        return bool(self.config.get("quantization") or self.config.get("quantization_config"))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


class _TokenizerModel(Struct):
    vocab: dict[str, int] | list[Any] = field(default_factory=dict)


class _AddedToken(Struct):
    id: int


class _Tokenizer(Struct):
    """As much of tokenizer.json as says which ids there are."""

    model: _TokenizerModel
    added_tokens: list[_AddedToken] = []


class _Index(Struct):
    weight_map: dict[str, str]


def inspect(folder: str | Path) -> CheckpointFiles:
    """The checkpoint in `folder`, judged by its small files and by the headers of its large ones.

    Raises BadInput with one sentence that names the file, what it needs and what it has.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind = "a file" if folder.exists() else "missing"
        raise BadInput(f"{folder}: needs a folder with a checkpoint, but it is {kind}")
    config = _config(folder)
    shards = _shards(folder)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= _header(shard)
    files = CheckpointFiles(folder, config, shards, tensors)
    _check_tokenizer(files)
    return files


def cached(hub_id: str) -> Path | None:
    """The folder of a hub id in this machine's Hugging Face cache, or None; nothing is fetched."""
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
    if not isinstance(config.get("model_type"), str):
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
    largest = _largest_id(tokenizer)
    if largest < 0:
        raise BadInput(f"{path}: needs a vocabulary, it has no tokens")
    if largest >= size:
        raise BadInput(
            f"{path}: the tokenizer has ids up to {largest}, but the model's vocab_size is {size}: "
            "they do not belong together"
        )


def _largest_id(tokenizer: _Tokenizer) -> int:
    vocabulary = tokenizer.model.vocab
    # WordPiece and BPE give each token its id; Unigram lists them in order.
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max([max(ids, default=-1), *(token.id for token in tokenizer.added_tokens)])


def _json(path: Path, kind: Any, what: str) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise BadInput(f"{path.parent}: needs {path.name} ({what}), which is missing") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: not the JSON of {what}: {error}") from None


# ── the weights ──────────────────────────────────────────────────────────────────────────────────


def _shards(folder: Path) -> tuple[Path, ...]:
    """The weights files as mlx-lm finds them (``model*.safetensors``), once the index is served."""
    present = sorted(folder.glob("model*.safetensors"))
    index = folder / INDEX
    if index.exists():
        names = sorted(set(_json(index, _Index, "the list of weights files").weight_map.values()))
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


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors that a safetensors file lists, after checking that it holds all their bytes."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == LFS_POINTER[:8]:
                raise BadInput(f"{path}: a git-lfs pointer, not the weights: run git lfs pull")
            if len(start) < 8 or (8 + length > size and length <= MAX_HEADER_BYTES):
                needed = 8 + length if len(start) == 8 else 8
                raise BadInput(f"{path}: file ends early: needs {needed} bytes, has {size}")
            if length > MAX_HEADER_BYTES:
                raise BadInput(f"{path}: no safetensors file: its header would be {length} bytes")
            raw = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        tensors = {
            name: msgspec.json.decode(entry, type=Tensor) for name, entry in sorted(raw.items())
        }
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: no safetensors file, its header is damaged: {error}") from None
    _check_extent(path, tensors, 8 + length, size)
    return tensors


def _check_extent(path: Path, tensors: dict[str, Tensor], data_start: int, size: int) -> None:
    if not tensors:
        raise BadInput(f"{path}: needs weights, it lists no tensor")
    for name, tensor in tensors.items():
        item = ITEM_BYTES.get(tensor.dtype)
        expected = None if item is None else item * math.prod(tensor.shape)
        if tensor.data_offsets[0] < 0 or expected not in (None, tensor.size_bytes):
            raise BadInput(
                f"{path}: {name} needs {expected} bytes for its shape, the header gives it "
                f"{tensor.size_bytes}: the file is damaged"
            )
    needed = data_start + max(tensor.data_offsets[1] for tensor in tensors.values())
    if size < needed:
        raise BadInput(f"{path}: file ends early: needs {needed} bytes, has {size}")
    if size > needed:
        raise BadInput(f"{path}: needs {needed} bytes, has {size}: the file is damaged")


def fingerprint(files: CheckpointFiles) -> str:
    """A digest of what the checkpoint is: its config, and every tensor's name, kind, shape and place.

    Headers only: it takes milliseconds, and notices another model, not a changed number.
    """
    tensors = sorted((n, t.dtype, t.shape, t.data_offsets) for n, t in files.tensors.items())
    told = json.dumps([files.config, tensors, files.weights_bytes], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
