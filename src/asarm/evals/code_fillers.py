"""What completes code: any-subset models, a causal one, and the baselines that need no model."""

import torch

from asarm.codec import TextCodec
from asarm.evals.code_baselines import BASELINES
from asarm.evals.code_config import CodeConfig
from asarm.evals.code_cut import CodeLengths, GapProblem, cut, uncut
from asarm.evals.code_data import Problem
from asarm.evals.fillers import AnySubset, Causal, Filler, Written
from asarm.evals.infill_config import CAUSAL


def code_fillers(config: CodeConfig, problems: dict[str, list[Problem]], device: torch.device) -> list[Filler]:
    """All that fills gaps in this run; models are loaded if a variant wants them, and held in memory together.

    problems: all of each split.
    """

    def cut_all(codec: TextCodec, longest: int | None) -> tuple[dict[str, list[GapProblem]], dict[str, CodeLengths]]:
        every = {split: [cut(problem, split, codec) for problem in some] for split, some in problems.items()}
        lengths = {split: CodeLengths(some, config.proposals, longest) for split, some in every.items()}
        return {split: some[: config.max_items or None] for split, some in every.items()}, lengths

    uncut_all = {split: [uncut(one) for one in some[: config.max_items or None]] for split, some in problems.items()}
    wanted = {variant.sampler for variant in config.variants()}
    found = []
    if wanted - {CAUSAL, *BASELINES}:
        found += [AnySubset(name, config, cut_all, device) for name in config.model_names()]
    if config.causal:
        found.append(Causal(config.causal, config, cut_all, device, use_fim=True))
    for name, write in BASELINES.items():
        if name in wanted:
            found.append(Written(name, uncut_all, lambda gap, _, __, write=write: write(gap.problem), trials=1))
    return found
