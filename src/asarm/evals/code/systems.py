"""Infilling systems for code: any-subset models, a causal one, and the baselines that need no model."""

from asarm.evals.code.baselines import BASELINES
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.data import Problem
from asarm.evals.code.examples import CodeExample, CodeGapLengthPolicy, example_without_tokens, make_example
from asarm.evals.infilling.config import CAUSAL
from asarm.evals.infilling.systems import AnySubsetSystem, CausalSystem, InfillSystem, ModelFreeBaseline
from asarm.tokenization.codec import TextCodec


def code_systems(config: CodeConfig, problems: dict[str, list[Problem]]) -> list[InfillSystem]:
    """All systems of a run; models are loaded if a variant wants them, and held in memory together.

    problems: all of each split.
    """

    def make_examples(
        codec: TextCodec, longest: int | None
    ) -> tuple[dict[str, list[CodeExample]], dict[str, CodeGapLengthPolicy]]:
        every = {split: [make_example(problem, split, codec) for problem in some] for split, some in problems.items()}
        policies = {
            split: CodeGapLengthPolicy(some, config.proposals, longest, config.gap_capacity)
            for split, some in every.items()
        }
        return {split: some[: config.max_items or None] for split, some in every.items()}, policies

    chosen = {split: some[: config.max_items or None] for split, some in problems.items()}
    without_tokens = {split: [example_without_tokens(one) for one in some] for split, some in chosen.items()}
    wanted = {variant.sampler for variant in config.variants()}
    found: list[InfillSystem] = []
    if wanted - {CAUSAL, *BASELINES}:
        found += [AnySubsetSystem(name, config, make_examples) for name in config.model_names()]
    if config.causal:
        found.append(CausalSystem(config.causal, config, make_examples, config.loading.pick_device()))
    for name, complete in BASELINES.items():
        if name in wanted:
            found.append(ModelFreeBaseline(name, without_tokens, _writer(complete), trials=1))
    return found


def _writer(complete):
    """A baseline, which is a function of the problem, as a function of an example, its group and the trial."""
    return lambda example, group, trial: complete(example.problem)
