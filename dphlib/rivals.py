"""Rivals of 2025 and 2026: what each changes in GRPO, as one table. A rival is a row of `RIVALS` and its rule.

`settings.methods` makes a method of every row, GRPO with that rule and the row's `changes`; `analysis.labels` gives it
a look. Rules act on arrays: P prompts, G answers to each, N answer tokens of a mini-batch.

A rule stands here only if its formula was found, in the paper, the authors' code or others' notes on the paper ([2nd]).
Settings are the authors' where they are known. Of ReMind the abstract was at hand: mastered prompts are tracked and
periodically take the places of others in a batch. When one enters and leaves our queue, and its settings, are by
others' notes and unchecked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import comb
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a rule knows of a batch of groups, each array (P, G).

    Args:
        rewards_P_G: of the verifier, 1 for a correct answer; NaN for one that could not be judged.
        logprobs_P_G: mean log-prob of an answer's tokens under the policy that drew it, nats.
        reference_P_G: log-prob of a whole answer under the initial policy, nats; None without an online reference.
        kl_weight: of the KL to the initial policy in the loss.
    """

    rewards_P_G: Array
    logprobs_P_G: Array
    reference_P_G: Array | None = None
    kl_weight: float = 0.0


Standard = Callable[[Array], Array]
"""Rewards (P, G) to GRPO's advantages (P, G), as the run scales them: `losses.group_advantages`."""


class TokenWeights(NamedTuple):
    """What a token rule makes of the tokens, each (N,): factors of their advantages, and weights of |log pi/pi_old|."""

    kept_N: Array
    old_kl_N: Array


class Reviews(NamedTuple):
    """Settings of `ReviewQueue`: the chance to enter, iterations between reviews, their share of the batch."""

    chance: float
    every: int
    share: float


class Rival(NamedTuple):
    """A row of the table.

    Args:
        label: its name in figures.
        source: authors and arXiv number, and what of it was read.
        advantages: (answers, standard) to advantages (P, G), in place of GRPO's.
        tokens: (advantages_N, logprobs_N, generator of random numbers) to `TokenWeights`, before each optimizer step.
        reviews: prompts that were mastered come again.
        changes: fields of `settings.methods.MethodConfig` that differ from GRPO's.
    """

    label: str
    source: str
    advantages: Callable[[Answers, Standard], Array] | None = None
    tokens: Callable[[Array, Array, np.random.Generator], TokenWeights] | None = None
    reviews: Reviews | None = None
    changes: Mapping[str, Any] = {}


# --- Advantages of answers ------------------------------------------------------------------------


def pass_at_k(answers: Answers, standard: Standard, *, share: float) -> Array:
    """Advantages whose policy gradient is unbiased for that of Pass@k: the paper's s^(loo-1), times the group's size.

    Over the subsets I of k of the group's n judged answers that hold i, s_i is the sum of max_I r - max_(I without i)
    r, divided by C(n, k): of the (k-1)-subsets of the others, C(j, k-2) have the j-th smallest reward, from 0, as their
    largest. A correct answer among c gets C(n-c, k-1) / C(n, k), a wrong one 0. The factor n turns the paper's sum over
    a group into a mean. Not divided by the group's deviation. A group with fewer than k judged answers gets zero.

    Args:
        share: k as a share of the group; k is two at least.

    >>> answers = Answers(np.array([[1.0, 0, 0, 0]]), np.zeros((1, 4)))  # k = 2: 4 C(3, 1) / C(4, 2)
    >>> pass_at_k(answers, lambda rewards: rewards, share=0.5)
    array([[2., 0., 0., 0.]])
    """
    found = np.zeros_like(answers.rewards_P_G)
    for rewards_G, made_G in zip(answers.rewards_P_G, found, strict=True):
        judged = np.flatnonzero(~np.isnan(rewards_G))
        n, k = len(judged), max(2, round(share * len(rewards_G)))
        if n < k:
            continue
        weights = np.array([comb(j, k - 2) for j in range(n - 1)])
        for i in judged:
            others = np.sort(rewards_G[judged[judged != i]])
            made_G[i] = n * float(weights @ np.maximum(rewards_G[i] - others, 0)) / comb(n, k)
    return found


def unlikely(answers: Answers, standard: Standard, *, penalty: float) -> Array:
    """The reward of an answer is lowered by `penalty` times its rank by log-prob per token, 0 to (G - 1) / G.

    The least likely answer of a group keeps its whole reward; then GRPO's advantages. So a group that is right
    throughout still learns, from its less likely answers.

    >>> answers = Answers(np.array([[1.0, 1, 0, 1]]), np.array([[-1.0, -3, -2, -4]]))
    >>> unlikely(answers, lambda rewards: rewards, penalty=0.25)  # ranks 3, 1, 2, 0
    array([[0.8125, 0.9375, 0.    , 1.    ]])
    """
    ranks_P_G = answers.logprobs_P_G.argsort(-1, kind="stable").argsort(-1, kind="stable")
    return standard(answers.rewards_P_G * (1 - penalty * ranks_P_G / answers.rewards_P_G.shape[-1]))


def focal(answers: Answers, standard: Standard, *, gamma: float) -> Array:
    """GRPO's advantages times (1 - share of the group's judged answers that are correct) ** gamma.

    >>> answers = Answers(np.array([[1.0, 1, 1, 0]]), np.zeros((1, 4)))
    >>> focal(answers, lambda rewards: rewards - rewards.mean(), gamma=1.0)
    array([[ 0.0625,  0.0625,  0.0625, -0.1875]])
    """
    judged = ~np.isnan(answers.rewards_P_G)
    right_P_1 = np.where(judged, answers.rewards_P_G, 0).sum(-1, keepdims=True) / np.maximum(judged.sum(-1), 1)[:, None]
    return standard(answers.rewards_P_G) * (1 - right_P_1) ** gamma


def mode_anchored(answers: Answers, standard: Standard) -> Array:
    """Rewards under which the target of KL-regularised RL is as likely for each correct answer; less their mean.

    The reward of a correct answer y becomes R(z) + beta (log pi_ref(z) - log pi_ref(y)), z the correct answer of the
    group that pi_ref likes best and beta the weight of the KL. Not divided by the group's deviation, which would change
    the ratio of reward to KL that the formula rests on.

    >>> answers = Answers(np.array([[1.0, 1, 0]]), np.zeros((1, 3)), np.array([[-2.0, -5, -1]]), kl_weight=0.1)
    >>> mode_anchored(answers, lambda rewards: rewards).round(4)  # rewards 1, 1.3, 0
    array([[ 0.2333,  0.5333, -0.7667]])
    """
    rewards, reference = answers.rewards_P_G, answers.reference_P_G
    if reference is None:
        raise ValueError("reference_P_G is None: this rule needs the answers' log-probs under the initial policy")
    correct = rewards >= 1
    anchor_P_1 = np.where(correct, reference, -np.inf).max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a group without a correct answer has no anchor, and is not changed
        rewards = np.where(correct, rewards + answers.kl_weight * (anchor_P_1 - reference), rewards)
    judged = ~np.isnan(rewards)
    mean_P_1 = np.where(judged, rewards, 0).sum(-1, keepdims=True) / np.maximum(judged.sum(-1, keepdims=True), 1)
    return np.where(judged, rewards - mean_P_1, 0)


# --- Tokens -----------------------------------------------------------------------------------------


def covariances(advantages_N: Array, logprobs_N: Array) -> Array:
    """Each token's part of the covariance of log-prob and advantage, over the tokens of a mini-batch.

    >>> covariances(np.array([1.0, -1.0]), np.array([-1.0, -3.0]))
    array([1., 1.])
    """
    return (advantages_N - advantages_N.mean()) * (logprobs_N - logprobs_N.mean())


def kl_cov(
    advantages_N: Array, logprobs_N: Array, rng: np.random.Generator, *, share: float, weight: float
) -> TokenWeights:
    """The `share` of the tokens with the largest covariance, at least one, gets `weight` times |log pi_theta/pi_old|.

    Tokens without an advantage are in the mean and are not chosen: a penalty alone does not move them.
    """
    old_kl_N = np.zeros_like(advantages_N)
    if (learnt := np.flatnonzero(advantages_N)).size:
        count = max(1, int(share * advantages_N.size))
        largest = covariances(advantages_N, logprobs_N)[learnt].argsort(kind="stable")[::-1][:count]
        old_kl_N[learnt[largest]] = weight
    return TokenWeights(np.ones_like(advantages_N), old_kl_N)


def clip_cov(
    advantages_N: Array, logprobs_N: Array, rng: np.random.Generator, *, share: float, low: float, high: float
) -> TokenWeights:
    """Of the tokens with a covariance between `low` and `high`, `share` of all, at least one, drop out at random."""
    kept_N = np.ones_like(advantages_N)
    if advantages_N.size:
        covariance_N = covariances(advantages_N, logprobs_N)
        within = np.flatnonzero((covariance_N > low) & (covariance_N < high) & (advantages_N != 0))
        kept_N[rng.permutation(within)[: max(1, int(share * advantages_N.size))]] = 0
    return TokenWeights(kept_N, np.zeros_like(advantages_N))


# --- Prompts ----------------------------------------------------------------------------------------


class ReviewQueue:
    """Prompts, by number, that were solved throughout and come again in place of others of a batch.

    One enters with a chance; a review takes the longest-waiting. One that is solved throughout again leaves, another
    goes back to the end.
    """

    def __init__(self, settings: Reviews, seed: int) -> None:
        self._settings, self._random = settings, random.Random(seed)
        self._waiting: list[str] = []
        self._reviewed: set[str] = set()

    def due(self, iteration: int, batch: int) -> list[str]:
        """Ids of the prompts that an iteration, from 1, reviews: at most the share of a batch of prompts, rounded."""
        count = round(self._settings.share * batch) if iteration % self._settings.every == 0 else 0
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._reviewed = set(taken)
        return taken

    def saw(self, solved: Iterable[tuple[str, bool]]) -> None:
        """Takes note of the prompts of a batch, and whether each was solved throughout."""
        for name, throughout in solved:
            if name in self._reviewed:
                self._reviewed.discard(name)
                if not throughout:
                    self._waiting.append(name)
            elif throughout and name not in self._waiting and self._random.random() < self._settings.chance:
                self._waiting.append(name)

    def state(self) -> dict[str, Any]:
        """What it holds between iterations, as plain data."""
        return {"random": self._random.getstate(), "waiting": list(self._waiting)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self._random.setstate(state["random"])
        self._waiting = list(state["waiting"])


# --- The table --------------------------------------------------------------------------------------

_COV = "Cui et al., arXiv 2505.22617; the authors' repository Entropy-Mechanism-of-RL and verl's core_algos"

RIVALS: dict[str, Rival] = {
    "pass_at_k": Rival(
        "PKPO",
        "Walder and Karkhanis, arXiv 2505.15201, Equation 33 and Section 5.2: k up to half of 16 answers",
        advantages=partial(pass_at_k, share=0.5),
    ),
    "unlikely": Rival(
        "Unlikeliness",
        "He, Fried and Welleck, arXiv 2506.02355; the authors' repository rewarding-unlikely-release: penalty 0.25",
        advantages=partial(unlikely, penalty=0.25),
    ),
    "f_grpo": Rival(
        "F-GRPO",
        "Plyusov et al., arXiv 2602.06717; gamma 0.5 to 1 [2nd], here 1",
        advantages=partial(focal, gamma=1.0),
    ),
    "mara": Rival(
        "MARA",
        "GX-Chen et al., arXiv 2510.20817, Algorithm 1 [2nd]; their weight of the KL is not known, here RKL's",
        advantages=mode_anchored,
        changes={"rkl_coef": 0.2, "rkl_estimator": "k2"},
    ),
    "kl_cov": Rival(  # its loss has no clip
        "KL-Cov",
        f"{_COV}: share 0.002 and weight 1 for 7B",
        tokens=partial(kl_cov, share=0.002, weight=1.0),
        changes={"clip_low": 1.0, "clip_high": 1e6},
    ),
    "clip_cov": Rival(
        "Clip-Cov",
        f"{_COV}: share 0.0002, between 1 and 5, clip 1 and 1",
        tokens=partial(clip_cov, share=0.0002, low=1.0, high=5.0),
        changes={"clip_low": 1.0, "clip_high": 1.0},
    ),
    "remind": Rival(
        "ReMind",
        "Qin et al., arXiv 2606.03087: chance 0.25, every 5 iterations, a tenth of the batch [2nd]",
        reviews=Reviews(chance=0.25, every=5, share=0.1),
    ),
    "wise_ft": Rival(
        "WiSE-FT",
        "Dang et al., arXiv 2504.10478, who mix checkpoints of fine-tuning; here GRPO and the base half and half",
        changes={"base_share": 0.5},
    ),
}
