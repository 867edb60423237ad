"""The sampler (rollout worker): samples answers with the weights version it is told to use."""

import os
import time
from pathlib import Path

import mlx.core as mx
import pyarrow as pa
import ray

from actors.handles import ActorId
from actors.logs import open_log
from actors.messages import Generate, Generated, Hello
from configs.schema import Settings
from policies.decode import Counts, Decoder, Sampling, Sequence
from policies.device import LEASE_SHARE, bound_cache, gpu_lease, patience_s
from policies.evolution.loader import EvolutionWeightLoader
from policies.load import load_policy
from policies.rows import encode, from_data, from_sequence, to_sequences
from policies.trainer import weight_loader_for
from runtime import failpoints
from runtime.blas import load_blas
from runtime.errors import BadInput
from runtime.keys import derive
from runtime.rundir import RunDirectory
from runtime.tasks.prompt import Prompt
from runtime.throttle import Throttle
from runtime.trajectory import to_batch, to_rows

Planned = tuple[Prompt, int, Sequence]
"""A prompt, the number of the sample, and the sequence that is sampled."""


class Sampler:
    """Holds a copy of the model. It is stateless towards the run: any sampler can repeat any request."""

    def __init__(self, settings: Settings, run: str, actor: ActorId) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._name = name = actor.name
        self._run = RunDirectory(Path(run).parent, Path(run).name)
        self._log = open_log(self._run.logs, name)
        self._lease = gpu_lease()
        with self._lease.hold(
            f"{name} to load the model", LEASE_SHARE * settings.deadlines.start_s
        ):
            self._policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
            self._weight_loader = weight_loader_for(self._policy, settings)
        self._decoder = Decoder(self._policy, settings.sampling.slots)
        bound_cache()
        self._log.info("started", pid=os.getpid(), checkpoint=settings.model.path)
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Returns a greeting once the constructor has finished."""
        return Hello(
            pid=os.getpid(), backend=load_blas(self._settings.exact), seconds=self._started_s
        )

    @ray.method(num_returns=2)
    def generate(
        self, request: Generate, earlier: pa.RecordBatch | None = None
    ) -> tuple[Generated, pa.RecordBatch]:
        """Samples answers. Returns what was done and the batch, with rows in order of prompt and sample.

        Rows of `earlier`, which a pause interrupted, are continued and never sampled again. If a pause
        is asked for meanwhile, sampling stops at the next token, and the batch has the rows so far.
        """
        failpoints.hit("sample.begin")
        holder = f"{self._name} for {request.purpose} at step {request.step}"
        with self._lease.hold(
            holder, patience_s(self._settings, self._settings.deadlines.generate_s)
        ) as waited_s:
            began = time.perf_counter()
            self._weight_loader.load(request.weights)
            loaded_s = time.perf_counter() - began
            began = time.perf_counter()
            if request.likelihood:
                counts, batch, whole = self._likelihoods(request, earlier)
            else:
                plan = self._plan(request, to_sequences(earlier) if earlier is not None else {})
                counts = self._decode(request, [s for _, _, s in plan])
                batch = self._record(request, plan)
                whole = all(s.finished for _, _, s in plan)
            seconds = time.perf_counter() - began
            memory = mx.get_peak_memory()
            mx.clear_cache()
        done = Generated(
            rows=batch.num_rows,
            interrupted=not whole,
            sampled_tokens=counts.sampled_tokens,
            prefilled_tokens=counts.prefilled_tokens,
            seconds=seconds,
            waited_s=waited_s,
            loaded_s=loaded_s,
            memory_bytes=memory,
        )
        self._log.info(
            "interrupted" if done.interrupted else "generated",
            step=request.step, purpose=request.purpose, rows=done.rows,
            sampled_tokens=done.sampled_tokens,
        )  # fmt: skip
        failpoints.hit("sample.done")
        return done, batch

    def _plan(self, request: Generate, earlier: dict[tuple[int, int], Sequence]) -> list[Planned]:
        """Returns every sequence of the request, begun or new."""
        tokens = self._policy.tokenizer
        limit = self._policy.context_length - request.max_new_tokens
        share = request.members
        first, count = (share.first, share.count) if share else (0, request.group_size)
        samples = range(first, first + count)
        plan = []
        for prompt in request.prompts:
            ids = encode(tokens, prompt, limit)
            for sample in samples:
                # An evaluation asks every version the same prompts: its keys do not depend on the step.
                step = request.step if request.purpose == "sample" else 0
                key = derive(self._settings.seed, request.purpose, step, prompt.index, sample)
                begun = earlier.get((prompt.index, sample))
                if begun is not None and (begun.prompt, begun.key) != (ids, key):
                    self._log.warning("sampled anew: another prompt", prompt=prompt.index)
                    begun = None
                sequence = begun or Sequence(prompt=ids, key=key)
                sequence.member = sample - first if share else 0
                plan.append((prompt, sample, sequence))
        return plan

    def _decode(self, request: Generate, sequences: list[Sequence]) -> Counts:
        sampling = Sampling(
            temperature=request.temperature,
            max_new_tokens=request.max_new_tokens,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
        )
        throttle = Throttle(self._run, "sample.token", self._settings.power.duty_cycle)
        version = request.weights.version

        def may_go_on() -> int | None:
            return version if throttle.may_continue() else None

        if (share := request.members) is not None:
            assert isinstance(self._weight_loader, EvolutionWeightLoader)
            return self._weight_loader.decode(
                request.step,
                range(share.first, share.first + share.count),
                sequences,
                sampling,
                version,
                may_go_on,
            )
        self._decoder.counts = counts = Counts()
        self._decoder.run(sequences, sampling, version, may_go_on)
        return counts

    def _likelihoods(
        self, request: Generate, earlier: pa.RecordBatch | None
    ) -> tuple[Counts, pa.RecordBatch, bool]:
        """Returns what was counted, a row for each member and prompt with the log-likelihood as its
        reward, and whether all rows are there.
        """
        share, tokens = request.members, self._policy.tokenizer
        assert share is not None and isinstance(self._weight_loader, EvolutionWeightLoader)
        throttle = Throttle(self._run, "sample.token", self._settings.power.duty_cycle)
        limit = self._policy.context_length
        rows = from_data(tokens, request.prompts, step=request.step, limit=limit)
        for row, prompt in zip(rows, request.prompts):
            if row.dropped:
                raise BadInput(
                    f"{prompt.place}: prompt and answer exceed the model's {limit} tokens"
                )
        mine = range(share.first, share.first + share.count)
        done = (
            [row for row in to_rows(earlier) if row.sample in mine] if earlier is not None else []
        )
        found = self._weight_loader.likelihoods(
            request.step,
            mine,
            rows,
            known={(row.prompt_index, row.sample) for row in done},
            may_go_on=throttle.may_continue,
        )
        done += found
        batch = to_batch(done, {"pippin.tokenizer": tokens.fingerprint})
        return Counts(), batch, len(done) == len(rows) * len(mine)

    def _record(self, request: Generate, plan: list[Planned]) -> pa.RecordBatch:
        """Returns a batch of what was sampled. A sequence that has no token yet is left out."""
        tokens = self._policy.tokenizer
        rows = [
            from_sequence(
                tokens,
                prompt,
                sequence,
                step=request.step,
                sample=sample,
                temperature=request.temperature,
            )
            for prompt, sample, sequence in plan
            if sequence.tokens
        ]
        return to_batch(
            rows,
            {
                "pippin.tokenizer": tokens.fingerprint,
                "pippin.weights": f"{request.weights.version}:{request.weights.digest}",
            },
        )
