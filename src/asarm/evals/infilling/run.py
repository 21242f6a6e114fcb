"""Evaluations that fill gaps: examples in batches, filled by every system under each of its variants."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from asarm.evals.infilling.config import InfillEvalConfig
from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.systems import InfillSystem, variants_of
from asarm.evals.resumable import Evaluation, Unit, batches, run_settings, take_turns

WARM_UP_EXAMPLES = 2


class InfillEvaluation(Evaluation[InfillExample]):
    """What the evaluations on stories and code share. group_field, trial_field: what their lines call them."""

    word = "gap"
    group_field: ClassVar[str]
    trial_field: ClassVar[str]

    def __init__(self, config: InfillEvalConfig, trials: int):
        super().__init__(config)
        self.config, self.trials = config, trials

    @cached_property
    def systems(self) -> Sequence[InfillSystem]:
        """What fills gaps."""
        return self.load_systems()

    @abstractmethod
    def load_systems(self) -> Sequence[InfillSystem]:
        """Load what fills gaps."""

    @abstractmethod
    def line(self, unit: Unit[InfillExample], example: Any, result: InfillResult) -> dict:
        """What a line of `samples.jsonl` holds besides the unit's key and costs."""

    def settings(self) -> dict[str, Any]:
        weights = {system.name: system.weights for system in self.systems}
        return run_settings(self.config, "steps") | {"weights_sha256": weights}

    def units(self) -> list[Unit[InfillExample]]:
        return [unit for system in self.systems for unit in self.units_of(system)]

    def units_of(self, system: InfillSystem) -> list[Unit[InfillExample]]:
        """All work of one system: examples of like length together, batch by batch; the variants take turns."""
        variants, units = variants_of(system, self.config), []
        trials = min(self.trials, system.trials or self.trials)
        for group, examples in system.examples.items():
            ordered = sorted(examples, key=lambda one: one.context_length + len(one.reference_tokens))
            for batch, some in enumerate(batches(ordered, self.config.batch_size)):
                for trial in range(trials):
                    for variant in take_turns(variants, batch):
                        key: dict[str, Any] = {"model": system.name, self.group_field: group, "variant": variant.name}
                        key |= {self.trial_field: trial, "batch": batch}
                        units.append(Unit(key, variant, some, f"{group} {variant.name}", system))
        return units

    def describe(self, todo: int, total: int) -> str:
        return f"{todo} of {total} gaps to fill"

    def warm_up(self, todo: Sequence[Unit[InfillExample]]) -> None:
        """Fill a few gaps with each variant of each system."""
        for unit in {(unit.key["model"], unit.variant.name): unit for unit in todo}.values():
            self.run(replace(unit, items=unit.items[:WARM_UP_EXAMPLES]))

    def run(self, unit: Unit[InfillExample]) -> list[dict]:
        """Fill the gaps of one unit: a line for each of its examples."""
        start = time.perf_counter()
        examples, group, trial = list(unit.items), unit.key[self.group_field], unit.key[self.trial_field]
        filled = unit.system.fill(examples, group, unit.variant, trial)
        seconds = (time.perf_counter() - start) / len(examples)  # wall time of the batch over its examples
        return [
            unit.key | _costs(unit, example, result, seconds) | self.line(unit, example, result)
            for example, result in zip(examples, filled, strict=True)
        ]


def _costs(unit: Unit[InfillExample], example: InfillExample, result: InfillResult, seconds: float) -> dict:
    has_length = unit.variant.gap_length != ""
    return {
        "sampler": unit.variant.sampler,
        "gap_length": unit.variant.gap_length,
        "index": example.index,
        "length": len(result.tokens) if has_length else None,
        "gold_length": len(example.reference_tokens) if has_length else None,
        "drawn": result.drawn,
        "nfe": result.nfe,
        "seconds": seconds,
        "proposed": result.proposed,
        "accepted": result.accepted,
        **({"scores": result.scores} if result.scores else {}),
    }
