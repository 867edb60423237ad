"""A loaded network, split into its trunk (tokens → hidden states) and its head (hidden states → logits).

Because of the split no array [tokens, vocabulary] is needed. The head includes everything that the
architecture does after the trunk. `policies.load` checks the split against the unsplit model. The adapter
decides which weights are trained (`policies.adapters`).

Shapes: B sequences, T tokens in each, D hidden width, C tokens of a chunk, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from policies.adapters.registry import Adapter
from policies.arrays import Arrays, flat, unflat
from policies.mlx_lm_port import language_model
from policies.tokens import Tokens


class Policy:
    """The network, its tokenizer and which of its weights are trained.

    `project(hidden_CD, *head_weights)` is the head as a pure function; `head_weights()` returns its
    trained arrays (none if the head is frozen).
    """

    def __init__(
        self,
        model: nn.Module,
        config: dict[str, Any],
        tokenizer: Tokens,
        folder: Path,
        context_length: int,
    ) -> None:
        self.model = model
        self.config = config
        self.tokenizer = tokenizer
        self.folder = folder
        self.adapter: Adapter | None = None
        """The adapter; None for a teacher, of which nothing is trained."""
        self.recompute = False
        """True for gradient checkpointing: the backward pass computes each block again from its inputs."""
        self.context_length = context_length
        self.vocabulary = int(config.get("text_config", config)["vocab_size"])
        self._outer = language_model(model)
        self._trunk: Any = self._outer.model

    # ── forward ──────────────────────────────────────────────────────────────────────────────────

    def hidden(self, tokens_BT: mx.array, cache: list[Any] | None = None) -> mx.array:
        """Returns hidden states [B, T, D] before the head. Rows are right-padded, attention is causal."""
        if self.recompute and cache is None:
            with _recomputed({type(layer) for layer in self._trunk.layers}):
                return self._trunk(tokens_BT, cache=cache)
        return self._trunk(tokens_BT, cache=cache)

    def project(self, hidden_CD: mx.array, *head_weights: mx.array) -> mx.array:
        """Returns the logits [C, V] of hidden states, with all that the architecture does after the trunk."""
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
        """Returns the trained arrays of the head, in the order of `project`'s arguments."""
        return tuple(self._parameter(name) for name in self._head_names())

    @contextlib.contextmanager
    def first_block_alone(self) -> Iterator[None]:
        """Reduces the network to its first block for a `with` block."""
        layers = self._trunk.layers
        self._trunk.layers = layers[:1]
        try:
            yield
        finally:
            self._trunk.layers = layers

    def layer_count(self) -> int:
        """Returns the number of blocks of the trunk, each of which has one key-value cache."""
        return len(self._trunk.layers)

    # ── weights ──────────────────────────────────────────────────────────────────────────────────

    def trained(self) -> Arrays:
        """Returns the trained weights, sorted by name: those of the whole network, or of an adapter."""
        return flat(self.model.trainable_parameters())

    def load_trained(self, weights: Arrays) -> None:
        """Replaces the trained weights. Raises ValueError unless names and shapes are the same."""
        expected = self.trained()
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in weights.items()}:
            odd = sorted(expected.keys() ^ weights.keys()) or ["shapes"]
            raise ValueError(f"weights do not fit this model: {', '.join(odd[:3])}")
        self.model.update(unflat(weights))
        mx.eval(self.model.parameters())

    def remember_reference(self) -> None:
        """Keeps what the reference policy needs; it is called before the first step."""
        self._attached().remember_reference(self.model)

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        """Puts the model before training into place for a `with` block; evaluate its results inside."""
        with self._attached().reference(self.model):
            yield

    # ── inside ───────────────────────────────────────────────────────────────────────────────────

    def _attached(self) -> Adapter:
        if self.adapter is None:
            raise RuntimeError("this policy is not trained, so it has no reference")
        return self.adapter

    def _head_names(self) -> list[str]:
        root = "lm_head" if "lm_head" in self._outer else "model.embed_tokens"
        trained = flat(self._outer.trainable_parameters())
        return [name for name in trained if name.startswith(root + ".")]

    def _parameter(self, name: str) -> mx.array:
        *path, leaf = name.split(".")
        module = self._outer
        for attribute in path:
            module = module[attribute]
        return module[leaf]

    def _assign(self, name: str, weight: mx.array) -> None:
        *path, leaf = name.split(".")
        module = self._outer
        for attribute in path:
            module = module[attribute]
        module[leaf] = weight


class _Given:
    """Takes the place of the trunk and returns hidden states that are computed already."""

    def __init__(self, trunk: Any, hidden_BTD: mx.array) -> None:
        self._trunk = trunk
        self._hidden_BTD = hidden_BTD

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        return self._hidden_BTD

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trunk, name)


@contextlib.contextmanager
def _recomputed(classes: set[type]) -> Iterator[None]:
    """Makes blocks of these classes keep only their inputs for the backward pass, for a `with` block.

    mlx-lm's own function patches a class permanently, for every model of that class in the process.
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
