"""A small student of Shakespeare's text, from data alone and from a teacher, at equal processor time.

Speeches as prompt and response, in the tokens of a byte-level BPE that is trained here. The teacher is
trained first, on all training rows; that time is not counted, but its work while a student learns counts in
that student's time. Students have a small share of the rows (`--share 1` gives them all). All
begin with one blank network and see the same rows in the same order; measured are perplexities per token
and per byte on the last speeches, which are held out.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops.bench.distillation_runs import (
    Run,
    blank,
    exported,
    held_out,
    plain,
    run_here,
    visited,
)
from ops.bench.report import alone_on_the_gpu, print_table, write_json
from ops.curve import curve
from ops.terminal import say
from runtime.blas import load_blas

TEXT = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
VOCABULARY = 512
HELD_OUT = 0.1
"""The share of the speeches that is held out: the last ones."""
LINES = 2
"""The lines of a response; a longer speech becomes several rows."""
EVAL_ROWS, SHARE = 256, 0.02
TEACHER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 40,
}
STUDENT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 144,
    "num_hidden_layers": 2,
    "head_dim": 12,
}
ROWS, RATE, LOOK_STEPS, ENDLESS = 32, 3e-3, 25, 1_000_000
TEACHER_RATE, TEACHER_STEPS = 1e-3, 360
METHODS: dict[str, dict[str, Any]] = {
    "data alone (sft)": {"name": "sft", "rows_per_step": ROWS},
    "offline, top 16": {
        "learn_from": {"name": "data", "alpha": 0.7},
        "signal": {"name": "top_k", "k": 16},
    },
    "offline, full": {"learn_from": {"name": "data", "alpha": 0.7}},
}


def main() -> int:
    """Prints the table. The benchmark is a comparison and has no target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, default=TEXT, help="a text of speeches, in UTF-8")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--svg", type=Path, help="also draw the perplexities here")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of each student's processor time"
    )
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS)
    parser.add_argument("--share", type=float, default=SHARE, help="of the rows that students get")
    parser.add_argument("--only", default="", help="methods whose name begins so")
    options = parser.parse_args()
    if not options.text.is_file():
        raise SystemExit(f"--text: {options.text} is not there; needs a text of speeches")
    blas = load_blas(exact=False)
    with tempfile.TemporaryDirectory() as name:
        result = compare(Path(name), options)
    say(
        f"{result['rows']:,} rows, {result['students_rows']:,} of them for the students; "
        f"{result['held_out']} held out; {blas}"
    )
    print_table(*table(result))
    if options.svg:
        options.svg.write_text(picture(result))
    if options.json:
        write_json(options.json, {"blas": blas, **result})
    return 0


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Raises a teacher, gives every method a student, and measures all of them. Returns the
    measurements.
    """
    train, unseen = split(options.text.read_text("utf-8"))
    write_rows(folder / "held-out.jsonl", unseen[:EVAL_ROWS])
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "students.jsonl", train[: max(2, round(options.share * len(train)))])
    write_bpe(folder / "tokens", [row["prompt"] + row["response"] for row in train])
    raised = raise_teacher(folder, options.teacher_steps)
    teacher = exported(raised, folder / "teacher")
    result: dict[str, Any] = {
        "rows": len(train),
        "students_rows": round(options.share * len(train)),
        "held_out": min(EVAL_ROWS, len(unseen)),
        "teacher": {"processor_s": raised.spent.processor_s, "points": points(raised, last=True)},
        "students": [],
    }
    for seed in range(options.seeds):
        student = blank(folder / f"student-{seed}", STUDENT, seed, folder / "tokens")
        for method, algorithm in METHODS.items():
            if method.startswith(options.only):
                done = learn(folder, student, method, algorithm, teacher, options.seconds, seed)
                result["students"].append(done)
                last = done["points"][-1]
                say(
                    f"seed {seed}, {method}: {done['steps']} steps in {done['processor_s']:.1f} s, "
                    f"{last['per_token']:.2f} per token",
                    err=True,
                )
    return result


def raise_teacher(folder: Path, steps: int) -> Run:
    """Returns the run of a teacher, raised on data."""
    start = blank(folder / "teacher-blank", TEACHER, 0, folder / "tokens")
    tables = settings(folder, start, {"name": "sft", "rows_per_step": ROWS}, 0, "train")
    tables["algorithm"]["steps"] = steps
    tables["optimizer"] |= {
        "learning_rate": TEACHER_RATE,
        "schedule": "cosine",
        "final_share": 0.05,
    }
    return run_here(folder / "runs", "teacher", tables)


def learn(
    folder: Path,
    student: Path,
    method: str,
    algorithm: dict[str, Any],
    teacher: Path,
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Runs a student until its time is over. Returns its perplexities on the way."""
    if algorithm.get("name") != "sft":
        # A teacher of the same bytes may be in this machine's cache, and would cost nothing.
        (teacher / "made.json").write_text(json.dumps({"id": uuid.uuid4().hex}))
        teachers = {"big": {"name": "local", "path": str(teacher)}}
        algorithm = {
            "name": "distill",
            "prompts_per_step": ROWS,
            "teachers": teachers,
            **algorithm,
        }
    name = plain(f"{method}-{seed}")
    wanted = settings(folder, student, algorithm, seed, "students")
    run = run_here(folder / "runs", name, wanted, seconds)
    return {
        "method": method,
        "seed": seed,
        "steps": run.status.step,
        "processor_s": run.spent.processor_s,
        "points": points(run),
        "metrics": run.status.metrics,
    }


def settings(
    folder: Path, model: Path, algorithm: dict[str, Any], seed: int, rows: str
) -> dict[str, Any]:
    """Returns a run's settings, with checkpoints to be measured on the way. The learning rate is
    constant, because the last step is not known.
    """
    return {
        "seed": seed,
        "model": {"path": str(model)},
        "task": {
            "name": "jsonl",
            "train": str(folder / f"{rows}.jsonl"),
            "eval": str(folder / "held-out.jsonl"),
            "response": "response",
        },
        "algorithm": {**algorithm, "steps": ENDLESS},
        "sampling": {"max_new_tokens": 64},
        "optimizer": {"learning_rate": RATE, "warmup_steps": 10},
        "eval": {"prompts": 1},  # its accuracy is no use, but it separates the start from the steps
        "checkpoint": {"every_steps": LOOK_STEPS, "keep_every": LOOK_STEPS},
    }


def points(run: Run, *, last: bool = False) -> list[dict[str, float]]:
    """Returns the held-out perplexities of each checkpoint, or of the last, with the processor time
    behind it.
    """
    from ops.report.findings import perplexity
    from ops.report.measure import surprise

    _, prompts = held_out(run, EVAL_ROWS)
    found = []
    with alone_on_the_gpu("distill_text"):
        for step, policy in visited(run, last=last):
            nats, tokens = surprise(policy, prompts)
            known = [i for i, value in enumerate(nats) if value is not None]
            total = sum(nats[i] or 0.0 for i in known)
            size = sum(len((prompts[i].demonstration or "").encode()) for i in known)
            found.append(
                {
                    "step": step,
                    "processor_s": run.spent.at_step.get(step, 0.0),
                    "per_token": perplexity(total, sum(tokens[i] for i in known)) or 0.0,
                    "per_byte": perplexity(total, size) or 0.0,
                }
            )
    return found


# ── text ─────────────────────────────────────────────────────────────────────────────────────────


def split(text: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Returns rows to learn from, and rows of the last speeches."""
    speeches = [speech.strip("\n") for speech in text.split("\n\n") if speech.strip()]
    if len(speeches) < 20:
        raise SystemExit(
            f"--text: needs at least 20 speeches, blank lines between, got {len(speeches)}"
        )
    first = round(len(speeches) * (1 - HELD_OUT))
    return list(rows(speeches[:first])), list(rows(speeches[first:]))


def rows(speeches: list[str]) -> Iterator[dict[str, str]]:
    """Yields rows: the prompt is the line before and the speaker's name, the response is the speaker's
    next lines.
    """
    for before, speech in itertools.pairwise(speeches):
        speaker, *lines = speech.split("\n")
        context = f"{before.splitlines()[-1]}\n\n{speaker}\n"
        for first in range(0, len(lines), LINES):
            piece = lines[first : first + LINES]
            yield {"prompt": context, "response": "\n".join(piece)}
            context = f"{speaker}\n{piece[-1]}\n"


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_bpe(folder: Path, texts: list[str]) -> None:
    """Writes a byte-level BPE of these texts, as Hugging Face's own files."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore
    special = [AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<end>")]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<end>",
        "pad_token": "<pad>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


# ── results ──────────────────────────────────────────────────────────────────────────────────────


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows: means over the seeds, at the end, and at the best checkpoint on the way,
    because few rows are learned by heart and a person would stop before that.
    """
    header = ["held-out perplexity", "per token", "per byte", "best per token", "best per byte", "steps",
              "processor time"]  # fmt: skip
    teacher = result["teacher"]
    last = teacher["points"][-1]
    lines = [
        [
            "teacher (data)",
            f"{last['per_token']:.2f}",
            f"{last['per_byte']:.3f}",
            "",
            "",
            f"{last['step']}",
            f"{teacher['processor_s']:.0f} s",
        ]
    ]
    for method in dict.fromkeys(s["method"] for s in result["students"]):
        mine = [s for s in result["students"] if s["method"] == method]
        ends = [s["points"][-1] for s in mine]
        bests = [min(s["points"], key=lambda p: p["per_token"]) for s in mine]
        lines.append(
            [
                f"student: {method}",
                f"{statistics.fmean(e['per_token'] for e in ends):.2f}",
                f"{statistics.fmean(e['per_byte'] for e in ends):.3f}",
                f"{statistics.fmean(b['per_token'] for b in bests):.2f}",
                f"{statistics.fmean(b['per_byte'] for b in bests):.3f}",
                f"{statistics.fmean(s['steps'] for s in mine):.0f}",
                f"{statistics.fmean(s['processor_s'] for s in mine):.1f} s",
            ]
        )
    return header, lines


def picture(result: dict[str, Any]) -> str:
    """Returns perplexity per token over processor time, of the first seed. The blank network is far
    above.
    """
    mine = [s for s in result["students"] if s["seed"] == 0]
    lines = [
        (
            s["method"],
            [(round(p["processor_s"], 1), p["per_token"]) for p in s["points"] if p["step"]],
        )
        for s in mine
    ]
    teacher = result["teacher"]["points"][-1]["per_token"]
    highest = max(y for _, points in lines for _, y in points)
    title = "held-out perplexity per token"
    return curve(lines, "processor seconds", title, (0.0, highest), [("teacher", teacher)])


if __name__ == "__main__":
    sys.exit(main())
