"""What is written under each figure, by its name."""

from __future__ import annotations

_INTERVAL = "95 % interval over seeds and problems (hierarchical bootstrap with Student's quantile)"
CAPTIONS = {
    "fig1_method": "Answers sampled from the initial policy part the prompts into the near-perfect set, whose "
    "stored answers are rehearsed through the generator, and the exploration set, which is trained on as in GRPO. "
    "Bars: share of each solution style among the in-domain answers of the final models, mean over seeds.",
    "fig2_pass_at_k": "Top: mean over seeds, each seed as a faint point. Bottom: difference to the base on the "
    f"same problems; bands: {_INTERVAL}.",
    "fig2_pass_at_k_family": "Pass@k against k for the divergences of the rehearsal: forward KL (DPH-F), the "
    f"alpha family, JS (DPH-JS). Bottom: difference to the base on the same problems; bands: {_INTERVAL}.",
    "fig3_keep_explore": "Capability split on the in-domain suite. Keep: of what the base solves with k answers, "
    "the share that the tuned model still solves; explore: of the rest, the share newly solved. Bars: "
    f"{_INTERVAL}; faint points: seeds; dashed: the base against fresh draws of itself. The paper's k is not "
    "available; ours is on the axis.",
    "fig4_styles": "Left: share of each style among sampled in-domain answers, mean over seeds. Right: entropy "
    f"of the styles within a problem's answers; bars: {_INTERVAL}; the dotted line is four styles in equal use.",
    "fig5_training": "Each seed is a thin line, the mean over seeds thick; no interval.",
    "fig6_cost": "Left: seconds an iteration by phase, median over iterations. Middle: tokens through the policy "
    "(forward and backward) and through an online reference model, mean. Right: peak resident memory of the "
    "process.",
    "fig7_divergences": "The generators f against d = log pi_theta - log pi_ref of a token, and their gradients.",
    "fig8_pass_over_steps": "In-domain Pass@k over training, each seed a thin line, the mean over seeds thick; "
    "no interval. Points on the way are estimated from fewer answers than the last; the estimator is unbiased in "
    "both.",
    "fig9_base": "Left: Pass@k of the base, with the 95 % interval over problems. Middle: correct answers of the "
    "pre-samples of each training prompt, with the threshold of the partition. Right: sizes of the two sets.",
    "fig10_claims": "The paper's claims. Each is turned into effects that are positive if it holds; the line is "
    "the 95 % interval over seeds and problems of the weakest effect, which decides, the faint points are its "
    "other effects, the tick is the tolerance below zero where the claim is a `not worse`.",
    "fig11_controls": "Each row is one comparison, its first arm minus its second on the same problems; right of "
    f"the line the first is higher; bars: {_INTERVAL}.",
    "fig12_eta": "Each method at several weights of its divergence; the filled point is the main run; lines join "
    f"weights of one method; bars: {_INTERVAL}.",
    "fig13_ablations": "Each row is one setting changed, minus the main run of its method on the same problems; "
    f"right of the line the changed setting is higher; bars: {_INTERVAL}.",
    "fig14_hard": "Problems of which the base solved at most an eighth of its answers in the plain evaluation, "
    "all answered anew. Top: mean over seeds, each seed as a faint point. Bottom: difference to the base on the "
    f"same problems; bands: {_INTERVAL}.",
}
