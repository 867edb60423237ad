"""A checkpoint that is loaded: the only file that imports mlx_lm.

Any dense mlx-lm architecture in the Hugging Face layout, trained whole or by LoRA, on full-precision
or quantised weights. The network is split into its trunk (tokens → hidden states) and its head
(hidden states → logits, with whatever the architecture does there), so that nothing ever has to hold
[tokens, vocabulary]; the split is checked against the unsplit model when it is loaded.

Safetensors only: pickles and code that comes with a checkpoint are refused by
`runtime.checkpoint_files` before anything here opens them.

Shapes: B sequences, T tokens in each, D hidden width, C tokens of a chunk, V vocabulary.
"""

import contextlib
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm import utils as mlx_lm_utils
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

from configs.schema import Full, Lora, Model
from policies.tokens import Tokens
from runtime.checkpoint_copy import copy_small_files
from runtime.checkpoint_files import inspect
from runtime.errors import BadInput
from runtime.keys import derive

Arrays = dict[str, mx.array]
"""Named parameters, flat: {"model.layers.0.mlp.up_proj.weight": array}."""

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
SPLIT_TOLERANCE = 1e-2
"""Largest difference of logits, relative to their size, between the split and the whole model:
generous, because half precision may take another kernel; a wrong split is off by far more."""
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model"]


class Policy:
    """The network, its tokenizer and which of its weights are trained.

    `project(hidden_CD, *head_weights)` is the head as a pure function; `head_weights()` are its
    trained arrays (none where the head is frozen).
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], tokenizer: Tokens, folder: Path):
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.folder = folder
        self.lora: Lora | None = None
        self.recompute = False
        """Gradient checkpointing: blocks keep their inputs and are computed again backwards."""
        self.context_length = context_length(folder)
        self.vocabulary = int(config.get("text_config", config)["vocab_size"])
        self._outer: Any = getattr(model, "language_model", model)
        self._trunk: Any = self._outer.model
        self._base: Arrays | None = None

    # ── forward ──────────────────────────────────────────────────────────────────────────────────

    def hidden(self, tokens_BT: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Hidden states [B, T, D] before the head. Rows are right-padded: attention is causal."""
        if self.recompute and cache is None:
            with _recomputed({type(layer) for layer in self._trunk.layers}):
                return self._trunk(tokens_BT, cache=cache)
        return self._trunk(tokens_BT, cache=cache)

    def project(self, hidden_CD: mx.array, *head_weights: mx.array) -> mx.array:
        """Logits [C, V] of hidden states, through everything that the architecture does there."""
        names = self._head_names() if head_weights else []
        before = [self._parameter(name) for name in names]
        object.__setattr__(self._outer, "model", _Given(self._trunk, hidden_CD[None]))
        try:
            for name, weight in zip(names, head_weights):
                self._assign(name, weight)
            return self._outer(mx.zeros((1, hidden_CD.shape[0]), mx.int32))[0]
        finally:
            object.__delattr__(self._outer, "model")
            for name, weight in zip(names, before):
                self._assign(name, weight)

    def head_weights(self) -> tuple[mx.array, ...]:
        """The trained arrays of the head, in the order that `project` takes them."""
        return tuple(self._parameter(name) for name in self._head_names())

    def layer_count(self) -> int:
        """Blocks of the trunk: one key-value cache each."""
        return len(self._trunk.layers)

    # ── weights ──────────────────────────────────────────────────────────────────────────────────

    def trained(self) -> Arrays:
        """The weights that are trained, sorted by name: the whole network, or the adapters."""
        return flat(self.model.trainable_parameters())

    def load_trained(self, weights: Arrays) -> None:
        """Replace the trained weights. Raises ValueError unless names and shapes are the same."""
        mine = self.trained()
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in weights.items()}:
            odd = sorted(mine.keys() ^ weights.keys()) or ["shapes"]
            raise ValueError(f"weights do not fit this model: {', '.join(odd[:3])}")
        self.model.update(tree_unflatten(list(weights.items())))
        mx.eval(self.model.parameters())

    def remember_reference(self) -> None:
        """Keep the present weights as the reference policy (LoRA needs no copy: adapters go off)."""
        if self.lora is None:
            self._base = self.trained()

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """The model before training, for the time of a `with` block: evaluate what it gives inside."""
        if self.lora is not None:
            layers = [m for _, m in self.model.named_modules() if hasattr(m, "lora_b")]
            scales = [layer.scale for layer in layers]
            for layer in layers:
                layer.scale = 0.0
            try:
                yield
            finally:
                for layer, scale in zip(layers, scales):
                    layer.scale = scale
        else:
            if self._base is None:
                raise RuntimeError("remember_reference() was not called before training")
            now = self.trained()
            self.model.update(tree_unflatten(list(self._base.items())))
            try:
                yield
            finally:
                self.model.update(tree_unflatten(list(now.items())))

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _head_names(self) -> list[str]:
        root = "lm_head" if "lm_head" in self._outer else "model.embed_tokens"
        trained = flat(self._outer.trainable_parameters())
        return [name for name in trained if name.startswith(root + ".")]

    def _parameter(self, name: str) -> mx.array:
        *path, leaf = name.split(".")
        module = self._outer
        for part in path:
            module = module[part]
        return module[leaf]

    def _assign(self, name: str, weight: mx.array) -> None:
        *path, leaf = name.split(".")
        module = self._outer
        for part in path:
            module = module[part]
        module[leaf] = weight


class _Given:
    """Stands where the trunk was and hands out hidden states that are there already."""

    def __init__(self, trunk: Any, hidden_BTD: mx.array) -> None:
        self._trunk = trunk
        self._hidden_BTD = hidden_BTD

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._hidden_BTD

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


@contextlib.contextmanager
def _recomputed(classes: set[type]) -> Iterator[None]:
    """While a graph is built, blocks of these classes keep nothing but their inputs for backwards.

    mlx-lm's own patches the class for good, for every model of that class in the process.
    """
    whole = {cls: cls.__call__ for cls in classes}

    def checkpointed(block: Any, *inputs: Any, **named: Any) -> Any:
        def forward(parameters: Any, *inputs: Any) -> Any:
            block.update(parameters)
            return whole[type(block)](block, *inputs, **named)

        return mx.checkpoint(forward)(block.trainable_parameters(), *inputs)

    for cls in classes:
        cls.__call__ = checkpointed
    try:
        yield
    finally:
        for cls, call in whole.items():
            cls.__call__ = call


# ── loading ──────────────────────────────────────────────────────────────────────────────────────


def locate(path: str) -> Path:
    """The checkpoint's folder: a local one, or a hub id through the local cache.

    Raises BadInput if there is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise BadInput(f"model.path: needs a checkpoint folder or a hub id, {path!r} is neither")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub client raises many kinds; all mean the same to a person
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"model.path: {path!r} is no folder here and could not be had from the hub: {reason}"
        ) from None


def context_length(folder: Path) -> int:
    """How many tokens the checkpoint in `folder` was made for, prompt and answer together."""
    config = json.loads((folder / "config.json").read_bytes())
    text = config.get("text_config", config)
    return int(text.get("max_position_embeddings") or 2**31)


def load_tokens(settings: Model, folder: Path) -> Tokens:
    """The tokenizer alone: no weights are read.

    It stops at each end token of generation_config.json, or else of config.json, and at its own.
    """
    vocabulary = inspect(folder).text_config["vocab_size"]
    try:
        ends = mlx_lm_utils.load_config(folder).get("eos_token_id")
        wrapper = mlx_lm_utils.load_tokenizer(folder, eos_token_ids=ends)
        tokens = Tokens(wrapper, folder, settings.chat_template, settings.system)
    except Exception as error:  # transformers and tokenizers raise bare Exceptions
        raise BadInput(
            f"{folder / 'tokenizer.json'}: no tokenizer could be made of it: {_reason(error)}"
        ) from None
    if not tokens.stop_tokens:
        raise BadInput(f"{folder}: the tokenizer names no end-of-sequence token")
    if beyond := [token for token in sorted(tokens.stop_tokens) if not 0 <= token < vocabulary]:
        raise BadInput(
            f"{folder}: eos_token_id needs ids below vocab_size, {vocabulary}, got {beyond[0]}"
        )
    return tokens


def _reason(error: Exception) -> str:
    """A library's error on one printable line of bounded length: it may repeat a stranger's text."""
    words = " ".join((str(error) or type(error).__name__).split())
    return "".join(letter if letter.isprintable() else "�" for letter in words)[:300]


def load_policy(settings: Model, folder: Path, seed: int) -> Policy:
    """The checkpoint in `folder`, ready to sample from or to train, evaluated on this thread.

    Raises BadInput for one that is damaged, foreign or of an architecture that cannot be split.
    """
    policy, is_quantized = _loaded(settings, folder)
    _make_trainable(policy, settings, is_quantized, seed)
    policy.recompute = settings.gradient_checkpointing
    mx.eval(policy.model.parameters())
    return policy


def _make_trainable(policy: Policy, settings: Model, is_quantized: bool, seed: int) -> None:
    match settings.train:
        case Lora() as lora:
            _add_adapters(policy, lora, seed)
        case Full():
            if is_quantized:
                raise BadInput(
                    'model.train: quantised weights cannot be trained, use name = "lora"'
                )
            policy.model.unfreeze()


def load_frozen(settings: Model, folder: Path) -> Policy:
    """The same of which nothing is trained, whatever `settings.train` says: a teacher, quantised or not."""
    policy, _ = _loaded(settings, folder)
    policy.model.freeze()
    return policy


def check_loads(settings: Model, folder: Path, *, frozen: bool = False) -> Policy:
    """The checkpoint as `load_policy`, or `load_frozen`, would load it, its weights still on disk.

    Raises BadInput for whatever they would refuse but NaN logits. One block of the network is
    computed, on the CPU: another run may hold the GPU, and the whole may not fit beside it.
    """
    with mx.stream(mx.cpu):
        policy, is_quantized = _built(settings, folder)
        if frozen:
            policy.model.freeze()
        else:
            _make_trainable(policy, settings, is_quantized, seed=0)
        _logits(policy)  # of all blocks, without computing them: shapes and types are checked
        layers = policy._trunk.layers
        policy._trunk.layers = layers[:1]
        try:
            _check_split(policy, whole=False)
        finally:
            policy._trunk.layers = layers
    return policy


def _loaded(settings: Model, folder: Path) -> tuple[Policy, bool]:
    """The checkpoint's policy, evaluated, and whether its weights are quantised."""
    policy, is_quantized = _built(settings, folder)
    mx.eval(policy.model.parameters())
    _check_split(policy)
    return policy, is_quantized


def _built(settings: Model, folder: Path) -> tuple[Policy, bool]:
    """The checkpoint's policy, its weights still on disk, and whether they are quantised."""
    files = inspect(folder)
    if settings.dtype != "checkpoint" and files.quantized:
        raise BadInput(f"model.dtype: {folder} is quantised, its dtype cannot be changed")
    try:
        model, config = mlx_lm_utils.load_model(folder, lazy=True)
    except Exception as error:  # an architecture's code, on a config that may say anything
        raise BadInput(f"{folder}: mlx-lm cannot load it: {_reason(error)}") from None
    _check_attention(model, config, folder)
    policy = Policy(model, config, load_tokens(settings, folder), folder)
    if settings.dtype != "checkpoint":
        model.set_dtype(DTYPES[settings.dtype])
    if settings.quantize_bits and not files.quantized:
        _quantize(policy, settings.quantize_bits)
    model.eval()
    return policy, files.quantized or bool(settings.quantize_bits)


def _quantize(policy: Policy, bits: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        group = 64 if policy.config.get("hidden_size", 64) % 64 == 0 else 32
        _, policy.config = mlx_lm_utils.quantize_model(policy.model, policy.config, group, bits)


def _add_adapters(policy: Policy, lora: Lora, seed: int) -> None:
    model = policy.model
    model.freeze()
    count = len(policy._trunk.layers)
    number = count if lora.layers < 0 else min(lora.layers, count)
    config = {"rank": lora.rank, "scale": lora.scale, "dropout": 0.0}
    if lora.modules:
        config["keys"] = lora.modules
    if number:
        linear_to_lora_layers(policy._outer, number, config)
    adapters = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_a")]
    if not adapters:
        raise BadInput(f"model.train.modules: none of {lora.modules} is in this model's blocks")
    for name, module in sorted(adapters):
        bound = 1 / math.sqrt(module.lora_a.shape[0])
        key = mx.array(
            [derive(seed, "lora", name, half) & 0xFFFFFFFF for half in (0, 1)], mx.uint32
        )
        module.lora_a = mx.random.uniform(-bound, bound, module.lora_a.shape, key=key)
        module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)
    policy.lora = lora


def _check_attention(model: nn.Module, config: dict[str, Any], folder: Path) -> None:
    trunk = getattr(getattr(model, "language_model", model), "model", None)
    caches = make_prompt_cache(model)
    attends = all(isinstance(c, KVCache | RotatingKVCache) for c in caches)
    if not attends or len(getattr(trunk, "layers", ())) != len(caches):
        raise BadInput(
            f"{folder}: {config.get('model_type', '?')} is not a dense attention model with one "
            "key-value cache a layer, which Pippin needs"
        )


def _logits(policy: Policy) -> tuple[mx.array, mx.array]:
    """Logits of four tokens by the whole model and by its parts, not computed yet."""
    tokens = mx.array([[1, 2, 3, 1]]) % policy.vocabulary
    try:
        unsplit = policy.model(tokens)[0].astype(mx.float32)
        split = policy.project(policy.hidden(tokens)[0]).astype(mx.float32)
    except Exception as error:  # an architecture's code, on a config that may say anything
        raise BadInput(f"{policy.folder}: mlx-lm cannot run it: {_reason(error)}") from None
    return unsplit, split


def _check_split(policy: Policy, *, whole: bool = True) -> None:
    kind = policy.config.get("model_type", "?")
    try:
        unsplit, split = _logits(policy)
    except BadInput:
        if not whole:
            return  # one block alone is no network of this architecture: loading will tell
        raise
    gap, size = number(mx.abs(unsplit - split).max()), number(mx.abs(unsplit).max())
    if not math.isfinite(size):
        if not whole:
            return
        raise BadInput(f"{policy.folder}: its weights give NaN or infinite logits")
    if not gap <= SPLIT_TOLERANCE * max(size, 1e-6):
        raise BadInput(
            f"{policy.folder}: {kind} cannot be split into trunk and head (off by {gap:.3g})"
        )


def causal_mask(length: int, window: int | None) -> mx.array | str:
    """The mask of a prompt from position 0: the word that fused attention takes, or a window's."""
    if window is None or length <= window:
        return "causal"
    return create_causal_mask(length, window_size=window)


# ── making and saving ───────────────────────────────────────────────────────────────────────────────────────


def create_checkpoint(folder: Path, config: dict[str, Any], seed: int) -> None:
    """A random network of any mlx-lm architecture, in the Hugging Face layout (no tokenizer).

    Matrices are normal with deviation 0.02 (GPT-2's), from explicit keys; norms stay as they are
    created. A "quantization" entry {group_size, bits} in `config` quantises it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_class, arguments_class = mlx_lm_utils._get_classes(config)
    model = model_class(arguments_class.from_dict(config))
    drawn = []
    for name, array in flat(model.parameters()).items():
        if array.ndim > 1:
            key = mx.array([derive(seed, name, half) & 0xFFFFFFFF for half in (0, 1)], mx.uint32)
            drawn.append((name, 0.02 * mx.random.normal(array.shape, key=key)))
    model.update(tree_unflatten(drawn))
    if quantization := config.get("quantization"):
        nn.quantize(model, quantization["group_size"], quantization["bits"])
    if config.get("tie_word_embeddings") and "lm_head" in model:
        model.pop("lm_head")
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        flat(model.parameters()),
        {"format": "mlx"},
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def save_adapters(policy: Policy, folder: Path) -> None:
    """The adapters in mlx-lm's own format: what ``mlx_lm.generate --adapter-path`` takes."""
    lora = policy.lora
    if lora is None:
        raise BadInput("--adapters: this run trained every weight, it has no adapters")
    folder.mkdir(parents=True, exist_ok=True)
    parameters: dict[str, Any] = {"rank": lora.rank, "scale": lora.scale, "dropout": 0.0}
    if lora.modules:
        parameters["keys"] = lora.modules
    count = len(policy._trunk.layers)
    config = {
        "fine_tune_type": "lora",
        "num_layers": count if lora.layers < 0 else min(lora.layers, count),
        "lora_parameters": parameters,
        "model": str(policy.folder),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    mx.save_safetensors(str(folder / "adapters.safetensors"), policy.trained(), {"format": "mlx"})


def save_checkpoint(policy: Policy, folder: Path, *, dequantize: bool = False) -> None:
    """The whole model in the Hugging Face layout, adapters fused into their base."""
    folder.mkdir(parents=True, exist_ok=True)
    fused = [
        (name, module.fuse(dequantize=dequantize))
        for name, module in policy.model.named_modules()
        if hasattr(module, "fuse") and hasattr(module, "lora_a")
    ]
    if fused:
        policy.model.update_modules(tree_unflatten(fused))
        policy.lora = None
    if dequantize:
        policy.model = mlx_lm_utils.dequantize_model(policy.model)
        policy.config = {k: v for k, v in policy.config.items() if not k.startswith("quantiz")}
    mlx_lm_utils.save_model(folder, policy.model)
    mlx_lm_utils.save_config(dict(policy.config), folder / "config.json")
    copy_small_files(policy.folder, folder)


def parameter_count(policy: Policy) -> int:
    """Weights of the network; adapters, which an export fuses into it, are not counted."""
    return int(mlx_lm_utils.get_total_parameters(policy.model))


def weights_bytes(policy: Policy) -> int:
    """What they take in memory, and in an exported checkpoint."""
    parameters = flat(policy.model.parameters())
    own = (a for name, a in parameters.items() if not name.endswith((".lora_a", ".lora_b")))
    return sum(array.nbytes for array in own)


def flat(tree: Any) -> Arrays:
    """A tree of arrays by dotted name, sorted."""
    leaves: Any = tree_flatten(tree)
    return dict(sorted(leaves))


def number(scalar: mx.array) -> float:
    """The value of an array of one real element."""
    return float(scalar.item())  # type: ignore[arg-type]
