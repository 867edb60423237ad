"""Writes docs/metrics.md from the list in runtime/metrics.py: `python -m ops.metrics_page`."""

from pathlib import Path

from runtime.metrics import METRICS

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
HEAD = """# Metrics

One object a step in `metrics.jsonl` and, of the last step, in `pippin status RUN --json`. While a
run goes on each is also a gauge in Ray's Prometheus export, as `ray_pippin_NAME` with the label
`run`; `pippin dashboard RUN` prints the export's address (loopback only; Ray protects it with no
token). The names stay.

| name | what |
|---|---|
"""

if __name__ == "__main__":
    PAGE.write_text(HEAD + "".join(f"| `{name}` | {what} |\n" for name, what in METRICS.items()))
