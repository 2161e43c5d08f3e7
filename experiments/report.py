"""A run as one HTML page that needs no other file, while it runs, too. Needs matplotlib.

python -m experiments.report results/DIR [PAGE.html]     default: DIR/report.html
"""

import html
import io
import json
import pathlib
import shlex
from collections import Counter

import numpy as np

from experiments import command
from experiments.plot import Belief, Run, draw_run, style
from hpo.space import domains, encode

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 1100px; margin: auto; padding: 1em }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: .6em }}
.wide {{ overflow-x: auto }}  svg {{ width: 100%; height: auto; min-width: 700px }}
td, th {{ padding: .1em .7em .1em 0; text-align: left; vertical-align: top }}
table {{ font-size: 14px; border-collapse: collapse }}  tr {{ border-bottom: 1px solid #ddd }}
@media print {{ svg {{ min-width: 0 }}  section {{ break-inside: avoid }}  body {{ padding: 0 }} }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""
FLAGS = {"config_space": "space", "assignments": "set"}  # argument -> flag of run.py


def command_line(run):
    """The command of a run, for the files that are named FILE in it see its journal.jsonl."""
    words = ["python", "run.py", run.arguments.get("objective") or ""]
    for name, value in run.arguments.items():
        if name != "objective" and value not in (None, []):
            values = value if isinstance(value, list) and name == "assignments" else [value]
            texts = ["FILE" if isinstance(v, (dict, list)) else str(v) for v in values]
            words += [word for text in texts for word in (f"--{FLAGS.get(name, name)}", text)]
    return shlex.join(words)


def table(head, rows):
    """An HTML table; texts are escaped here."""

    def row(cells, tag):
        texts = [f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells]
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    lines = [row(head, "th"), *(row(cells, "td") for cells in rows)]
    return "<div class=wide><table><tr>" + "</tr>\n<tr>".join(lines) + "</tr></table></div>"


def section(head, *parts):
    return f"<section><h2>{head}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text, tag="p"):
    return f"<{tag}>{html.escape(text)}</{tag}>"


def best_trials(run, belief):
    """HTML: the best configuration, how sure it is, and the ten best in a table."""
    best = sorted((t for t in run.shown if t.value is not None), key=lambda t: t.value)[:10]
    if not best:
        return [paragraph(f"No trial has reported {run.metric} so far.")]
    expected = [("", "")] * len(best)
    parts = [paragraph(json.dumps(best[0].config, ensure_ascii=False), "pre")]
    text = f"Trial {best[0].id} reported {run.metric} {run.sign * best[0].value:.6g}"
    text += f" at epoch {best[0].best_epoch}."
    if belief.model:
        loss, deviation = belief.predict(np.array([encode(run.space, t.config) for t in best]))
        expected = [(f"{run.sign * m:.6g}", f"{d:.2g}") for m, d in zip(loss, deviation)]
        text += " The best of many noisy values is a lucky one: a Gaussian process of all trials"
        text += f" expects {expected[0][0]} ± {expected[0][1]} of it at the last epoch."
    names = list(domains(run.space))
    rows = [
        (t.id, t.status, run.sign * t.value, t.best_epoch, *of_model, *(t.config[n] for n in names))
        for t, of_model in zip(best, expected)
    ]
    head = ["trial", "status", run.metric, "epoch", "expected", "±", *names]
    return [paragraph(text), *parts, table(head, rows)]


def failures(run):
    """HTML: the reasons why trials failed, the most frequent first."""
    failed = [trial for trial in run.shown if trial.status == "failed"]
    counts = Counter(trial.error for trial in failed).most_common(30)
    ids = {error: [trial.id for trial in failed if trial.error == error] for error, _ in counts}
    rows = [(n, ", ".join(map(str, ids[error][:10])), error) for error, n in counts]
    return table(["trials", "which", "reason"], rows) if rows else paragraph("No trial failed.")


def write_page(folder, path):
    run = Run(folder)
    belief, first = Belief(run), run.journal.run
    counts = Counter(trial.status for trial in run.trials)
    counts = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no trial so far"
    best = f": {run.metric} {run.sign * run.best.value:.6g}" if run.best else ""
    with style():
        pictures = []
        for name, figure in (draw_run(run, belief) if run.trials else {}).items():
            figure.savefig(file := io.StringIO(), format="svg", metadata={"Date": None})
            svg = file.getvalue()
            pictures.append(section(name, f"<div class=wide>{svg[svg.index('<svg') :]}</div>"))
    versions = ", ".join(f"{name} {text}" for name, text in first.get("versions", {}).items())
    body = [
        paragraph(f"{counts}; {run.clock / 60:.1f} minutes. Begun {first.get('time', '')}."),
        paragraph(command_line(run), "pre"),
        section("Best", *best_trials(run, belief)), *pictures, section("Failures", failures(run)),
        section("Where", paragraph(f"{first.get('machine', '')}; {versions}")),
    ]  # fmt: skip
    title = html.escape(f"{run.folder.resolve().name}{best}")
    path.write_text(PAGE.format(title=title, body="\n".join(body)), encoding="utf-8")


def main(arguments=None):
    parser = command.parser("report", __doc__)
    parser.add_argument("folder", metavar="DIR", type=pathlib.Path, help="the folder of a run")
    parser.add_argument("page", metavar="PAGE.html", type=pathlib.Path, nargs="?")
    args = parser.parse_args(arguments)
    page = args.page or args.folder / "report.html"
    with command.checking(parser):
        write_page(args.folder, page)
    print(page)


if __name__ == "__main__":
    command.run("report")
