"""The sampler (rollout worker): samples answers with the weights version it is told to use."""

import os
import time
from pathlib import Path

import mlx.core as mx
import pyarrow as pa
import ray

from actors.logs import open_log
from actors.messages import Generate, Generated, Hello, WeightsVersion
from configs.schema import Settings
from policies import weights
from policies.decode import Decoder, Sampling, Sequence
from policies.device import LEASE_SHARE, bound_cache, gpu_lease
from policies.model import load_policy
from policies.rows import encode, from_sequence, to_sequences
from runtime import failpoints
from runtime.blas import load_blas
from runtime.gate import Gate
from runtime.keys import derive
from runtime.rundir import RunDirectory
from runtime.tasks.prompt import Prompt
from runtime.trajectory import to_batch

Planned = tuple[Prompt, int, Sequence]
"""A prompt, the number of the sample, and what is sampled."""


class Sampler:
    """Holds a copy of the model. Stateless towards the run: any of them can do any request again."""

    def __init__(self, settings: Settings, run: str, name: str) -> None:
        began = time.perf_counter()
        self._settings = settings
        self._name = name
        self._run = RunDirectory(Path(run).parent, Path(run).name)
        self._log = open_log(self._run.logs, name)
        self._lease = gpu_lease()
        with self._lease.hold(
            f"{name} to load the model", LEASE_SHARE * settings.deadlines.start_s
        ):
            self._policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
        self._decoder = Decoder(self._policy, settings.sampling.slots)
        self._loaded = ""
        bound_cache()
        self._log.info("started", pid=os.getpid(), checkpoint=settings.model.path)
        self._started_s = time.perf_counter() - began

    @ray.method
    def hello(self) -> Hello:
        """Answers when the constructor has finished."""
        return Hello(
            pid=os.getpid(), backend=load_blas(self._settings.exact), seconds=self._started_s
        )

    @ray.method(num_returns=2)
    def generate(
        self, request: Generate, earlier: pa.RecordBatch | None = None
    ) -> tuple[Generated, pa.RecordBatch]:
        """Sample; gives what was done and the batch, rows in order of prompt and sample.

        Rows of `earlier`, which a pause interrupted, are gone on with and never sampled anew. If
        somebody asks to pause now, that happens at the next token, and the batch has what there is.
        """
        failpoints.hit("sample.begin")
        who = f"{self._name} for {request.purpose} at step {request.step}"
        with self._lease.hold(who, LEASE_SHARE * self._settings.deadlines.generate_s) as waited_s:
            loaded_s = self._use(request.weights)
            began = time.perf_counter()
            before = (self._decoder.counts.sampled_tokens, self._decoder.counts.prefilled_tokens)
            sequences = self._plan(request, to_sequences(earlier) if earlier is not None else {})
            self._decode(request, [s for _, _, s in sequences])
            batch = self._record(request, sequences)
            seconds = time.perf_counter() - began
            memory = mx.get_peak_memory()
            mx.clear_cache()
        done = Generated(
            rows=batch.num_rows,
            interrupted=not all(s.finished for _, _, s in sequences),
            sampled_tokens=self._decoder.counts.sampled_tokens - before[0],
            prefilled_tokens=self._decoder.counts.prefilled_tokens - before[1],
            seconds=seconds,
            waited_s=waited_s,
            loaded_s=loaded_s,
            memory_bytes=memory,
        )
        self._log.info(
            "interrupted" if done.interrupted else "generated",
            step=request.step, purpose=request.purpose, rows=done.rows,
        )  # fmt: skip
        failpoints.hit("sample.done")
        return done, batch

    def _use(self, version: WeightsVersion) -> float:
        """Load a weights version unless it is the present one; gives the seconds it took."""
        if version.digest == self._loaded:  # a number alone may be of a step that was done anew
            return 0.0
        began = time.perf_counter()
        self._policy.load_trained(weights.load(Path(version.path), version.digest))
        self._loaded = version.digest
        return time.perf_counter() - began

    def _plan(self, request: Generate, earlier: dict[tuple[int, int], Sequence]) -> list[Planned]:
        """Every sequence of the request, begun or new."""
        tokens = self._policy.tokenizer
        limit = self._policy.context_length - request.max_new_tokens
        plan = []
        for prompt in request.prompts:
            ids = encode(tokens, prompt, limit)
            for sample in range(request.group_size):
                # An evaluation asks the same questions of every version: its keys know no step.
                step = request.step if request.purpose == "sample" else 0
                key = derive(self._settings.seed, request.purpose, step, prompt.index, sample)
                begun = earlier.get((prompt.index, sample))
                if begun is not None and (begun.prompt, begun.key) != (ids, key):
                    self._log.warning("sampled anew: another prompt", prompt=prompt.index)
                    begun = None
                plan.append((prompt, sample, begun or Sequence(prompt=ids, key=key)))
        return plan

    def _decode(self, request: Generate, sequences: list[Sequence]) -> None:
        sampling = Sampling(
            temperature=request.temperature,
            max_new_tokens=request.max_new_tokens,
            top_k=request.top_k,
            top_p=request.top_p,
            min_p=request.min_p,
        )
        gate = Gate(self._run, "sample.token", self._settings.power.duty_cycle)
        version = request.weights.version
        self._decoder.run(sequences, sampling, version, lambda: version if gate.open() else None)

    def _record(self, request: Generate, plan: list[Planned]) -> pa.RecordBatch:
        """What was sampled; a sequence that has no token yet is none."""
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
