"""The report as one HTML file: inline CSS and SVG, nothing to fetch, nothing to run."""

from collections.abc import Sequence
from html import escape
from typing import Any

from msgspec import Struct

from ops.curve import Bars, bars, curve
from ops.report.cost import Cost
from ops.report.findings import Claim, Standing, size_text

UNKNOWN = "–"
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; vertical-align: bottom; } .scroll { overflow-x: auto; }
td:not(:first-child) { white-space: nowrap; }
small, .quiet { color: #555; } svg { width: 100%; max-width: 40rem; height: auto; display: block; }
.verdict { font-weight: 600; padding: .05rem .5rem; border-radius: .4rem; margin-right: .4rem; }
.kept { background: #dff0df; color: #1e5c1e; } .missed { background: #f8dedb; color: #8c1d12; }
.unknown { background: #eee; color: #444; } li { margin: .3rem 0; }
"""


class Report(Struct, frozen=True, kw_only=True):
    """Holds all that a report says; report.json is this record."""

    run: str
    step: int
    steps: int
    state: str
    algorithm: str
    task: str
    prompts: int
    judged: int
    """The number of prompts that the quality of all contestants is measured on."""
    texts: int
    """The number of right answers that the perplexity of all contestants is measured on."""
    made: str
    machine: str
    backend: str
    batch: str
    """The load that speed and peak memory were measured with."""
    contestants: list[Standing]
    promise: dict[str, list[Claim]]
    """The claims, by teacher."""
    comparisons: list[str]
    costs: list[Cost]
    notes: list[str]
    preferences: list[str] = []
    """A sentence for each metric of held-out preferences; empty for other algorithms."""
    version: int = 1


def page(report: Report) -> str:
    """Returns the whole file."""
    title = f"Report of {report.run}"
    body = [
        f"<h1>{escape(title)}</h1>",
        _paragraph(
            f"{report.algorithm} on {report.task}: step {report.step} of {report.steps} "
            f"({report.state}). {report.prompts} held-out prompts, answered greedily."
        ),
        *_promise(report),
        "<h2>Who was compared</h2>",
        _contestants(report),
        *_list("Preferences", report.preferences),
        *_list("Against other runs", report.comparisons),
        "<h2>Quality against speed</h2>",
        _bars(report.contestants),
        "<h2>How it was learned</h2>",
        *_curves(report),
        "<h2>What it cost</h2>",
        _costs(report.costs),
        "<h2>How it was measured</h2>",
        "<ul>",
        *(f"<li>{escape(text)}</li>" for text in measured_how(report)),
        "</ul>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def headers(report: Report) -> list[str]:
    """Returns the headers of the table of contestants."""
    return [
        "",
        "parameters",
        "pass rate",
        *(_perplexities(report)),
        "tokens/s",
        "weights on disk",
        "peak memory",
    ]


def cells(report: Report, standing: Standing) -> list[str]:
    """Returns a contestant's row, as text."""
    quality = UNKNOWN
    if standing.quality is not None and standing.stderr is not None:
        quality = f"{standing.quality:.3f} ± {standing.stderr:.3f}"
    values = {
        "perplexity per token": standing.perplexity_per_token,
        "perplexity per byte": standing.perplexity_per_byte,
    }
    return [
        standing.name,
        _known(standing.parameters, "{:,}"),
        quality,
        *(_known(values[name], "{:.3f}") for name in _perplexities(report)),
        _known(standing.tokens_per_s, "{:,.0f}"),
        UNKNOWN if standing.weights_bytes is None else size_text(standing.weights_bytes),
        UNKNOWN if standing.peak_bytes is None else size_text(standing.peak_bytes),
    ]


def measured_how(report: Report) -> list[str]:
    """Returns what a reader has to know to believe the numbers, or not."""
    sentences = [
        f"Quality: the share of {report.judged} held-out prompts whose greedy answer passed the task's "
        "verifier; ± is the standard error over the prompts. Every evaluation beside the learning curves "
        "is the run's own, with its settings."
        if report.judged
        else "Nobody judges this task's answers, so there is no pass rate.",
        f"Speed: {report.batch}, greedily, an end of the answer ignored, prompts included; the median of "
        "rounds in which every model took a turn, in one process. The speed-up is the median of the rounds' "
        "ratios.",
        "Peak memory: what MLX held at most while it decoded that batch, with nothing else loaded: weights, "
        "key-value memory and activations. In small models the latter two are most of it.",
        "Weights on disk: as an export writes what is loaded.",
        "Cost: seconds in which actors worked, by the clock; evaluation and start-up are not counted. On a "
        "machine that did other things too they are too many.",
        f"{report.machine}, MLX on {report.backend}; {report.made}.",
    ]
    if report.texts:
        sentences.insert(
            1,
            f"Perplexity: of the right answers to {report.texts} held-out prompts, with the token that ends "
            "them.",
        )
    return sentences + [f"{text[0].upper()}{text[1:]}." for text in report.notes]


# ── sections ─────────────────────────────────────────────────────────────────────────────────────


def _promise(report: Report) -> list[str]:
    parts = []
    for teacher, claims in report.promise.items():
        opponent = teacher if len(report.promise) > 1 else "its teacher"
        parts += [f"<h2>The student against {escape(opponent)}</h2>", "<ul>"]
        parts += [
            f'<li><span class="verdict {claim.verdict}">{claim.verdict}</span>{escape(claim.sentence)} '
            f'<span class="quiet">(promised: {escape(claim.needed)})</span></li>'
            for claim in claims
        ]
        parts.append("</ul>")
    if not parts:
        parts.append(_paragraph("There is no local teacher to compare the student with."))
    return parts


def _contestants(report: Report) -> str:
    rows = [cells(report, standing) for standing in report.contestants]
    for row, standing in zip(rows, report.contestants):
        row[0] = f"{escape(row[0])}<br><small>{escape(standing.where)}</small>"
        row[1:] = map(escape, row[1:])
    return _table(headers(report), rows)


def _list(title: str, sentences: Sequence[str]) -> list[str]:
    """Returns a heading with a list under it; nothing without sentences."""
    items = [f"<li>{escape(text)}</li>" for text in sentences]
    return [f"<h2>{title}</h2>", "<ul>", *items, "</ul>"] if items else []


def _bars(standings: Sequence[Standing]) -> str:
    """Returns bars of the speed beside the pass rate, or beside the perplexity where nothing passes."""

    def column(title: str, form: str, values: Sequence[tuple[float | None, float]]) -> Bars:
        return title, [(value, error, _known(value, form)) for value, error in values]

    speed = column("tokens/s", "{:,.0f}", [(s.tokens_per_s, 0.0) for s in standings])
    passing = [(s.quality, s.stderr or 0.0) for s in standings]
    surprised = [(s.perplexity_per_token, 0.0) for s in standings]
    columns = [speed]
    if any(quality for quality, _ in passing):
        columns.insert(0, column("pass rate", "{:.3f}", passing))
    elif any(value for value, _ in surprised):
        columns.insert(0, column("perplexity per token (less is better)", "{:.2f}", surprised))
    return bars([s.name for s in standings], columns)


def _curves(report: Report) -> list[str]:
    known = [cost for cost in report.costs if cost.curve]
    if not known:
        return [_paragraph("The runs were not evaluated while they learned.")]
    levels = [
        (s.name, s.quality)
        for s in report.contestants
        if s.role == "teacher" and s.quality is not None
    ]
    by_step = [(c.run, [(float(step), score) for step, _, score in c.curve]) for c in known]
    by_work = [(c.run, [(round(work, 2), score) for _, work, score in c.curve]) for c in known]
    return [
        curve(by_step, "steps", "held-out pass@1", levels=levels),
        curve(by_work, "seconds of work", "held-out pass@1", levels=levels),
    ]


def _costs(costs: Sequence[Cost]) -> str:
    header = ["", "steps", "work", "learner", "teacher", "sampler", "verifier", "teacher tokens",
              "cached", "sampled tokens", "trained tokens"]  # fmt: skip
    rows = []
    for cost in costs:
        seconds = (cost.work_s, cost.learner_s, cost.teacher_s, cost.sampler_s, cost.verifier_s)
        texts = [f"{value:.1f} s" for value in seconds]
        if cost.hosted:
            texts[2] = "in learner"
        name = f"{escape(cost.run)}<br><small>{escape(cost.algorithm)}</small>"
        counts = (cost.sampled_tokens, cost.trained_tokens)
        rows.append(
            [
                name,
                f"{cost.step:,}",
                *texts,
                "all trained" if cost.hosted else f"{cost.teacher_tokens:,}",
                _known(cost.cached_share, "{:.0%}"),
                *(f"{count:,}" for count in counts),
            ]
        )
    return _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of cells that are HTML already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    lines = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    body = "\n".join(lines)
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"
    return f'<div class="scroll"><table>\n{inside}\n</table></div>'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _perplexities(report: Report) -> list[str]:
    if not report.texts:
        return []
    differ = any("tokenizers differ" in note for note in report.notes)
    return ["perplexity per token", *(["perplexity per byte"] if differ else [])]


def _known(value: Any, form: str) -> str:
    return UNKNOWN if value is None else form.format(value)
