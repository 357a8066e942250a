"""Small exact experiments on categorical distributions and two tiny models, for the notebook about the divergences.

A divergence goes here by one name: `forward_kl`, `js`, ... of `divergences.DIVERGENCES`, and `alpha_0.5` for the
alpha-divergence with alpha = 0.5. Each function gives a tidy frame; the figures are in `figures.lessons`.

Nothing here is used by training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dphlib.divergences import Divergence, divergence, exact, generator
from dphlib.generators import GENERATORS, label, parse
from dphlib.lessons.estimators import TopK, binned, exact_moments, moment_columns
from dphlib.losses import EXPLORE, partitioned_loss

DRAWN = ("forward_kl", "alpha_0.5", "js", "reverse_kl")
"""The generators of Figure 7."""


def named(name: str) -> Divergence:
    """The divergence of a name such as `alpha_0.5`. Raises ValueError for one that is not known."""
    kind, params = parse(name)
    return divergence(kind, **params)


def generator_table() -> pd.DataFrame:
    """Every divergence and its facts, formulas in LaTeX without the letter | (for a Markdown table).

    Columns: name, f(u), the divergence, pulls, f(0), f''(1).
    """
    return pd.DataFrame(
        {
            "name": f.name,
            "f(u)": "$" + f.equation.replace("|u - 1|", r"\lvert u - 1 \rvert") + "$",
            "the divergence": f.measures,
            "pulls": f.direction,
            "f(0)": _number(f.at_zero),
            "f''(1)": _number(f.second_derivative_at_1),
        }
        for f in GENERATORS.values()
    )


def conjugate_table() -> pd.DataFrame:
    """Every divergence's strength near the reference, convex conjugate and place among its relatives.

    Columns: name, f''(1), f*(t), finite for, in the families; formulas in LaTeX (for a Markdown table).
    """
    return pd.DataFrame(
        {
            "name": f.name,
            "f''(1)": _number(f.second_derivative_at_1),
            "f*(t)": f"${f.conjugate_equation}$",
            "finite for": f"${f.conjugate_domain}$",
            "in the families": f.family,
        }
        for f in GENERATORS.values()
    )


def _number(value: float | None) -> str:
    if value is None:
        return "none: a kink"
    if np.isnan(value):
        return r"$1/(1-\alpha)$"  # only alpha leaves one open
    return "infinite" if np.isinf(value) else f"{value:.3g}"


def variational_bound(name: str, t_V: Tensor, p_ref_V: Tensor, p_theta_V: Tensor) -> Tensor:
    """E_{pi_theta}[t] - E_{pi_ref}[f*(t)], never above D_f; D_f itself at t = f'(pi_theta / pi_ref).

    The variational form of D_f (Nguyen et al. 2010; f-GAN), which needs samples of both distributions and no density.
    DPH-RL does not train by it: both densities are known here.

    Args:
        name: the divergence.
        t_V: any real number per category; minus infinity comes out where f* is infinite.
        p_ref_V, p_theta_V: probabilities along the last dimension.

    >>> half = torch.tensor([0.5, 0.5])
    >>> float(variational_bound("forward_kl", torch.zeros(2), half, half))
    0.0
    """
    cost_V = torch.where(p_ref_V > 0, p_ref_V * named(name).conjugate(t_V), 0.0)
    return (p_theta_V * t_V - cost_V).sum(-1)


def curves(names: Sequence[str], d_max: float = 6.0, points: int = 241) -> pd.DataFrame:
    """f(exp d) and its derivative with respect to d on [-d_max, d_max / 2]: columns name, d, value, gradient (nats)."""
    if d_max <= 0:
        raise ValueError(f"d_max is {d_max}; it must be above 0: the curves run from -d_max to d_max / 2")
    frames = []
    for name in names:
        d = torch.linspace(-d_max, d_max / 2, points, dtype=torch.float64, requires_grad=True)
        value = named(name)(d)
        (gradient,) = torch.autograd.grad(value.sum(), d)
        columns = {"name": name, "d": d.detach(), "value": value.detach(), "gradient": gradient}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


Formula = Callable[[Tensor], Tensor]
"""f(exp d) of d, as somebody writes it."""
STATES = ("right", "goes on as a logarithm", "off by more than 5 %", "no gradient", "nan")
"""What can become of a generator and its derivative in floats of 32 bits."""
_BOUNDED_FROM = 20.0


def traps(careless: Mapping[str, Formula], formulas: Mapping[str, Formula], points: Sequence[float]) -> pd.DataFrame:
    """What becomes of generators in 32 bits: written carelessly, and ours, both beside the formula in 64 bits.

    Args:
        careless: name -> how it is written without care.
        formulas: name -> the formula as it stands.
        points: values of d.

    Returns:
        Columns name, form (`careless`, `ours`), d, value, gradient (with respect to d), true, true_gradient, state (one
        of `STATES`).
    """
    frames = []
    for name, written in careless.items():
        true, true_gradient = _value_and_gradient(formulas[name], points, torch.float64)
        for form, f in (("careless", written), ("ours", named(name))):
            value, gradient = _value_and_gradient(f, points, torch.float32)
            columns = {"name": name, "form": form, "d": points, "value": value, "gradient": gradient}
            frames.append(pd.DataFrame(columns | {"true": true, "true_gradient": true_gradient}))
    frame = pd.concat(frames, ignore_index=True)
    known = frame[["value", "gradient"]].map(np.isfinite).all(axis=1)
    close = [
        (frame[c] - frame[f"true{s}"]).abs() <= 0.05 * frame[f"true{s}"].abs() + e
        for c, s, e in (("value", "", 1e-12), ("gradient", "_gradient", 1e-7))
    ]
    bounded = (frame["form"] == "ours") & (frame["d"] > _BOUNDED_FROM)
    states = [~known, bounded, close[0] & close[1], (frame["gradient"] == 0) & ~close[1]]
    frame["state"] = np.select(states, ["nan", STATES[1], "right", "no gradient"], STATES[2])
    return frame


def _value_and_gradient(f: Formula, points: Sequence[float], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    d = torch.tensor(points, dtype=dtype, requires_grad=True)
    value = f(d)
    (gradient,) = torch.autograd.grad(value.sum(), d)
    return value.detach().numpy(), gradient.numpy()


# --- covering and seeking -----------------------------------------------------------------------------------------


def two_modes(minor: float, distance: float, tokens: int = 40) -> Tensor:
    """A distribution over `tokens` answers with two modes, 1 - minor on the left and `minor` on the right.

    Args:
        minor: share of the smaller mode, in (0, 0.5].
        distance: between the modes, in standard deviations of one (each is 2 answers), in [2, 15].
        tokens: number of answers.
    """
    for what, value, low, high in (("minor", minor, 0.001, 0.5), ("distance", distance, 2, 15)):
        if not low <= value <= high:
            raise ValueError(f"{what} is {value}; it must lie in [{low}, {high}]")
    x = torch.arange(tokens, dtype=torch.float64)
    centres = ((tokens - 1) / 2 - distance, (tokens - 1) / 2 + distance)
    left, right = (torch.softmax(-((x - centre) ** 2) / (2 * 2.0**2), -1) for centre in centres)
    return (1 - minor) * left + minor * right


def covering_fits(names: Sequence[str], p_ref_V: Tensor, starts: int = 9, steps: int = 200) -> pd.DataFrame:
    """The one-mode distribution nearest to `p_ref_V` under each divergence, by gradient descent.

    The family is softmax(-(x - mu)^2 / (2 sigma^2)): one mode, so it must choose. Adam on (mu, log sigma) from several
    mu; the start that ends with the smallest divergence is kept, for some of these are not convex in mu.

    Returns:
        Columns name, token, reference, fitted, divergence (nats), minor: the fitted share of the right half, where the
        reference has its smaller mode.
    """
    tokens = len(p_ref_V)
    x = torch.arange(tokens, dtype=torch.float64)
    frames = []
    for name in names:
        kind, params = parse(name)
        mu = torch.linspace(0.1 * tokens, 0.9 * tokens, starts, dtype=torch.float64).requires_grad_()
        log_sigma = torch.full((starts,), np.log(0.1 * tokens), dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.Adam([mu, log_sigma], lr=0.1)
        for _ in range(steps):
            p_theta_S_V = torch.softmax(-((x - mu[:, None]) ** 2) / (2 * (2 * log_sigma[:, None]).exp()), -1)
            distance_S = exact(kind, p_ref_V, p_theta_S_V, **params)
            optimizer.zero_grad()
            distance_S.sum().backward()
            optimizer.step()
        best = int(distance_S.argmin())
        fitted = p_theta_S_V[best].detach()
        columns = {"name": name, "token": np.arange(tokens), "reference": p_ref_V, "fitted": fitted}
        facts = {"divergence": distance_S[best].item(), "minor": float(fitted[tokens // 2 :].sum())}
        frames.append(pd.DataFrame(columns | facts))
    return pd.concat(frames, ignore_index=True)


# --- direction and strength ---------------------------------------------------------------------------------------


def held_styles(name: str, rewards_S: Tensor, p_ref_S: Tensor, etas_E: Tensor) -> Tensor:
    """The distributions that maximise E_pi[reward] - eta D_f(pi || pi_ref) over all distributions, exactly.

    At the optimum reward_s - eta f'(u_s) is one number for all s, u = pi / pi_ref. f' grows, so both are found by
    bisection: u_s for a given number, and the number at which pi sums to 1. For reverse KL this is the well-known
    pi ~ pi_ref exp(reward / eta).

    Args:
        name: the divergence.
        rewards_S, p_ref_S: expected reward and reference probability of each style, float64.
        etas_E: weights, each above 0.

    Returns:
        A distribution for each eta, (E, S).
    """
    f, eta_E_1 = named(name), etas_E[:, None]

    def ratios(common_E_1: Tensor) -> Tensor:
        wanted_E_S = (rewards_S - common_E_1) / eta_E_1
        low, high = torch.full_like(wanted_E_S, -80.0), torch.full_like(wanted_E_S, 5.0)
        for _ in range(60):
            middle = (low + high) / 2
            too_low = f.slope(middle) * (-middle).exp() < wanted_E_S  # f'(u), the derivative with respect to u
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        return ((low + high) / 2).exp()

    low = torch.full_like(eta_E_1, float(rewards_S.min()))
    high = torch.full_like(eta_E_1, float(rewards_S.max()))
    for _ in range(60):
        common = (low + high) / 2
        too_much = (p_ref_S * ratios(common)).sum(-1, keepdim=True) > 1
        low, high = torch.where(too_much, common, low), torch.where(too_much, high, common)
    p_E_S = p_ref_S * ratios((low + high) / 2)
    return p_E_S / p_E_S.sum(-1, keepdim=True)


def strengths(names: Sequence[str], right_S: Sequence[float], etas: Sequence[float], k: int = 8) -> pd.DataFrame:
    """Four styles, style s right on a share right_S of the databases and no two on one: what each eta leaves.

    Starts from all styles alike. The reward of a style is its share, so reward alone puts all answers on one.

    Returns:
        Columns name, eta, strength (eta f''(1)), style_entropy (nats), pass_1, pass_k: the chance that one answer, or
        one of k, is right on a database, per cent.
    """
    right, eta_E = torch.tensor(right_S, dtype=torch.float64), torch.tensor(etas, dtype=torch.float64)
    p_ref = torch.full_like(right, 1 / len(right))
    frames = []
    for name in names:
        p_E_S = held_styles(name, right, p_ref, eta_E)
        columns = {
            "eta": eta_E,
            "strength": eta_E * named(name).second_derivative_at_1,  # type: ignore[operator]
            "style_entropy": torch.special.entr(p_E_S).sum(-1),
            "pass_1": 100 * (right * p_E_S).sum(-1),
            "pass_k": 100 * (right * (1 - (1 - p_E_S) ** k)).sum(-1),
        }
        frames.append(pd.DataFrame({"name": name} | columns))
    return pd.concat(frames, ignore_index=True)


def kept_at(held: pd.DataFrame, strength: float) -> str:
    """The style entropy that each divergence keeps at one strength, in words.

    Args:
        held: what `strengths` gave.
        strength: eta f''(1); between two that were solved, interpolated along its logarithm.

    >>> rows = {"name": "js", "strength": [0.1, 1.0], "style_entropy": [0.5, 1.25]}
    >>> kept_at(pd.DataFrame(rows), 1.0)
    'at strength 1: JS 1.25'
    """
    kept = [
        f"{label(str(name))} {np.interp(np.log(strength), np.log(rows['strength']), rows['style_entropy']):.2f}"
        for name, rows in held.groupby("name", sort=False)
    ]
    return f"at strength {strength:g}: {', '.join(kept)}"


def equal_arms(
    names: Sequence[str], p_ref: Sequence[float], p_theta: Sequence[float], eta: float = 0.1
) -> pd.DataFrame:
    """One state, arms of equal reward: how far apart two policies are, and what the best one by each divergence gains.

    Columns: name, divergence (of p_theta from p_ref, nats), improvement: expected reward at the exact optimum of reward
    minus eta times the divergence, minus that of p_theta, with a reward of 1 for every arm.
    """
    ref, theta = (torch.tensor(p, dtype=torch.float64) for p in (p_ref, p_theta))
    reward, rows = torch.ones_like(ref), []
    for name in names:
        kind, params = parse(name)
        best = held_styles(name, reward, ref, torch.tensor([eta], dtype=torch.float64))[0]
        gained = float((reward * (best - theta)).sum())
        rows.append({"name": name, "divergence": float(exact(kind, ref, theta, **params)), "improvement": gained})
    return pd.DataFrame(rows)


# --- estimates from samples ---------------------------------------------------------------------------------------


def estimates(names: Sequence[str], ref_logits_V: Tensor, logits_V: Tensor, draws: int, seed: int) -> pd.DataFrame:
    """D_f and its gradient, exactly and as the mean of f(exp d) over tokens drawn from pi_ref.

    The name `minus_log_u` is -log u alone, which is forward KL without its control variate u - 1.

    Returns:
        Columns name, exact, estimate, standard_error (of the estimate), z, spread (standard deviation of one token's
        f), largest_gradient_z: the largest |z| among the gradient's components with respect to the logits.
    """
    ref_logprobs_V = torch.log_softmax(ref_logits_V.double(), -1)
    drawn_N = torch.multinomial(
        ref_logprobs_V.exp(), draws, replacement=True, generator=torch.Generator().manual_seed(seed)
    )
    rows = []
    for name in names:
        f, (kind, params) = (lambda d: -d, ("forward_kl", {})) if name == "minus_log_u" else (named(name), parse(name))

        def per_token(logits: Tensor, f: Any = f) -> Tensor:
            return f(torch.log_softmax(logits, -1) - ref_logprobs_V)

        theta_V = logits_V.double().clone().requires_grad_()
        truth = exact(kind, ref_logprobs_V.exp(), torch.softmax(theta_V, -1), **params)
        (true_gradient_V,) = torch.autograd.grad(truth, theta_V)
        value_N = per_token(theta_V).detach()[drawn_N]
        gradient_N_V = torch.autograd.functional.jacobian(per_token, theta_V.detach())[drawn_N]
        error, error_V = value_N.std() / draws**0.5, gradient_N_V.std(0) / draws**0.5
        rows.append(
            {
                "name": name,
                "exact": truth.item(),
                "estimate": value_N.mean().item(),
                "standard_error": error.item(),
                "z": ((value_N.mean() - truth) / error).item(),
                "spread": value_N.std().item(),
                "largest_gradient_z": ((gradient_N_V.mean(0) - true_gradient_V) / error_V).abs().max().item(),
            }
        )
    return pd.DataFrame(rows)


def rkl_gradients(ref_logits_V: Tensor, logits_V: Tensor) -> pd.DataFrame:
    """What the RKL baseline's term estimates, by exact expectation over the tokens that the policy draws.

    The term is the one of `losses.partitioned_loss` with advantages of zero and rkl_coef 1, each token alone in a
    batch, weighted by the probability with which it is drawn; the sampling is not differentiated, as in training.

    Returns:
        Rows: k3 and k2 on on-policy tokens, KL(pi_theta || pi_ref), KL(pi_ref || pi_theta). Columns: value (nats), and
        the gradient with respect to each token's logit.
    """
    ref_logprobs_V = torch.log_softmax(ref_logits_V.double(), -1)

    def row(value: Tensor, theta_V: Tensor) -> dict[str, float]:
        (gradient,) = torch.autograd.grad(value, theta_V)
        return {"value": value.item()} | {f"token {v}": g for v, g in enumerate(gradient.tolist())}

    def term(estimator: Literal["k3", "k2"]) -> dict[str, float]:
        theta_V = logits_V.double().clone().requires_grad_()
        logprobs_V = torch.log_softmax(theta_V, -1)
        total = torch.zeros(())
        for v in range(len(theta_V)):
            cell = logprobs_V[v].reshape(1, 1)
            loss, _ = partitioned_loss(
                cell,
                loss_id_B_T=torch.full((1, 1), EXPLORE),
                old_logprobs_B_T=cell.detach(),
                advantages_B_T=torch.zeros(1, 1).double(),
                ref_logprobs_B_T=ref_logprobs_V[v].reshape(1, 1),
                divergence=generator("forward_kl"),
                eta=0.0,
                rkl_coef=1.0,
                rkl_estimator=estimator,
            )
            total = total + logprobs_V[v].exp().detach() * loss
        return row(total, theta_V)

    def divergence_of(kind: str) -> dict[str, float]:
        theta_V = logits_V.double().clone().requires_grad_()
        return row(exact(kind, ref_logprobs_V.exp(), torch.softmax(theta_V, -1)), theta_V)

    return pd.DataFrame(
        {
            "k3 on the policy's own tokens (RKL baseline)": term("k3"),
            "k2 on the policy's own tokens": term("k2"),
            "KL(pi_theta || pi_ref), reverse": divergence_of("reverse_kl"),
            "KL(pi_ref || pi_theta), forward": divergence_of("forward_kl"),
        }
    ).T


# --- estimators ---------------------------------------------------------------------------------------------------


def ranked(tokens: int, power: float = 1.5) -> Tensor:
    """A next-token distribution as models have them: probability falls with the rank to that power, float64."""
    weights_V = torch.arange(1, tokens + 1, dtype=torch.float64) ** -power
    return weights_V / weights_V.sum()


def collapse(name: str, depths: Sequence[float], *, k: int = 8, answers: int = 4, tokens: int = 64) -> pd.DataFrame:
    """What each estimator says of a policy that has dropped the second likeliest token by so many nats, exactly.

    The reference is `ranked`; the token's mass is shared out among the others in proportion.

    Returns:
        Columns name, depth and those of `estimators.moment_columns`; the pull is the one on the dropped token.
    """
    p_ref_V, dropped = ranked(tokens), 1
    frames = []
    for depth in depths:
        scaled_V = p_ref_V.clone()
        scaled_V[dropped] *= np.exp(-depth)
        watched = (torch.tensor([0]), torch.tensor([dropped]))
        frames.append(_moments(name, p_ref_V, scaled_V / scaled_V.sum(), k, answers, watched).assign(depth=depth))
    return pd.concat(frames, ignore_index=True)


def lumping(
    names: Sequence[str], ks: Sequence[int], *, spread: float = 1.0, tokens: int = 64, seed: int = 0
) -> pd.DataFrame:
    """What top-K misses of each divergence, by K, of a policy whose every logit has moved at random.

    Args:
        spread: standard deviation of the logits' movement, nats; the same movement for all.

    Returns:
        Columns name, k, missed (share of the full divergence), rest (mass of the reference outside the K tokens).
    """
    p_ref_V = ranked(tokens)
    moved_V = spread * torch.randn(tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p_theta_V = torch.softmax(p_ref_V.log() + moved_V, -1)
    watched = (torch.zeros(0, dtype=torch.long),) * 2
    rows = []
    for name in names:
        for k in ks:
            table = _moments(name, p_ref_V, p_theta_V, k, 1, watched).set_index("estimator")
            missed = -table.loc["topk", "bias_share"]
            rows.append({"name": name, "k": k, "missed": missed, "rest": float(p_ref_V[k:].sum())})
    return pd.DataFrame(rows)


def noise_and_bias(collapsed: pd.DataFrame, missed: pd.DataFrame, k: int) -> str:
    """One sample's noise where the token has fallen furthest, and what top-K misses of each divergence, in words.

    Args:
        collapsed: what `collapse` gave.
        missed: what `lumping` gave, with this k among its own.
    """
    depth = collapsed["depth"].max()
    sd = collapsed[collapsed["depth"] == depth].set_index("estimator")["sd"]
    shares = missed[missed["k"] == k].set_index("name")["missed"]
    lumped = ", ".join(f"{100 * share:.0f} % of {label(str(name))}" for name, share in shares.items())
    noise = f"one sample's standard deviation is {sd['one_sample']:.1f} nats, top-K's {sd['topk']:.1f}"
    return f"For a token dropped by {depth:g} nats {noise}. With K = {k}, lumping the rest misses {lumped}."


def _moments(
    name: str, p_ref_V: Tensor, p_theta_V: Tensor, k: int, answers: int, watched: tuple[Tensor, Tensor]
) -> pd.DataFrame:
    log_ref_1_V, ids_1_K = p_ref_V.log()[None], torch.arange(k)[None]
    top = TopK(ids_1_K, binned(log_ref_1_V, ids_1_K))
    moments = exact_moments(p_theta_V.log()[None], log_ref_1_V, top, named(name), watched, answers=answers)
    return moment_columns([moments]).assign(name=name)


def tiny_pair(seed: int, *, vocabulary: int = 64, sharpness: float = 30.0, drift: float = 0.3) -> tuple[Any, Any]:
    """Two small Llamas of random weights: a base, and a policy whose weights have moved a little from it.

    Args:
        vocabulary: number of tokens.
        sharpness: factor on the output layer; random weights alone give nearly equal probabilities.
        drift: standard deviation of the movement, in each matrix's own standard deviation.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        base, policy = LlamaForCausalLM(shape).eval(), LlamaForCausalLM(shape).eval()
        base.get_output_embeddings().weight *= sharpness
        policy.load_state_dict(base.state_dict())
        for weight in policy.parameters():
            if weight.ndim == 2:
                weight += drift * weight.std() * torch.randn_like(weight)
    return base.requires_grad_(False), policy
