"""Teacher outputs for the rows of a batch: each token's log-probability, or its k likeliest ids and the rest.

Shapes: B rows of a micro-batch, R targets, N = B·R, K kept ids.
"""

import hashlib

import mlx.core as mx
import numpy as np

from actors.teacher_entries import TeacherEntries
from configs.facts import Facts
from policies.batch import MicroBatch, Row, pack
from policies.frozen import Frozen
from policies.generators.protocol import MayContinue
from runtime.teacher_outputs import TeacherOutputs, entry, from_entry


class TeacherScores:
    """Scores rows with a local teacher, and remembers each."""

    def __init__(
        self, frozen: Frozen, facts: Facts, entries: TeacherEntries, micro_batch_tokens: int
    ) -> None:
        self._frozen, self._facts, self._entries = frozen, facts, entries
        self._micro_batch_tokens = micro_batch_tokens

    def known(self, rows: dict[int, Row]) -> dict[int, TeacherOutputs]:
        """Returns the teacher outputs that the cache has, by row."""
        if not self._entries.kept:
            return {}
        found = {i: self._entries.get(self._entry(row)) for i, row in rows.items()}
        return {i: from_entry(batch) for i, batch in found.items() if batch is not None}

    def scored(self, rows: dict[int, Row], may_continue: MayContinue) -> dict[int, TeacherOutputs]:
        """Returns new teacher outputs by row; some are missing if `may_continue` ended it."""
        numbers, outputs = list(rows), {}
        for micro in pack(list(rows.values()), self._micro_batch_tokens):
            if not may_continue():
                break
            columns = self._columns(micro)
            for b, place in enumerate(micro.rows):
                i = numbers[place]
                targets = len(rows[i].positions)
                outputs[i] = {name: values[b, :targets] for name, values in columns.items()}
                if self._entries.kept:
                    self._entries.put(self._entry(rows[i]), entry(outputs[i]))
        mx.clear_cache()
        return outputs

    def _columns(self, micro: MicroBatch) -> TeacherOutputs:
        """Returns the outputs of all rows of a micro-batch: [B, R] or [B, R, K]."""
        facts, shape = self._facts, micro.targets_BR.shape
        if not facts.teacher_top_k:
            logprobs_N = self._frozen.logprobs(micro, facts.teacher_temperature)
            return {"teacher_logprobs": np.array(logprobs_N).reshape(shape)}
        top = self._frozen.top_k(micro, facts.teacher_top_k, facts.teacher_temperature)
        return {
            "teacher_ids": np.array(top.ids_NK).reshape(*shape, -1),
            "teacher_id_logprobs": np.array(top.logprobs_NK).reshape(*shape, -1),
            "teacher_tail": np.array(top.tail_N).reshape(shape),
        }

    def _entry(self, row: Row) -> str:
        facts = self._facts
        positions = np.asarray(row.positions).astype("<i8").tobytes()
        asked = {
            "what": "top_k" if facts.teacher_top_k else "sampled",
            "k": facts.teacher_top_k,
            "temperature": facts.teacher_temperature,
            "positions": hashlib.sha256(positions).hexdigest(),
        }
        return self._entries.key(row.tokens, asked)
