"""The decoding evaluation: costs and quality of sequential and speculative decoding of real text.

Packed sequences, most tokens masked, are decoded by every variant with the same masks and seeds. Each sequence and
variant gives one line of `samples.jsonl`, so that an interrupted run goes on where it stopped; tables, tests and plots
are made from that file.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from asarm.data.packed import pack
from asarm.data.readers import joined, read_text
from asarm.evals.config import Variant
from asarm.evals.decoding.config import DecodingEvalConfig
from asarm.evals.decoding.generative_perplexity import load_scorer
from asarm.evals.decoding.metrics import summarise
from asarm.evals.decoding.report import plot_decoding, summary, table
from asarm.evals.hub import hub_rows
from asarm.evals.resumable import Evaluation, Unit, batches, run_settings, sampling_seed, take_turns
from asarm.models.compiled import compiled_for_decoding
from asarm.sampling import sample
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_tensors

logger = logging.getLogger(__name__)
WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1", "test")  # wikitext-2 has the same test articles
WARM_UP_TARGETS = 16


@dataclass
class Sequences:
    """What is decoded. index: the number of each sequence among all packed ones. batch: [n, N], tokens not masked."""

    index: list[int]
    batch: InfillBatch


def load_text(path: str) -> str:
    """The text of a local file, or WikiText's test part from the Hub. Raises InputError when it cannot be had."""
    if path:
        return read_text(path)
    return joined((True, row.fields["text"]) for row in hub_rows(WIKITEXT, "--text", ["text"]))


def choose_sequences(text: str, codec: TextCodec, config: DecodingEvalConfig) -> Sequences:
    """Pack the text, take the first `num_texts` of its blocks in shuffled order, and choose what stays visible.

    The visible positions of a block are a uniform choice that depends on the seed and the block alone.
    """
    ids = codec.encode(text)
    if codec.mask_token_id in ids:
        raise InputError(f"the text holds {codec.mask_token}, which stands for what is to be decoded: take it out")
    if codec.eos_token_id is None:
        raise InputError("the model's tokenizer has no eos token to end the text with: choose another model")
    blocks = pack([ids], codec.eos_token_id, config.length)
    index = np.random.default_rng(config.seed).permutation(len(blocks))[: config.num_texts].tolist()
    if len(index) < config.num_texts:
        logger.info("the text has %d blocks of %d tokens, fewer than num_texts", len(index), config.length)
    given = torch.zeros(len(index), config.length, dtype=torch.bool)
    for row, block in enumerate(index):
        given[row, np.random.default_rng([config.seed, block]).permutation(config.length)[: config.visible]] = True
    return Sequences(index, InfillBatch(torch.from_numpy(blocks[index]).long(), given, ~given))


def visible_text(codec: TextCodec, tokens: list[int], given: list[bool]) -> str:
    """The visible tokens, with every run of n masked ones written as `___n`."""
    pieces = []
    for seen, run in groupby(zip(tokens, given, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        pieces.append(codec.decode(ids) if seen else f" ___{len(ids)}")
    return "".join(pieces)


def plan(variants: list[Variant], count: int, batch_size: int) -> list[Unit[int]]:
    """All work on sequences 0..count-1, batch by batch; the variants take turns."""
    units = []
    for batch, rows in enumerate(batches(range(count), batch_size)):
        for variant in take_turns(variants, batch):
            own = range(rows[0], min(rows[-1] + 1, variant.max_items or count))
            if own:
                units.append(Unit({"variant": variant.name, "batch": batch}, variant, own, variant.name))
    return units


class DecodingEvaluation(Evaluation[int]):
    """Items are rows of `sequences`."""

    word = "text"

    def __init__(self, config: DecodingEvalConfig):
        super().__init__(config)
        self.config = config
        text = load_text(config.text)
        model, self.codec = config.loading.load()
        longest = getattr(model.config, "n_positions", None)
        if longest is not None and config.length > longest:
            raise InputError(
                f"length={config.length} is over the {longest} positions of {config.loading.model}: lower --length"
            )
        self.sequences = choose_sequences(text, self.codec, config)
        self.scorer = load_scorer(config.judge, model, config.loading.pick_device())
        self.digests = {
            "weights_sha256": sha256_of_tensors(model.state_dict().values()),
            "texts_sha256": sha256_of_tensors([self.sequences.batch.tokens]),
        }
        self.model = compiled_for_decoding(model, config.loading.compile)

    def settings(self) -> dict[str, Any]:
        return run_settings(self.config) | self.digests

    def units(self) -> list[Unit[int]]:
        return plan(self.config.variants(), len(self.sequences.index), self.config.batch_size)

    def describe(self, todo: int, total: int) -> str:
        count, config = len(self.sequences.index), self.config
        size = f"{count} texts of {config.length} tokens, {config.visible} visible"
        return f"{size}; {todo} of {total} decodings to do"

    def warm_up(self, todo: Sequence[Unit[int]]) -> None:
        """Decode the last few targets of one batch with each variant."""
        for unit in {unit.variant.name: unit for unit in todo}.values():
            tokens, _, target = self.sequences.batch.select(list(unit.items)).to(self.model.device)
            target &= target.flip(1).cumsum(1).flip(1) <= WARM_UP_TARGETS
            sample(self.model, tokens, ~target, target, unit.variant.config, [0] * len(tokens))

    def run(self, unit: Unit[int]) -> list[dict]:
        """Decode and score one batch under one variant: a line for each of its sequences."""
        batch = self.sequences.batch.select(list(unit.items)).to(self.model.device)
        index = [self.sequences.index[row] for row in unit.items]
        seeds = [sampling_seed(self.config.seed, block) for block in index]
        result = sample(self.model, *batch.masked(self.codec.mask_token_id), unit.variant.config, seeds)
        decoded = [self.codec.decode(row) for row in result.tokens.tolist()]
        scores = self.scorer(decoded, result.tokens)
        return [
            {
                "index": index[row],
                "variant": unit.variant.name,
                "sampler": unit.variant.sampler,
                "k": unit.variant.config.k,
                "batch": unit.key["batch"],
                "nfe": int(result.nfe[row]),
                "targets": int(result.targets[row]),
                "seconds": result.seconds / len(index),  # wall time of the batch over its sequences
                "proposed": result.proposed[row].tolist(),
                "accepted": result.accepted[row].tolist(),
                "gen_nll": scores[row].nll,
                "gen_ppl": math.exp(scores[row].nll),
                "entropy": scores[row].entropy,
                "visible": visible_text(self.codec, batch.tokens[row].tolist(), batch.given[row].tolist()),
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
