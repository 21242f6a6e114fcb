"""What completes code: any-subset models, a causal one, and the baselines that need no model."""

import torch

from asarm.evals.code.baselines import BASELINES
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.data import Problem
from asarm.evals.code.examples import CodeExample, CodeGapLengthPolicy, cut, uncut
from asarm.evals.infilling.config import CAUSAL
from asarm.evals.infilling.systems import AnySubsetSystem, CausalSystem, InfillSystem, ModelFreeBaseline
from asarm.tokenization.codec import TextCodec


def code_systems(config: CodeConfig, problems: dict[str, list[Problem]], device: torch.device) -> list[InfillSystem]:
    """All that fills gaps in this run; models are loaded if a variant wants them, and held in memory together.

    problems: all of each split.
    """

    def cut_all(
        codec: TextCodec, longest: int | None
    ) -> tuple[dict[str, list[CodeExample]], dict[str, CodeGapLengthPolicy]]:
        every = {split: [cut(problem, split, codec) for problem in some] for split, some in problems.items()}
        lengths = {split: CodeGapLengthPolicy(some, config.proposals, longest) for split, some in every.items()}
        return {split: some[: config.max_items or None] for split, some in every.items()}, lengths

    uncut_all = {split: [uncut(one) for one in some[: config.max_items or None]] for split, some in problems.items()}
    wanted = {variant.sampler for variant in config.variants()}
    found = []
    if wanted - {CAUSAL, *BASELINES}:
        found += [AnySubsetSystem(name, config, cut_all, device) for name in config.model_names()]
    if config.causal:
        found.append(CausalSystem(config.causal, config, cut_all, device, use_fim=True))
    for name, write in BASELINES.items():
        if name in wanted:
            found.append(
                ModelFreeBaseline(name, uncut_all, lambda gap, _, __, write=write: write(gap.problem), trials=1)
            )
    return found
