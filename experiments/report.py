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
{body}
</body></html>
"""


def command_line(run):
    """The command of a run. FILE: what was in it is in the run's journal.jsonl."""
    words = ["python", "run.py"]
    for name, value in run.arguments.items():
        flag = {"objective": [], "config_space": ["--space"], "assignments": ["--set"]}
        for one in value if name in ("assignments", "learn_from") else [value]:
            if one is not None:
                words += flag.get(name, [f"--{name}"])
                words.append("FILE" if isinstance(one, (dict, list)) else str(one))
    return shlex.join(words)


def element(tag, text):
    return f"<{tag}>{html.escape(text)}</{tag}>"


def table(rows):
    """An HTML table of dicts that have the same keys; numbers are shortened, and texts escaped."""
    if not rows:
        return element("p", "None.")
    lines = ["".join(element("th", name) for name in rows[0])]
    for row in rows:
        texts = [f"{x:.6g}" if isinstance(x, float) else str(x) for x in row.values()]
        lines.append("".join(element("td", text) for text in texts))
    return f"<div class=wide><table><tr>{'</tr><tr>'.join(lines)}</tr></table></div>"


def best_trials(run, belief):
    """HTML: the best configuration, how sure it is, and the ten best in a table."""
    if not (best := run.ranked[:10]):
        return element("p", f"No trial has reported {run.metric} so far.")
    rows = [
        {"trial": t.id, "status": t.status, run.metric: run.sign * t.value, "epoch": t.best_epoch}
        for t in best
    ]
    text = f"Trial {best[0].id} reported {run.metric} {run.journal.to_metric(best[0].value):.6g}. "
    if belief.model:
        predicted = belief.predict(np.array([encode(run.space, t.config) for t in best]))
        for row, loss, deviation in zip(rows, *predicted):
            row |= {"expected": float(run.sign * loss), "±": f"{deviation:.2g}"}
        text += "The best of many noisy values is a lucky one: the model of all trials expects "
        text += f"{rows[0]['expected']:.6g} ± {rows[0]['±']} of it at the last epoch."
    rows = [row | {n: t.config[n] for n in domains(run.space)} for row, t in zip(rows, best)]
    config = element("pre", json.dumps(best[0].config, ensure_ascii=False))
    return element("p", text) + config + table(rows)


def write_page(folder, path):
    run = Run(folder)
    belief, first, counts = Belief(run), run.journal.run, Counter(t.status for t in run.trials)
    counts = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no trial so far"
    title = run.folder.resolve().name
    began = f"{counts} after {run.clock / 60:.1f} minutes; begun {first.get('time', '')}"
    body = element("h1", title) + element("p", began) + element("pre", command_line(run))
    sections = {"Best": best_trials(run, belief)}
    with style():
        for name, figure in (draw_run(run, belief) if run.trials else {}).items():
            figure.savefig(file := io.StringIO(), format="svg", metadata={"Date": None})
            svg = file.getvalue()
            sections[name.title()] = f"<div class=wide>{svg[svg.index('<svg') :]}</div>"
    reasons = Counter(trial.error for trial in run.failed).most_common(30)
    first_of = {trial.error: trial.id for trial in reversed(run.failed)}
    sections["Failures"] = table(
        [{"trials": n, "the first": first_of[error], "reason": error} for error, n in reasons]
    )
    versions = ", ".join(f"{name} {text}" for name, text in first.get("versions", {}).items())
    sections["Machine and versions"] = element("p", f"{first.get('machine', '')}; {versions}")
    for name, content in sections.items():
        body += f"\n<section><h2>{name}</h2>{content}</section>"
    path.write_text(PAGE.format(title=html.escape(title), body=body), encoding="utf-8")


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
