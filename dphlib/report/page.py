"""The look of the HTML report: style sheet, page templates, and the small drawing of an effect. See `report`.

No script and no file from elsewhere: a page opens from a disk, on a telephone and on paper.
"""

from __future__ import annotations

from typing import Any

CSS = """
:root { --ink: #1d2129; --soft: #5b6472; --line: #dfe3e8; --page: #f6f7f9; --card: #ffffff; --accent: #0072b2;
  --good: #17683f; --good-bg: #e0f2e8; --bad: #a32a1c; --bad-bg: #fae5e1; --open: #7a5600; --open-bg: #fbf0d0;
  --none: #555d69; --none-bg: #e9ebee; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --soft: #a2aab6; --line: #343a44; --page: #15181d;
  --card: #1d2128; --accent: #6cb8e6; --good: #8fdcb2; --good-bg: #15382a; --bad: #f3a599; --bad-bg: #43201b;
  --open: #ecc978; --open-bg: #3b3014; --none: #b0b7c2; --none-bg: #2c323b; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 -apple-system, BlinkMacSystemFont, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
    sans-serif; }
a { color: var(--accent); }
header, main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 44px 0 12px; }
h3 { font-size: 1rem; margin: 26px 0 8px; }
p { margin: 8px 0; max-width: 76ch; }
.lead { font-size: 1.06rem; } .soft { color: var(--soft); font-size: 0.9rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--page); border-bottom: 1px solid var(--line);
  margin-top: 20px; }
nav div { max-width: 1080px; margin: 0 auto; padding: 10px 20px; display: flex; gap: 20px; overflow-x: auto;
  white-space: nowrap; }
nav a { text-decoration: none; font-size: 0.93rem; }
h2, h3, figure, article { scroll-margin-top: 56px; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 18px 0 6px; }
.tile { border-radius: 10px; padding: 12px 14px; } .tile b { display: block; font-size: 1.7rem; line-height: 1.15; }
.supported { color: var(--good); background: var(--good-bg); }
.not-supported { color: var(--bad); background: var(--bad-bg); }
.inconclusive { color: var(--open); background: var(--open-bg); }
.none { color: var(--none); background: var(--none-bg); }
.chip { display: inline-block; border-radius: 99px; padding: 2px 11px; font-size: 0.82rem; font-weight: 600;
  white-space: nowrap; }
.claim { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 13px 16px;
  margin: 10px 0; display: grid; grid-template-columns: 128px 1fr 250px; gap: 4px 16px; align-items: start;
  break-inside: avoid; }
.claim p { margin: 0 0 2px; } .claim .effect { text-align: right; font-variant-numeric: tabular-nums;
  font-size: 0.88rem; }
.claim svg { width: 100%; height: 34px; display: block; } .claim details { grid-column: 2 / -1; font-size: 0.88rem; }
summary { cursor: pointer; color: var(--soft); }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: 10px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 12px; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td span { display: block; } .ci, .cited { color: var(--soft); font-size: 0.92em; } .cited { font-style: italic; }
.not-run { color: var(--soft); } thead th { vertical-align: bottom; font-weight: 600; white-space: normal;
  min-width: 6.2em; }
tbody tr:last-child > * { border-bottom: 0; } tbody th, thead th:first-child { text-align: left; font-weight: 600; }
tbody th, .scroll thead th:first-child { position: sticky; left: 0; background: var(--card); }
.text td, .text th { text-align: left; } details .scroll td, details .scroll th { white-space: normal; }
figure { margin: 18px 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px;
  break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; background: #fff; border-radius: 6px; padding: 6px; }
figcaption { color: var(--soft); font-size: 0.9rem; margin-top: 10px; max-width: 92ch; } figcaption b { color:
  var(--ink); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 20px; margin: 10px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; } code { font-size: 0.92em; }
footer { margin-top: 52px; padding-bottom: 44px; border-top: 1px solid var(--line); padding-top: 14px; }
@media (max-width: 720px) {
  header { padding-top: 24px; } h1 { font-size: 1.4rem; } .tiles { grid-template-columns: repeat(2, 1fr); }
  .claim { grid-template-columns: 1fr; } .claim .effect { text-align: left; } .claim details { grid-column: 1; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 8px; } th, td { padding: 6px 9px; } figure {
    padding: 8px; }
  tbody th { white-space: normal; min-width: 6.5em; } }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --card: #fff; --accent: #000; }
  body { font-size: 10pt; } nav { display: none; } header, main, footer { max-width: none; padding: 0; }
  .scroll { overflow: visible; border: 0; } table { font-size: 7.5pt; } th, td { padding: 3px 5px; white-space:
    normal; }
  thead th { min-width: 0; } tbody th, .scroll thead th:first-child { position: static; } h2, h3 { break-after:
    avoid; }
  .chip, .tile { border: 1px solid currentColor; print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

NOTEBOOK_CSS = """
.cell { margin: 14px 0; } .prompt, .anchor-link { display: none; } .text_cell img { max-width: 100%; }
.input_area, .output_area pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 14px; overflow-x: auto; font-size: 0.85rem; line-height: 1.45; }
.highlight pre, .output_area pre { margin: 0;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.output_area { margin: 8px 0; overflow-x: auto; } .output_stderr pre { color: var(--soft); }
.output_area img, .output_area svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px;
  padding: 6px; }
.rendered_html { overflow-x: auto; } .rendered_html table { width: auto; margin: 8px 0; }
.rendered_html td, .rendered_html th { white-space: normal; text-align: left; max-width: 30em; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>DPH-RL reproduced</title>
<style>{{ css | safe }}</style>
</head>
<body>
<header>
<h1>The Choice of Divergence: DPH-RL reproduced</h1>
<p class="lead">Every claim of {{ citation }} that this artifact tests, judged on the records of profile
<code>{{ profile }}</code>, with every figure and table beside the paper's numbers.</p>
<p class="soft">{{ what }}</p>
<div class="tiles">
{% for verdict, count in counts.items() %}
<div class="tile {{ classes[verdict] }}"><b>{{ count }}</b>{{ verdict }}</div>
{% endfor %}</div>
</header>
<nav><div><a href="#claims">Claims</a><a href="#tables">Tables</a><a href="#figures">Figures</a>
<a href="#notebooks">Notebooks</a><a href="#run">This run</a></div></nav>
<main>
<section id="claims">
<h2>Claims</h2>
<p class="soft">Each effect is directed so that the claim says it is positive: right of the line is as the paper
has it. Bar: 95 % interval over seeds and problems; dot: estimate; ticks: seeds; dashed: tolerance. The part
  that decided is shown; the
others are below it.</p>
{% for claim in claims %}
<article class="claim" id="{{ claim.id }}">
<div><span class="chip {{ classes[claim.verdict] }}">{{ marks[claim.verdict] }} {{ claim.verdict }}</span></div>
<div><p>{{ claim.text }}</p><p class="soft">{{ claim.paper_ref }} · {{ claim.detail }}</p></div>
<div class="effect">{{ claim.drawing | safe }}{{ claim.effect }}</div>
<details><summary>{{ claim.parts | length }} part{{ "s" if claim.parts | length > 1 }}</summary>
<div class="scroll text"><table>
<thead><tr><th>part</th><th>verdict</th><th>effect</th><th>seeds</th></tr></thead><tbody>
{% for part in claim.parts %}<tr><td>{{ part.label }}</td>
<td>{{ part.verdict }}{{ ": " + part.reason if part.reason }}</td>
<td>{{ part.effect or "-" }}</td><td>{{ part.per_seed | length or "-" }}</td></tr>
{% endfor %}</tbody></table></div></details>
</article>
{% endfor %}
</section>
<section id="tables">
<h2>Tables</h2>
{% for table in tables %}
<h3 id="{{ table.name }}">{{ table.title }}</h3>
<div class="scroll{{ " text" if table.name == "methods" }}">{{ table.html | safe }}</div>
<p class="soft">{{ table.note }} <a href="../tables/{{ table.name }}.csv">CSV</a></p>
{% endfor %}
</section>
<section id="figures">
<h2>Figures</h2>
{% for figure in figures %}
<figure id="{{ figure.name }}"><a href="../figures/{{ figure.name }}.png"><img src="../figures/{{ figure.name }}.svg"
alt="{{ figure.title }}. {{ figure.caption }}" loading="lazy"></a>
<figcaption><b>{{ figure.title }}.</b> {{ figure.caption }}</figcaption></figure>
{% endfor %}
{% if absent %}<p class="soft">Not drawn, for their data are not in this run: {{ absent | join(", ") }}.</p>
{% endif %}
</section>
<section id="notebooks">
<h2>Notebooks, as executed</h2>
{% if notebooks %}<div class="scroll text"><table>
<thead><tr><th>notebook</th><th>minutes</th><th>file</th></tr></thead><tbody>
{% for notebook in notebooks %}<tr><td><a href="notebooks/{{ notebook.stem }}.html">{{ notebook.title }}</a></td>
<td>{{ notebook.minutes }}</td><td><a href="../notebooks/{{ notebook.stem }}.ipynb">ipynb</a></td></tr>
{% endfor %}</tbody></table></div>{% else %}<p>No executed notebook in this run.</p>{% endif %}
</section>
<section id="run">
<h2>This run</h2>
<dl>{% for name, value in facts.items() %}<dt>{{ name }}</dt><dd>{{ value }}</dd>{% endfor %}</dl>
</section>
</main>
<footer class="soft"><p>Generated from <code>claims.json</code>, <code>tables/</code>, <code>figures/</code> and
<code>manifest.json</code> of this run. Run it yourself: <code>./run_all.sh {{ profile }}</code>.</p></footer>
</body>
</html>
"""

NOTEBOOK_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ css | safe }}</style>
</head>
<body>
<nav style="margin-top:0"><div><a href="../index.html">Report</a>
{% if before %}<a href="{{ before }}.html">&larr; {{ before }}</a>{% endif %}
{% if after %}<a href="{{ after }}.html">{{ after }} &rarr;</a>{% endif %}
<a href="../../notebooks/{{ stem }}.ipynb">ipynb</a></div></nav>
<main>{{ body | safe }}</main>
</body>
</html>
"""

CLASSES = {
    "supported": "supported", "not supported": "not-supported", "inconclusive": "inconclusive", "not run": "none",
}  # fmt: skip
MARKS = {"supported": "✓", "not supported": "✗", "inconclusive": "~", "not run": "–"}


def effect_drawing(claim: dict[str, Any]) -> str:
    """An effect with its interval as inline SVG, 0 in the middle; "" where it was not run.

    Args:
        claim: entry of `claims.json`, or a part of one: verdict, estimate, low, high, per_seed, tolerance.
    """
    if claim["estimate"] is None:
        return ""
    values = [claim["low"], claim["high"], claim["estimate"], *(value for _, value in claim["per_seed"])]
    tolerance = claim.get("tolerance") or 0.0
    limit = 1.12 * max(max(map(abs, values)), tolerance, 1e-9)

    def x(value: float) -> str:
        return f"{125 + 118 * value / limit:.1f}"

    colour = {"supported": "var(--good)", "not supported": "var(--bad)"}.get(claim["verdict"], "var(--open)")
    dashed = ""
    if tolerance:
        dashed = f'<path d="M{x(-tolerance)} 5V29" stroke="var(--soft)" stroke-dasharray="3 2" fill="none"/>'
    ticks = "".join(f'<path d="M{x(value)} 12V22" stroke="{colour}" opacity=".6"/>' for _, value in claim["per_seed"])
    return (
        '<svg viewBox="0 0 250 34" role="img" aria-label="effect with interval">'
        '<path d="M4 17H246" stroke="var(--line)"/><path d="M125 4V30" stroke="var(--ink)"/>' + dashed
        + f'<path d="M{x(claim["low"])} 17H{x(claim["high"])}" stroke="{colour}" stroke-width="6" opacity=".35"/>'
        + ticks + f'<circle cx="{x(claim["estimate"])}" cy="17" r="4.5" fill="{colour}"/></svg>'
    )  # fmt: skip
