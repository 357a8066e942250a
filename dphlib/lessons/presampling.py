"""What the pre-samples look like and what a threshold makes of them: tables, and the figure of the partition.

Each function takes the verified groups of the pre-sampling (`Pipeline.groups`) and gives what a reader looks at. The
partition itself is `partition.partition`. Suites without the label `subset` (clean, hidden, hard) have one part, `all`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binom

from dphlib.figures.style import note, panels
from dphlib.figures.training import EXPLORE, REHEARSE
from dphlib.partition import Reference, partition
from dphlib.types import OUTCOMES, Group

PARTS = {"clean": "#9CC2B1", "hidden": "#5A4E7C", "hard": "#C9B27C"}


def _part(group: Group) -> str:
    return group.problem.meta.get("subset", "all")


def _size(groups: Sequence[Group]) -> int:
    if not groups:
        raise ValueError("no pre-sampled group: pre-sample the suite first")
    return len(groups[0].answers)


def counts(groups: Sequence[Group]) -> pd.DataFrame:
    """Prompts by how many of their k answers are correct, one row per question family.

    Columns: subset, family, 0 ... k.
    """
    k = _size(groups)
    rows = [(_part(g), g.problem.meta.get("family", ""), g.correct) for g in groups]
    frame = pd.DataFrame(rows, columns=["subset", "family", "correct"])
    wide = pd.crosstab([frame["subset"], frame["family"]], frame["correct"]).reindex(columns=range(k + 1), fill_value=0)
    return wide.rename_axis(columns=None).reset_index()


def findings(groups: Sequence[Group], extra: Sequence[Group], threshold: int) -> list[str]:
    """What the partition at a threshold is, in sentences.

    The first is on its size and references, the second on the luck that its threshold lets in, the third on its parts
    where prompts are labelled so.
    """
    k, near = _size(groups), sets(groups, extra, threshold).set_index("set").loc["D_pef"]
    stored = f"{near['with a reference']:.0f} of them have a stored answer"
    size = f"{near['prompts']:.0f} of {len(groups)} prompts ({near['share (%)']:.1f} %)"
    size += f" are near perfect at {threshold} of {k}"
    said = [f"{size}; {stored}."]
    chose, again = near[f"correct of the {k} (%)"], near["correct of the extra one (%)"]
    if near["prompts"]:
        luck = f"selection luck is {chose - again:+.1f} points"
        said.append(
            f"Of the answers that selected them {chose:.1f} % are correct, of the extra answers {again:.1f} %: {luck}."
        )
    sizes = {part: sum(_part(g) == part for g in groups) for part in PARTS}
    shares = [f"{100 * near[part] / size:.0f} % of the {part} prompts" for part, size in sizes.items() if size]
    return [*said, f"{', '.join(shares)} are near perfect."] if shares else said


def spread(groups: Sequence[Group]) -> str:
    """How many prompts are always solved, never, and sometimes, in a sentence."""
    k = _size(groups)
    always, never = (100 * np.mean([g.correct == n for g in groups]) for n in (k, 0))
    between = f"{100 - always - never:.0f} % in some"
    return f"Of {len(groups)} prompts {always:.0f} % were solved in all {k} answers, {never:.0f} % in none, {between}."


def outcomes(groups: Sequence[Group]) -> pd.DataFrame:
    """Answers by verdict: one row per outcome that occurs, with its share in each subset and one answer that has it."""
    rows = [
        (verdict.outcome, _part(group), answer.text)
        for group in groups
        for answer, verdict in zip(group.answers, group.verdicts, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["outcome", "subset", "example"])
    share = pd.crosstab(frame["outcome"], frame["subset"], normalize="columns")
    table = (100 * share).round(1).add_suffix(" (%)").rename_axis(columns=None)
    table.insert(0, "answers", frame["outcome"].value_counts())
    table["example"] = frame.groupby("outcome")["example"].first()
    return table.loc[[name for name in OUTCOMES if name in table.index]].reset_index()


def sets(groups: Sequence[Group], extra: Sequence[Group], threshold: int) -> pd.DataFrame:
    """D_pef and D_exp at a threshold: prompts by subset, references, accuracy in the k draws and in the fresh one.

    The k draws chose the set, so their accuracy flatters D_pef (and belittles D_exp); the extra draw chose nothing.
    """
    k, parts = _size(groups), partition(groups, threshold, extra)
    fresh = {g.problem.id: g.correct / len(g.answers) for g in extra}
    rows = []
    for name, chosen in (("D_pef", parts.near_perfect), ("D_exp", parts.exploration)):
        ids = {problem.id for problem in chosen}
        members = [g for g in groups if g.problem.id in ids]
        again = [fresh[g.problem.id] for g in members if g.problem.id in fresh]
        row = {"set": name, "prompts": len(members), "share (%)": 100 * len(members) / len(groups)}
        row |= {part: sum(_part(g) == part for g in members) for part in sorted({_part(g) for g in groups})}
        row |= {"with a reference": len({r.problem.id for r in parts.references} & ids)}
        row |= {f"correct of the {k} (%)": 100 * np.mean([g.correct / k for g in members]) if members else np.nan}
        rows.append(row | {"correct of the extra one (%)": 100 * np.mean(again) if again else np.nan})
    return pd.DataFrame(rows)


def of_bases(drawn: Mapping[int, tuple[Sequence[Group], Sequence[Group]]], threshold: int) -> pd.DataFrame:
    """The partition of each base in one row: prompts by set, references, accuracy in the k draws.

    Args:
        drawn: index of a base -> its groups of the k draws and of the extra one.
    """
    rows = []
    for index, (groups, extra) in drawn.items():
        near, exploration, references = partition(groups, threshold, extra)
        accuracy = 100 * np.mean([g.correct / _size(groups) for g in groups])
        sizes = {"D_pef": len(near), "D_exp": len(exploration), "references": len(references)}
        rows.append({"base": index, "correct (%)": accuracy, **sizes})
    return pd.DataFrame(rows)


def thresholds(groups: Sequence[Group], extra: Sequence[Group], chosen: int) -> pd.DataFrame:
    """What each threshold from 1 to k would give: sizes of both sets, references, and the `chosen` one marked.

    `hidden in D_pef` is there where problems are labelled so, as the CPU world's are.
    """
    k, rows = _size(groups), []
    labelled = any(_part(group) == "hidden" for group in groups)
    for threshold in range(1, k + 1):
        near, exploration, references = partition(groups, threshold, extra)
        hidden = sum(problem.meta.get("subset") == "hidden" for problem in near)
        rows.append(
            {
                "threshold": f"{threshold} of {k}",
                "": "chosen" if threshold == chosen else "",
                "D_pef": len(near),
                "D_pef (%)": 100 * len(near) / len(groups),
                **({"hidden in D_pef": hidden} if labelled else {}),
                "D_exp": len(exploration),
                "references": len(references),
                "D_pef without a reference": len(near) - len(references),
            }
        )
    return pd.DataFrame(rows)


def reference_tokens(
    references: Sequence[Reference], pieces: Callable[[list[int]], list[str]], example: int
) -> pd.DataFrame:
    """One stored answer by token: token, log pi_ref (nats), probability, the running sum; no row without references.

    Args:
        pieces: token ids to their text, such as a tokenizer's `convert_ids_to_tokens`.
        example: which reference; counts on from the first after the last.
    """
    ids, logprobs = [], np.array([])
    if references:
        shown = references[example % len(references)]
        ids, logprobs = list(shown.token_ids), np.array(shown.logprobs)
    columns = {
        "token": pieces(ids),
        "log pi_ref (nats)": logprobs,
        "probability": np.exp(logprobs),
        "sum (nats)": logprobs.cumsum(),
    }
    return pd.DataFrame(columns)


def partition_figure(groups: Sequence[Group], extra: Sequence[Group], threshold: int) -> Figure:
    """Counts of correct pre-samples by subset, D_pef at every threshold, and what the partition can tell apart."""
    k, table = _size(groups), thresholds(groups, extra, threshold)
    fig, axes = panels(1, 3, 2.6, width_ratios=(1.2, 1, 1))
    _draw_counts(axes[0, 0], groups, k, threshold)
    _draw_sizes(axes[0, 1], table, threshold)
    _draw_chances(axes[0, 2], k, threshold)
    note(fig, [f"Dashed: threshold {threshold} of {k}. Right: binomial, thick at that threshold, thin at the others."])
    return fig


def _draw_counts(ax: Axes, groups: Sequence[Group], k: int, threshold: int) -> None:
    start, parts = np.zeros(k + 1), [p for p in PARTS if p in {_part(g) for g in groups}] or ["all"]
    for part in parts:
        heights = np.bincount([g.correct for g in groups if _part(g) == part], minlength=k + 1)
        ax.bar(range(k + 1), heights, bottom=start, color=PARTS.get(part, EXPLORE), width=0.82, label=part)
        start = start + heights
    ax.axvline(threshold - 0.5, color="#222", linestyle=(0, (4, 1.6)), linewidth=1)
    ax.set(xlabel=f"correct of {k} pre-samples", ylabel="training prompts", title="pre-samples")
    ax.set_ylim(0, 1.22 * start.max())
    ax.set_xticks(range(k + 1))
    ax.grid(axis="x", visible=False)
    left = 2 * threshold > k  # of the line, where there is room
    where = 0.16 if left else 0.9
    loc: Literal["upper left", "upper right"] = "upper left" if left else "upper right"
    ax.legend(loc=loc, bbox_to_anchor=(where, 1), handlelength=0.9, handleheight=0.9)


def _draw_sizes(ax: Axes, table: pd.DataFrame, threshold: int) -> None:
    with_one, without = table["references"], table["D_pef without a reference"]
    for values, bottoms, colour, name in (
        (with_one, 0 * with_one, REHEARSE, "with a reference"),
        (without, with_one, "#B9C6DC", "without"),
    ):
        for at, value, bottom in zip(table.index + 1, values, bottoms, strict=True):
            shown = {"alpha": 1.0, "label": name} if at == threshold else {"alpha": 0.45}
            ax.bar([at], [value], bottom=[bottom], color=colour, width=0.82, **shown)
    ax.set(xlabel=f"threshold, of {len(table)}", title=r"size of $\mathbf{\mathcal{D}}_\mathbf{pef}$")
    ax.set_ylim(0, 1.3 * max(1, table["D_pef"].max()))
    ax.set_xticks(table.index + 1)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper right", handlelength=0.9, handleheight=0.9)


def _draw_chances(ax: Axes, k: int, threshold: int) -> None:
    accuracy = np.linspace(0, 1, 101)
    thick: dict[str, Any] = {"color": REHEARSE, "linewidth": 1.8, "zorder": 4}
    thin: dict[str, Any] = {"color": "#C9CED6", "linewidth": 0.7}
    for other in range(1, k + 1):
        ax.plot(100 * accuracy, 100 * binom.sf(other - 1, k, accuracy), **(thick if other == threshold else thin))
    ax.set(xlabel="true accuracy on a prompt (%)", ylabel=r"chance of $\mathcal{D}_\mathrm{pef}$ (%)")
    ax.set_title("what k draws can tell")
