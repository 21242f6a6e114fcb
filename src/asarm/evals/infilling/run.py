"""The work of a run that fills gaps: cut into units, each filled, timed and written at once."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from asarm.evals.infilling.config import InfillEvalConfig, Variant
from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.infill import InfillResult
from asarm.evals.infilling.systems import InfillSystem, variants_of
from asarm.evals.resumable import run_settings, run_units, unfinished

logger = logging.getLogger(__name__)
WARM_UP_TEXTS = 2


@dataclass
class Unit:
    """What is timed and written at once: some texts of a group under one variant, once."""

    system: InfillSystem
    group: str
    variant: Variant
    trial: int
    batch: int
    gaps: list[InfillExample]

    @property
    def key(self) -> tuple:
        """What its lines say of it: model, group, variant, trial, batch."""
        return self.system.name, self.group, self.variant.name, self.trial, self.batch

    @property
    def size(self) -> int:
        return len(self.gaps)

    @property
    def name(self) -> str:
        return f"{self.group} {self.variant.name}"


def plan(config: InfillEvalConfig, system: InfillSystem, trials: int) -> list[Unit]:
    """All work of one system: texts of like length together, batch by batch.

    Variants take turns, so that a machine that slows down slows all; each batch begins with another.
    """
    variants, units = variants_of(system, config), []
    trials = min(trials, system.trials or trials)
    for group, gaps in system.gaps.items():
        gaps = sorted(gaps, key=lambda gap: gap.context_length + len(gap.reference_tokens))
        for batch, start in enumerate(range(0, len(gaps), config.batch_size)):
            some = gaps[start : start + config.batch_size]
            turn = batch % max(1, len(variants))
            for trial in range(trials):
                for variant in variants[turn:] + variants[:turn]:
                    units.append(Unit(system, group, variant, trial, batch, some))
    return units


Line = Callable[[Unit, InfillExample, InfillResult], dict]  # what an evaluation writes of a filled gap, besides costs


def run_unit(unit: Unit, line: Line) -> list[dict]:
    """Fill the gaps of one unit: a line for each of its texts."""
    start = time.perf_counter()
    filled = unit.system.fill(unit.gaps, unit.group, unit.variant, unit.trial)
    seconds = (time.perf_counter() - start) / unit.size  # wall time of the batch over its texts
    return [_cost(unit, gap, one, seconds) | line(unit, gap, one) for gap, one in zip(unit.gaps, filled, strict=True)]


def _cost(unit: Unit, gap: InfillExample, filled: InfillResult, seconds: float) -> dict:
    counted = unit.variant.gap_length != ""
    return {
        "model": unit.system.name,
        "variant": unit.variant.name,
        "sampler": unit.variant.sampler,
        "gap_length": unit.variant.gap_length,
        "batch": unit.batch,
        "index": gap.index,
        "length": len(filled.tokens) if counted else None,
        "gold_length": len(gap.reference_tokens) if counted else None,
        "drawn": filled.drawn,
        "nfe": filled.nfe,
        "seconds": seconds,
        "proposed": filled.proposed,
        "accepted": filled.accepted,
        **({"scores": filled.scores} if filled.scores else {}),
    }


def settings_of(config: InfillEvalConfig, systems: Sequence[InfillSystem], *left_out: str) -> dict:
    """What results depend on, of all evaluations that fill gaps. left_out: options that they do not depend on."""
    weights = {system.name: system.weights for system in systems}
    return run_settings(config, "steps", *left_out) | {"weights_sha256": weights}


def fill_gaps(
    samples: Path,
    config: InfillEvalConfig,
    systems: Sequence[InfillSystem],
    trials: int,
    fields: Sequence[str],
    line: Line,
) -> None:
    """Fill what is still to be filled, and append it to the file `samples`.

    fields: those of a line that make its unit's key.
    """
    units = [unit for system in systems for unit in plan(config, system, trials)]
    todo = unfinished(samples, units, fields)
    left, total = (sum(unit.size for unit in some) for some in (todo, units))
    logger.info("%d of %d gaps to fill", left, total)
    # A few gaps with each variant of each model first, so that no timing pays for first calls.
    for unit in {(unit.system.name, unit.variant.name): unit for unit in todo}.values():
        run_unit(replace(unit, gaps=unit.gaps[:WARM_UP_TEXTS]), line)
    run_units(samples, units, todo, lambda unit: run_unit(unit, line), "gap")
