"""Continuous-batching decoder over a fixed number of slots: the rollout engine.

A prompt that several samples share is prefilled once. Each sequence has its own key, and token n takes draw n
of it, so sampled tokens depend on the key and the weights and not on the other sequences in the batch (bit
for bit in exact mode; up to the rounding of the backend's matrix product otherwise). The log-probability
that is kept is that of the distribution really sampled from; the stop token is kept too. Decoding can be
stopped between any two tokens: the `Sequence` keeps its sampled tokens, and `run` continues it later. One
step is always in flight: the host reads a step's tokens while the next step is computed.

    sequences = [Sequence(prompt=ids, key=k) for k in keys]
    Decoder(policy, slots=64).run(sequences, Sampling(temperature=1.0, max_new_tokens=64), version=3)

A population decodes in one batch if the network computes each row with its own member (`RowsOf`). A prompt
is then prefilled once for each member that reads it.

Shapes: S slots in use, N slots sampled for, P prompts prefilled together, T tokens, D hidden
width, V vocabulary.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items

import mlx.core as mx
import numpy as np
from msgspec import Struct, field

from kernels.sampling import sample
from policies.cache import Prefilled, PromptCache, Slots, runs
from policies.mlx_lm_port import causal_mask
from policies.policy import Policy
from policies.sampling import Sampling
from runtime.keys import uniform
from runtime.trajectory import StopReason

PREFILL_TOKENS = 8192
"""Padded prompt tokens of one prefill pass."""
MEMBERS_PREFILL_TOKENS = 512
"""Padded prompt tokens of one prefill pass of a population, in which each slot has a prompt of its own."""
BATCH_MULTIPLE = 4
"""The last sequences are gathered into batches of a multiple of this, so that there are few shapes."""
SHRINK_SHARE = 1 / 8
"""Share of empty slots from which on the batch shrinks, since gathering copies the key-value memory."""
REFILL_SHARE = 1 / 8
"""Share of free slots from which on they are filled, while other rows still decode."""


class Sequence(Struct, kw_only=True):
    """One sequence: its prompt, and the tokens sampled so far. All token lists have one length."""

    prompt: tuple[int, ...]
    key: int
    member: int = 0
    """Index of the population's member whose weights sample it."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """The weights version that computed each token's distribution."""
    stop_reason: StopReason | None = None
    """None before the first run; INTERRUPTED if the sequence can be continued."""
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Returns whether no more tokens will be sampled."""
        return self.stop_reason in (StopReason.STOP, StopReason.LENGTH)


class Counts(Struct):
    """Totals of a decoder's work, from which tokens per second are computed."""

    sampled_tokens: int = 0
    prefilled_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0


class _Step(Struct):
    """A step in flight: the tokens that it computes, their sequences, and the weights version."""

    tokens_N: mx.array
    logprobs_N: mx.array
    rows: list[tuple[int, Sequence]]
    version: int


BetweenTokens = Callable[[], "int | None"]
"""Called before each step; returns None to stop, else the weights version now in the model."""
RowsOf = Callable[[np.ndarray], None]
"""Called with the member of each row of the next pass through the network. Before a prefill it is first
called with the members of all slots; the passes of the prefill have rows of these members only."""
_Context = tuple[int, tuple[int, ...]]
"""The member that reads a prompt, and the prompt's tokens."""


class Decoder:
    """Decodes with the weights in `policy` at each step, and with each row's member set by `rows_of`."""

    def __init__(
        self,
        policy: Policy,
        slots: int,
        rows_of: RowsOf | None = None,
        stop_tokens: frozenset[int] | None = None,
    ) -> None:
        """Takes the checkpoint's stop tokens unless given; with none, sequences run to the limit."""
        self.counts = Counts()
        self._rows_of = rows_of
        self._policy = policy
        self._slot_count = slots
        own = policy.tokenizer.stop_tokens
        self._stop_tokens = own if stop_tokens is None else stop_tokens

    def run(
        self,
        sequences: Items[Sequence],
        sampling: Sampling,
        version: int = 0,
        between_tokens: BetweenTokens | None = None,
    ) -> None:
        """Continues every sequence to its end, or until `between_tokens` returns None.

        Raises ValueError for an empty prompt, a token outside the vocabulary (MLX's gather does not check
        it) or a sequence that cannot fit the context.
        """
        for _ in self.ended(sequences, sampling, version, between_tokens):
            pass

    def ended(
        self,
        sequences: Items[Sequence],
        sampling: Sampling,
        version: int = 0,
        between_tokens: BetweenTokens | None = None,
    ) -> Iterator[Sequence]:
        """Does what `run` does, and yields each sequence between the tokens where it ended."""
        began = time.perf_counter()
        for sequence in sequences:
            self._check(sequence, sampling)
        queue = deque(s for s in sequences if not s.finished)
        if queue:
            wave = _Wave(self, queue, sampling, version, between_tokens or (lambda: version), began)
            try:
                yield from wave.run()
            finally:
                wave.slots.free()
        self.counts.seconds += time.perf_counter() - began

    def _check(self, sequence: Sequence, sampling: Sampling) -> None:
        length = len(sequence.prompt)
        if not length:
            raise ValueError("a sequence needs at least one prompt token, got none")
        if length + sampling.max_new_tokens > self._policy.context_length:
            raise ValueError(
                f"a prompt of {length} tokens and {sampling.max_new_tokens} new tokens exceed the model's "
                f"context of {self._policy.context_length} tokens"
            )
        vocabulary = self._policy.vocabulary
        for token in (min(sequence.prompt), max(sequence.prompt)):
            if not 0 <= token < vocabulary:
                raise ValueError(f"prompt token {token} is outside the vocabulary of {vocabulary}")


class _Wave:
    """One call of `run`: the slots, and the sequences in them."""

    def __init__(
        self,
        decoder: Decoder,
        queue: deque[Sequence],
        sampling: Sampling,
        version: int,
        between_tokens: BetweenTokens,
        began: float,
    ) -> None:
        self.policy = decoder._policy
        self.rows_of = decoder._rows_of
        self.counts = decoder.counts
        self.stop_tokens = decoder._stop_tokens
        self.queue = queue
        self.sampling = sampling
        self.version = version
        self.between_tokens = between_tokens
        self.began = began
        size = min(decoder._slot_count, len(queue))
        self.rows: list[Sequence | None] = [None] * size
        self.launched = np.zeros(size, np.int64)
        """Number of tokens of each row that are sampled or in flight, [S]."""
        self.keys = np.zeros(size, np.uint64)
        self.members = np.zeros(size, np.int64)
        """The member of each row, [S]; an empty slot keeps that of its last sequence."""
        self.slots = Slots(size, self.policy.layer_count())
        self.current_S = mx.zeros(size, mx.int32)
        self.flight: deque[_Step] = deque()
        self.prefilled: dict[_Context, Prefilled] = {}
        self.waiting = Counter(map(_context, queue))
        """Number of sequences that still need each prompt."""
        self.ended: deque[Sequence] = deque()
        """Sequences that have ended and were not yet given to the caller."""

    def run(self) -> Iterator[Sequence]:
        while True:
            while self.ended:
                yield self.ended.popleft()
            version = self.between_tokens()
            if version is None:
                self.interrupt()
                yield from self.ended
                return
            if version != self.version:
                self.prefilled.clear()  # the next samples of these prompts need the new weights
                self.version = version
            self.fill()
            self.launch()
            if not self.flight:
                return
            while len(self.flight) > 1 or (self.flight and not self.runnable().any()):
                self.read()
            self.shrink()

    def runnable(self) -> np.ndarray:
        """Returns which rows may still need a next token as far as the host knows, bool [S]."""
        occupied = np.array([row is not None for row in self.rows])
        return occupied & (self.launched < self.sampling.max_new_tokens)

    # ── filling slots ────────────────────────────────────────────────────────────────────────────

    def fill(self) -> None:
        """Fills free slots from the queue, several at once, since it costs a pass over the layers."""
        free = [i for i, row in enumerate(self.rows) if row is None]
        few = len(free) < len(self.rows) * REFILL_SHARE and self.runnable().any()
        if not free or not self.queue or few:
            return
        readers: dict[_Context, list[int]] = {}
        for slot in free[: len(self.queue)]:
            sequence = self.queue.popleft()
            readers.setdefault(_context(sequence), []).append(slot)
            self.rows[slot] = sequence
            self.keys[slot] = sequence.key
            self.members[slot] = sequence.member
            self.launched[slot] = len(sequence.tokens)
        self.slots.release(free)
        if self.rows_of:
            self.rows_of(self.members)
        self.prefill([c for c in readers if c not in self.prefilled])

        longest = max(len(tokens) for _, tokens in readers)
        ahead = self.sampling.max_new_tokens + 1
        if self.slots.column < longest or self.slots.column + ahead > self.slots.capacity:
            self.slots.make_room(longest, ahead)
        logits: list[mx.array] = []
        for context, slots in readers.items():
            prompt = self.prefilled[context]
            for row, count in runs(slots):
                self.slots.place(prompt, row, count)
            logits += [prompt.logits_V] * len(slots)
            self.waiting[context] -= len(slots)
            if not self.waiting[context]:
                del self.prefilled[context]
        self.sample(mx.stack(logits), np.array([slot for s in readers.values() for slot in s]))

    def prefill(self, contexts: list[_Context]) -> None:
        """Runs prompts through the network, several in one pass, right-padded."""
        most_tokens = MEMBERS_PREFILL_TOKENS if self.rows_of else PREFILL_TOKENS
        while contexts:
            count, longest = 0, 0
            for _, tokens in contexts:
                longest = max(longest, len(tokens))
                if count and longest * (count + 1) > most_tokens:
                    break
                count += 1
            together, contexts = contexts[:count], contexts[count:]
            lengths = np.array([len(tokens) for _, tokens in together])
            tokens_PT = np.zeros((count, lengths.max()), np.int32)
            for i, (_, tokens) in enumerate(together):
                tokens_PT[i, : len(tokens)] = tokens
            caches = [PromptCache(causal_mask) for _ in self.slots.layers]
            if self.rows_of:
                self.rows_of(np.array([member for member, _ in together]))
            hidden_PTD = self.policy.hidden(mx.array(tokens_PT), caches)
            last_PD = hidden_PTD[mx.arange(count), mx.array(lengths - 1)]
            logits_PV = self.policy.project(last_PD)
            if (
                self.rows_of
            ):  # evaluated pass by pass, so that one pass's activations exist at a time
                mx.eval(logits_PV, [(cache.keys, cache.values) for cache in caches])
            for i, context in enumerate(together):
                self.prefilled[context] = Prefilled(caches, i, int(lengths[i]), logits_PV[i])
            self.counts.prefilled_tokens += int(lengths.sum())
            if self.slots.layers[0].keys is None:
                for layer, prompt in zip(self.slots.layers, caches):
                    layer.allocate(prompt, len(self.rows))

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    def launch(self) -> None:
        """Begins the next step of every row that may need one."""
        active_S = self.runnable()
        if not active_S.any():
            return
        if self.slots.column >= self.slots.capacity:
            self.slots.make_room(0, self.sampling.max_new_tokens + 1)
        self.slots.begin(active_S)
        if self.rows_of:
            self.rows_of(self.members)
        hidden_S1D = self.policy.hidden(self.current_S[:, None], list(self.slots.layers))
        logits_SV = self.policy.project(hidden_S1D[:, 0])
        self.slots.end()
        self.counts.steps += 1
        self.sample(logits_SV, np.arange(len(self.rows)), active_S)

    def sample(
        self, logits_NV: mx.array, slots_N: np.ndarray, wanted_S: np.ndarray | None = None
    ) -> None:
        """Samples the next token of the given slots, from one row of logits each.

        Tokens of rows where `wanted_S` is False are discarded; the batch has a fixed size.
        """
        with np.errstate(over="ignore"):
            draws_N = uniform(self.keys[slots_N], self.launched[slots_N].astype(np.uint64))
        tokens_N, logprobs_N = sample(
            logits_NV,
            mx.array(draws_N),
            temperature=self.sampling.temperature,
            top_k=self.sampling.top_k,
            top_p=self.sampling.top_p,
            min_p=self.sampling.min_p,
        )
        if len(slots_N) == len(self.rows) and wanted_S is not None:
            self.current_S = tokens_N
        else:
            current_S = mx.array(self.current_S)
            current_S[mx.array(slots_N)] = tokens_N
            self.current_S = current_S
        mx.async_eval(self.current_S, tokens_N, logprobs_N)
        rows: list[tuple[int, Sequence]] = []
        for i, slot in enumerate(slots_N):
            sequence = self.rows[slot]
            if sequence is not None and (wanted_S is None or wanted_S[slot]):
                rows.append((i, sequence))
                self.launched[slot] += 1
        self.flight.append(_Step(tokens_N, logprobs_N, rows, self.version))

    def read(self) -> None:
        """Reads the oldest step in flight, appends its tokens, and frees the rows that ended."""
        step = self.flight.popleft()
        tokens = np.array(step.tokens_N).tolist()
        logprobs = np.array(step.logprobs_N).tolist()
        for i, sequence in step.rows:
            if sequence.finished:  # this step was launched before the host had seen the stop token
                continue
            sequence.tokens.append(tokens[i])
            sequence.logprobs.append(logprobs[i])
            sequence.versions.append(step.version)
            self.counts.sampled_tokens += 1
            if tokens[i] in self.stop_tokens:
                self.finish(sequence, StopReason.STOP)
            elif len(sequence.tokens) >= self.sampling.max_new_tokens:
                self.finish(sequence, StopReason.LENGTH)

    def finish(self, sequence: Sequence, reason: StopReason) -> None:
        sequence.stop_reason = reason
        sequence.seconds = time.perf_counter() - self.began
        self.ended.append(sequence)
        for slot, row in enumerate(self.rows):
            if row is sequence:
                self.rows[slot] = None

    def interrupt(self) -> None:
        """Keeps the tokens in flight, which are sampled already, and marks sequences as interrupted."""
        while self.flight:
            self.read()
        for sequence in (*self.rows, *self.queue):
            if sequence is not None:
                sequence.stop_reason = StopReason.INTERRUPTED
                sequence.seconds = time.perf_counter() - self.began

    def shrink(self) -> None:
        """Goes on with a smaller batch once the queue and enough rows are empty; steps in flight go on."""
        busy = [i for i, row in enumerate(self.rows) if row is not None]
        size = -(-len(busy) // BATCH_MULTIPLE) * BATCH_MULTIPLE
        if self.queue or not busy or len(self.rows) - size < len(self.rows) * SHRINK_SHARE:
            return
        spare = [i for i, row in enumerate(self.rows) if row is None]
        keep = np.array(sorted(busy + spare[: size - len(busy)]))
        self.slots.select(keep)
        self.rows = [self.rows[i] for i in keep]
        self.keys, self.launched = self.keys[keep], self.launched[keep]
        self.members = self.members[keep]
        self.current_S = self.current_S[mx.array(keep)]


def _context(sequence: Sequence) -> _Context:
    return sequence.member, sequence.prompt + tuple(sequence.tokens)
