"""The decoding evaluation: costs and quality of sequential and speculative decoding of real text.

Packed sequences, most tokens masked, are decoded by every variant with the same masks and seeds. Each sequence and
variant gives one line of `samples.jsonl`, so that an interrupted run goes on where it stopped; tables, tests and plots
are made from that file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from asarm.evals.decoding.config import WHOLE, DecodingEvalConfig
from asarm.evals.decoding.generative_perplexity import Scorer, causal_scorer, self_scorer
from asarm.evals.decoding.metrics import summarise
from asarm.evals.decoding.plots import plot_decoding
from asarm.evals.decoding.report import summary, table
from asarm.evals.decoding.texts import Sequences, choose_sequences, load_documents, prompt_text
from asarm.evals.resumable import Evaluation, Unit, batches, run_settings, sampling_seed, take_turns
from asarm.evals.tables import counted
from asarm.models.compiled import DecodingModel, compiled_for_decoding
from asarm.sampling import sample
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_tensors

WARM_UP_TARGETS = 16


@dataclass
class Decoder:
    """A model, and its sequences of each length. name: of the model, or name@revision. weights: their digest."""

    name: str
    weights: str
    model: DecodingModel
    codec: TextCodec
    scorer: Scorer
    sequences: dict[int, Sequences]


def plan(config: DecodingEvalConfig, system: Decoder, length: int) -> list[Unit[int]]:
    """All work of one model on its sequences of one length, batch by batch; the variants take turns."""
    units, count = [], len(system.sequences[length].index)
    for size in dict.fromkeys(map(config.batch_size_of, config.variants())):
        variants = [one for one in config.variants() if config.batch_size_of(one) == size]
        for batch, rows in enumerate(batches(range(count), size)):
            for variant in take_turns(variants, batch):
                own = range(rows[0], min(rows[-1] + 1, variant.max_items or count))
                if own:
                    key = {"model": system.name, "length": length, "variant": variant.name, "batch": batch}
                    units.append(Unit(key, variant, own, f"{length} {variant.name}", system))
    return units


class DecodingEvaluation(Evaluation[int]):
    """Items are rows of the sequences of one model and length."""

    command, word = "decode", "text"

    def __init__(self, config: DecodingEvalConfig):
        super().__init__(config)
        self.config = config

    @cached_property
    def systems(self) -> list[Decoder]:
        """The models with their sequences; they are held in memory together."""
        config = self.config
        documents = load_documents(config.text, config.packing)
        scorer, found = None, []
        for name in config.model_names():
            model, codec = config.load_model(name)
            longest = getattr(model.config, "n_positions", None)  # XLNet has no limit
            if longest is not None and max(config.length) > longest:
                raise InputError(
                    f"length={max(config.length)} is over the {longest} positions of {name}: lower --length"
                )
            sequences = {length: choose_sequences(documents, codec, config, length) for length in config.length}
            if config.judge != "self":
                scorer = scorer or causal_scorer(
                    config.judge, config.loading.pick_device(), config.add_start_token, config.entropy_of == WHOLE
                )
            weights = sha256_of_tensors(model.state_dict().values())
            compiled = compiled_for_decoding(model, config.loading.compile)
            found.append(Decoder(name, weights, compiled, codec, scorer or self_scorer(model), sequences))
        return found

    def settings(self) -> dict[str, Any]:
        texts = {
            system.name: sha256_of_tensors([one.batch.tokens for one in system.sequences.values()])
            for system in self.systems
        }
        weights = {system.name: system.weights for system in self.systems}
        return run_settings(self.config) | {"weights_sha256": weights, "texts_sha256": texts}

    def units(self) -> list[Unit[int]]:
        return [
            unit
            for system in self.systems
            for length in self.config.length
            for unit in plan(self.config, system, length)
        ]

    def describe(self, todo: int, total: int) -> str:
        sizes = {
            f"{counted(len(one.index), 'texts')} of {length} tokens, {self.config.visible(length)} visible": None
            for system in self.systems
            for length, one in system.sequences.items()
        }
        return f"{'; '.join(sizes)}; {todo} of {total} decodings to do"

    def warm_up(self, todo: Sequence[Unit[int]]) -> None:
        """Decode the last few targets of one batch with each variant of each model and length."""
        for unit in {tuple(unit.key.values())[:3]: unit for unit in todo}.values():
            sequences = unit.system.sequences[unit.key["length"]]
            tokens, _, target = sequences.batch.select(list(unit.items)).to(unit.system.model.device)
            target &= target.flip(1).cumsum(1).flip(1) <= WARM_UP_TARGETS
            sample(unit.system.model, tokens, ~target, target, unit.variant.config, [0] * len(tokens))

    def run(self, unit: Unit[int]) -> list[dict]:
        """Decode and score one batch under one variant: a line for each of its sequences."""
        system: Decoder = unit.system
        codec, variant, sequences = system.codec, unit.variant, system.sequences[unit.key["length"]]
        batch = sequences.batch.select(list(unit.items)).to(system.model.device)
        index = [sequences.index[row] for row in unit.items]
        seeds = [sampling_seed(self.config.seed, block) for block in index]
        result = sample(system.model, *batch.masked(codec.mask_token_id), variant.config, seeds)
        decoded = [codec.decode(row) for row in result.tokens.tolist()]
        scores = system.scorer(decoded, result.tokens)
        return [
            {
                "index": index[row],
                **unit.key,
                "sampler": variant.sampler,
                "k": variant.config.k,
                "tolerance": variant.config.tolerance,
                "batch_size": self.config.batch_size_of(variant),
                "nfe": int(result.nfe[row]),
                "targets": int(result.targets[row]),
                "seconds": result.seconds / len(index),  # wall time of the batch over its sequences
                "proposed": result.proposed[row].tolist(),
                "accepted": result.accepted[row].tolist(),
                "windows": result.windows[row].tolist(),
                "gen_nll": scores[row].nll,
                "gen_ppl": math.exp(scores[row].nll),
                "entropy": scores[row].entropy,
                "prompt": prompt_text(codec, batch.tokens[row].tolist(), batch.given[row].tolist()),
                "true_text": codec.decode(batch.tokens[row].tolist()),
                "text": decoded[row],
            }
            for row in range(len(index))
        ]

    def report(self) -> dict:
        """Write metrics.json, table.md and plots. Returns the metrics."""
        metrics = summarise(self.lines())
        self.write_results(metrics, table_md=table(metrics))
        plot_decoding(self.output)
        return metrics

    def summary(self, metrics: dict) -> str:
        return summary(metrics)


def evaluate(config: DecodingEvalConfig) -> dict:
    """Run what is left to run, then write metrics.json, table.md and the plots to output_dir. Returns the metrics."""
    return DecodingEvaluation(config).complete()
