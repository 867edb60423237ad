"""The facts of a finished run, so that two runs can be compared: values only, no time and no place.

Everything is computed again from the files; what status and checkpoint say is checked against
that.
"""

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from runtime import checkpoint
from runtime.checkpoint import Checkpoint
from runtime.rundir import RunDirectory
from runtime.status import Status
from runtime.trajectory import StopReason, lists
from runtime.trajectory_log import EMPTY_CHAIN, batches, extend

REPEATED = ("loss", "grad_norm", "learning_rate", "reward_mean", "completion_tokens_mean")
"""The metrics of a step that depend on no clock."""
REVISION = r"(?<=step-\d{6})\.\d+$"
MAY_DIFFER = ("message", "sampled_tokens", "kept", "problems")


class Facts(Struct, kw_only=True):
    """Holds the facts of a run at its end."""

    state: str
    step: int
    weights: str
    """The canonical digests, computed from the newest checkpoint's files."""
    optimizer: str
    trajectories: str
    """The hash chain, computed from the log's rows."""
    ledger: dict[str, Any]
    evals: list[dict[str, Any]]
    answers: dict[str, str]
    """The SHA-256 of the answers of each evaluation, by file."""
    metrics: list[dict[str, float]]
    rows: int
    """The number of trajectories in the log."""
    duplicates: int
    """The number of those that were in the log already."""
    tokens: int
    """The sampled tokens in the log and in the answers of the evaluations."""
    sampled_tokens: int
    """The sampled tokens that all samplers of all starts reported."""
    kept: list[str]
    """The checkpoints, without their revisions."""
    message: str
    problems: list[str]
    """A sentence for each inconsistency of the run in itself."""


def examine(run: RunDirectory) -> Facts:
    """Returns the facts of a finished run. Raises Damaged for files that cannot be read. Computes with
    MLX.
    """
    status = run.read_status()
    newest, passed_over = checkpoint.newest(run.checkpoints)
    assert newest is not None, "a finished run has a checkpoint"
    chain, identities, outcomes, tokens = _log(run)
    answers = sorted((run.path / "evals").glob("*"))
    tokens += sum(row["tokens"] for file in answers for row in _lines(file))
    problems = [
        *passed_over,
        *_account(status, outcomes),
        *(f"{row} is {n} times in the log" for row, n in identities.items() if n > 1),
        *_contradictions(status, newest, chain),
        *(f"{path} was left behind" for path in run.path.rglob(".*")),
    ]
    return Facts(
        state=status.state,
        step=status.step,
        weights=newest.state["weights_digest"],
        optimizer=newest.state["optimizer_digest"],
        trajectories=chain,
        ledger=status.ledger,
        evals=run.read_lines("evals.jsonl"),
        answers={f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in answers},
        metrics=[
            {name: line[name] for name in ("step", *REPEATED) if name in line}
            for line in run.read_lines("metrics.jsonl")
        ],
        rows=identities.total(),
        duplicates=identities.total() - len(identities),
        tokens=tokens,
        sampled_tokens=sum(
            line.get("sampled_tokens", 0)
            for file in run.logs.glob("sampler-*.log")
            for line in _lines(file)
        ),
        kept=sorted(re.sub(REVISION, "", path.name) for path in run.checkpoints.iterdir()),
        message=status.message,
        problems=problems,
    )


def differences(found: Facts, expected: Facts) -> list[str]:
    """Returns where two runs are not the same, a phrase each."""
    names = [name for name in Facts.__struct_fields__ if name not in MAY_DIFFER]
    different = [
        f"{name}: {_short(getattr(found, name))} instead of {_short(getattr(expected, name))}"
        for name in names
        if getattr(found, name) != getattr(expected, name)
    ]
    # A kill before the last step's checkpoints were retired leaves one more than is asked for.
    if lacking := set(expected.kept) - set(found.kept):
        different.append(f"{', '.join(sorted(lacking))} should have been kept")
    return different


def _log(run: RunDirectory) -> tuple[str, Counter[str], Counter[str], int]:
    """Returns the chain, the trajectories, their outcomes, and how many tokens were sampled."""
    chain, tokens = EMPTY_CHAIN, 0
    identities: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for batch in batches(run.trajectories):
        chain = extend(chain, batch)
        reasons = batch["stop_reason"].to_pylist()
        for sampled, reason in zip(lists(batch, "sampled"), reasons):
            tokens += int(sampled.sum()) if reason != StopReason.DATA else 0
        columns = ("step", "prompt_index", "sample", "dropped", "failure")
        for step, prompt, sample, dropped, failure in zip(*(batch[c].to_pylist() for c in columns)):
            identities[f"step {step}, prompt {prompt}, sample {sample}"] += 1
            outcomes[f"failed {failure}" if failure else f"dropped {dropped}"] += 1
    return chain, identities, outcomes, tokens


def _account(status: Status, outcomes: Counter[str]) -> list[str]:
    """Returns where the ledger does not add up, in itself and with the log."""
    ledger = status.ledger
    in_ledger = Counter({"dropped None": ledger["trained"]})
    in_ledger += Counter({f"dropped {reason}": n for reason, n in ledger["dropped"].items()})
    in_ledger += Counter({f"failed {kind}": n for kind, n in ledger["failed"].items()})
    problems = []
    if in_ledger.total() + ledger["in_flight"] != ledger["pulled"] or ledger["in_flight"]:
        problems.append(f"the ledger does not add up: {ledger}")
    if in_ledger != outcomes:
        problems.append(f"the ledger has {dict(in_ledger)}, the log {dict(outcomes)}")
    return problems


def _contradictions(status: Status, newest: Checkpoint, chain: str) -> list[str]:
    """Returns where status, checkpoint and files contradict each other."""
    from policies import weights

    problems = []
    for name, file in (("weights_digest", "weights"), ("optimizer_digest", "optimizer")):
        found = weights.digest(
            weights.load(newest.path / f"{file}.safetensors", newest.state[name])
        )
        if not found == newest.state[name] == getattr(status, name):
            problems.append(f"status and checkpoint do not have the same {name}")
    if not chain == newest.state["log_chain"] == status.trajectories_digest:
        problems.append("status, checkpoint and log do not have the same chain")
    return problems


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = []
    for line in file.read_bytes().splitlines():
        try:
            lines.append(msgspec.json.decode(line))
        except msgspec.DecodeError:  # a killed process's last, or its stack
            continue
    return lines


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 200 else f"{text[:200]}…"
