"""Named studies: which arms are trained to answer one question, and what each is compared with.

    study_runs(settings, chosen("eta,controls"))     every run that these two need, each once

Two names are no comparisons of arms: `hard` and `temperature` (module `experiment.exploratory`) draw more answers of
main runs, to the problems that the base seldom solves and at other temperatures. They are asked for in the same way.

The arms of Tables 3 to 5 are part of every run (`Profile.ablation_runs`); the others are trained when their study is
asked for. A comparison changes one thing: a setting of a method's main run (`variants`), or the method itself. All arms
of a profile share the base, the prompts, the stored answers' draws and the evaluation's number of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dphlib.rivals import RIVALS
from dphlib.runtime.files import unknown
from dphlib.settings.methods import CONTROLS, METHOD_CONFIGS
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import MAIN, RunConfig


class Arm(NamedTuple):
    """All seeds of a method and variant."""

    method: str
    variant: str = MAIN


class Comparison(NamedTuple):
    """`arm` against another one; `change` says in words what differs where the variant alone does not."""

    arm: Arm
    against: Arm
    change: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    """A question, and the comparisons that answer it in a profile."""

    question: str
    comparisons: Callable[[Profile], Sequence[Comparison]]


def _set(*arms: tuple[str, str]) -> list[Comparison]:
    """Each arm against the main run of its method."""
    return [Comparison(Arm(*arm), Arm(arm[0])) for arm in arms]


_GRPO_DEXP_HIGH = Arm("grpo_dexp", "clip_high=0.28")


def _controls(settings: Profile) -> list[Comparison]:
    return [
        Comparison(Arm("grpo_dexp"), Arm("grpo"), "Training GRPO on D_exp alone instead of on all prompts"),
        Comparison(Arm("sft_rehearsal"), Arm("dph_f"), "Rehearsing by plain -log pi instead of forward KL"),
        Comparison(Arm("dph_f_all"), Arm("dph_f"), "Exploring and rehearsing all prompts instead of parting them"),
        Comparison(Arm("dph_f"), _GRPO_DEXP_HIGH, "Adding DPH-F's rehearsal to GRPO on D_exp at the same clip"),
        Comparison(Arm("dph_js"), _GRPO_DEXP_HIGH, "Adding DPH-JS's rehearsal to GRPO on D_exp at the same clip"),
    ]


def _eta(settings: Profile) -> list[Comparison]:
    """Each divergence at a quarter and four times its weight; RKL at eight too, its ratio to the authors' eta / 8."""
    methods = [name for name, config in METHOD_CONFIGS.items() if config.weight] + ["rkl_k2", "dph_rkl"]
    arms = [(name, f"eta={factor * settings.weight(name):g}") for name in methods for factor in (0.25, 4)]
    return _set(*arms, *((name, f"eta={8 * settings.weight(name):g}") for name in ("rkl", "rkl_k2")))


# Explored prompts x rehearsed answers, all at DPH's upper clip.
_CELLS = {
    ("all", "nothing"): Arm("grpo", "clip_high=0.28"),
    ("D_exp", "nothing"): _GRPO_DEXP_HIGH,
    ("all", "D_pef"): Arm("dph_f_explore_all"),
    ("D_exp", "D_pef"): Arm("dph_f"),
    ("all", "all"): Arm("dph_f_all"),
    ("D_exp", "all"): Arm("dph_f_rehearse_all"),
}


def _factorial(settings: Profile) -> list[Comparison]:
    """Every step of one factor at every level of the other."""
    found = [
        Comparison(
            _CELLS[explored, to],
            _CELLS[explored, before],
            f"Rehearsing {to} instead of {before}, exploring {explored},",
        )
        for before, to in (("nothing", "D_pef"), ("D_pef", "all"))
        for explored in ("all", "D_exp")
    ]
    for rehearsed in ("nothing", "D_pef", "all"):
        change = f"Exploring D_exp instead of all, rehearsing {rehearsed},"
        found.append(Comparison(_CELLS["D_exp", rehearsed], _CELLS["all", rehearsed], change))
    return found


def _rivals(settings: Profile) -> list[Comparison]:
    """Each rival against GRPO, which it changes, and against DPH-F."""
    return [
        Comparison(Arm(name), Arm(other), f"{rival.label} instead of {shown}")
        for name, rival in RIVALS.items()
        for other, shown in (("grpo", "GRPO"), ("dph_f", "DPH-F"))
    ]


def _complementarity(settings: Profile) -> list[Comparison]:
    """DPH-F against GRPO, from problems that every style solves to those that mostly one does."""
    if settings.data is not None:
        return []
    pairs = [(f"hidden={share:g}", f"where {100 * share:g} % of the problems are hidden") for share in (0, 0.2, 0.8)]
    pairs.append((MAIN, "in the world as it is"))
    return [Comparison(Arm("dph_f", v), Arm("grpo", v), f"DPH-F instead of GRPO {said}") for v, said in pairs]


def _as_strong(method: str, name: str) -> Comparison:
    return Comparison(Arm(method), Arm("dph_f"), f"{name} instead of forward KL at equal strength")


def _instead_of_bonus(entropy: str) -> Comparison:
    change = f"DPH-F instead of GRPO with an entropy bonus of {entropy}"
    return Comparison(Arm("dph_f"), Arm("grpo", f"entropy={entropy}"), change)


STUDIES: dict[str, Study] = {
    "controls": Study("Is it the divergence, the data that it selects, or the partition?", _controls),
    "eta": Study("What does the weight of each divergence do, each with as many to choose from?", _eta),
    "strength": Study(
        "At equal strength, eta f''(1) as DPH-F's, does the divergence still matter?",
        lambda settings: [
            _as_strong("dph_js", "JS"),
            _as_strong("dph_js_definition", "JS by definition"),
            _as_strong("rkl", "RKL"),
            *(_as_strong(f"alpha_{a}", f"Alpha {a}") for a in (0.2, 0.5, 0.8)),
        ],
    ),
    "direction": Study(
        "Does the divergence's direction matter, on the policy's own answers and on the same stored ones?",
        lambda settings: [
            Comparison(Arm("dph_rkl"), Arm("dph_f"), "Reverse instead of forward KL on the same stored answers"),
            Comparison(Arm("rkl_k2"), Arm("rkl"), "Reverse KL's gradient (k2) instead of forward KL's (k3) in RKL"),
        ],
    ),
    "factorial": Study("What do exploring on D_exp and rehearsing each do, alone and together?", _factorial),
    "rivals": Study("Do other ways to keep a policy broad do as well?", _rivals),
    "complementarity": Study("How much do styles have to complement one another for DPH to pay?", _complementarity),
    "threshold": Study(
        "How sure must a prompt be to be rehearsed and not explored?",
        lambda settings: _set(
            *((m, f"threshold={settings.presample.k - less}") for less in (1, 0) for m in ("dph_f", "dph_js"))
        ),
    ),
    "presample_k": Study(
        "How many pre-samples does the partition need?",
        lambda settings: _set(*(("dph_f", f"k={k}") for k in (settings.presample.k // 2, 2 * settings.presample.k))),
    ),
    "answers": Study("Does a prompt need more than one stored answer?", lambda settings: _set(("dph_f", "answers=4"))),
    "authors_weight": Study(
        "What do the authors' effective eta / 8 and their 2 x JS do?",
        lambda settings: [
            *_set(("dph_f", "authors_eta=8"), ("dph_js", "js_scale=2")),
            Comparison(
                Arm("dph_js", f"eta={settings.weight('dph_js') / 4:g}"),
                Arm("dph_js"),
                "Both of the authors' departures together in DPH-JS, 2 x JS at eta / 8",
            ),
        ],
    ),
    "clip_higher": Study(
        "What does the higher upper clip do, which DPH has and GRPO has not?",
        lambda settings: _set(("grpo", "clip_high=0.28"), ("dph_f", "clip_high=0.2")),
    ),
    "top_p": Study(
        "What does it do to draw rollouts from a nucleus and score them without it, as the authors' scripts do?",
        lambda settings: _set(("grpo", "top_p=0.9"), ("dph_f", "top_p=0.9")),
    ),
    "entropy_bonus": Study(
        "Does the cheapest rival, an entropy bonus, keep what rehearsal keeps?",
        lambda settings: [
            *_set(("grpo", "entropy=0.01"), ("grpo", "entropy=0.05")),
            _instead_of_bonus("0.01"),
            _instead_of_bonus("0.05"),
        ],
    ),
    "length": Study(
        "Does it last, or does longer training undo it?",
        lambda settings: _set(
            *(
                (method, f"iterations={n}")
                for n in (settings.train.iterations // 2, 2 * settings.train.iterations)
                for method in ("grpo", "dph_f")
            )
        ),
    ),
}


HARD, TEMPERATURE = EXPLORATORY = ("hard", "temperature")
"""Asked for like a study; they train nothing that a run has not."""


def chosen(names: str) -> tuple[str, ...]:
    """Studies, and `EXPLORATORY`, from text: "all", "" for none, or names separated by commas.

    Raises:
        ValueError: an unknown name.

    >>> chosen("eta, length"), chosen("")
    (('eta', 'length'), ())
    """
    known = (*STUDIES, *EXPLORATORY)
    wanted = known if names == "all" else dict.fromkeys(part.strip() for part in names.split(",") if part.strip())
    for name in wanted:
        if name not in known:
            raise unknown("study", name, ("all", *known))
    return tuple(wanted)


def comparisons(settings: Profile, name: str) -> list[Comparison]:
    """A study's comparisons in a profile: all, or its first few where the profile says so; of `EXPLORATORY` none.

    An arm whose weight is that of the profile's main run has the main run's name.
    """
    if name in EXPLORATORY:
        return []
    made: dict[tuple[Arm, Arm], Comparison] = {}
    for one in STUDIES[name].comparisons(settings):
        arm, against = _main_or(settings, one.arm), _main_or(settings, one.against)
        made.setdefault((arm, against), one._replace(arm=arm, against=against))
    return [one for one in made.values() if one.arm != one.against][: settings.study_comparisons]


def _main_or(settings: Profile, arm: Arm) -> Arm:
    return Arm(arm.method) if settings.is_main(RunConfig(*arm, 0)) else arm


def arms_beyond(settings: Profile, names: Sequence[str] = tuple(STUDIES)) -> list[Arm]:
    """Arms of studies that no run without them has: no method of the paper or the profile, none of Tables 3 to 5."""
    usual = {Arm(run.method, run.variant) for run in settings.ablation_runs()}
    usual |= {Arm(method) for method in (*METHOD_CONFIGS, *settings.methods)}
    return [arm for arm in _arms(settings, names) if arm not in usual]


def study_runs(settings: Profile, names: Sequence[str]) -> list[RunConfig]:
    """Every run that studies need, those that they are compared with too, each once, with the profile's seeds."""

    def seeds(arm: Arm) -> tuple[int, ...]:
        return settings.seeds_of(arm.method) if arm.variant == MAIN else settings.ablation_seeds

    return [RunConfig(*arm, seed) for arm in _arms(settings, names) for seed in seeds(arm)]


def planned_runs(settings: Profile, names: Sequence[str] = ()) -> list[RunConfig]:
    """All runs of a profile: main runs, the ablations of Tables 3 to 5, and what studies add."""
    return list(dict.fromkeys([*settings.main_runs(), *settings.ablation_runs(), *study_runs(settings, names)]))


def _arms(settings: Profile, names: Sequence[str]) -> list[Arm]:
    every = [arm for name in names for one in comparisons(settings, name) for arm in (one.arm, one.against)]
    # The controls' main runs have the seeds of the paper's methods; see `Profile.seeds`.
    return sorted(dict.fromkeys(every), key=lambda arm: (arm.method in CONTROLS, arm.variant != MAIN))
