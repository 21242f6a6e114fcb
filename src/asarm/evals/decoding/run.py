"""Sequential against speculative decoding of real text: what each costs, and whether the text is the same.

Packed texts, most tokens masked, are decoded by every variant with the same masks and seeds. Each text and variant
gives one line of `samples.jsonl`, so that an interrupted run goes on where it stopped; tables, tests and plots are
made from that file.
"""

import json
import logging
import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from asarm.data.packed import pack
from asarm.data.readers import read_text
from asarm.evals.decoding.config import DecodingEvalConfig, Variant
from asarm.evals.decoding.generative_perplexity import Judge, load_judge
from asarm.evals.decoding.metrics import summarise
from asarm.evals.decoding.report import plot_decoding, table
from asarm.evals.hub import hub_rows
from asarm.evals.resumable import claim, run_settings, run_units, sampling_seed, unfinished
from asarm.models.compiled import compiled_for_decoding
from asarm.models.load import load_on_device, pick_device
from asarm.sampling import sample
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_tensors, write_json, write_text
from asarm.utils.jsonl import read_json_lines

logger = logging.getLogger(__name__)
WIKITEXT = ("Salesforce/wikitext", "wikitext-103-raw-v1", "test")  # wikitext-2 has the same test articles
WARM_UP_TARGETS = 16
UNIT_FIELDS = ("variant", "batch")


@dataclass
class Texts:
    """What is decoded. index: [n] places among the packed texts; tokens: [n, N] int64; given: [n, N] bool."""

    index: list[int]
    tokens: torch.Tensor
    given: torch.Tensor


@dataclass
class Unit:
    """What is timed and written at once: the texts `rows` (of batch number `batch`) under one variant."""

    variant: Variant
    batch: int
    rows: range

    @property
    def key(self) -> tuple[str, int]:
        """The fields UNIT_FIELDS of its lines."""
        return self.variant.name, self.batch

    @property
    def size(self) -> int:
        return len(self.rows)

    @property
    def name(self) -> str:
        return self.variant.name


def load_text(path: str) -> str:
    """The text of a local file, or WikiText's test part from the Hub. InputError when it cannot be had."""
    if path:
        return read_text(path)
    return "".join(row["text"] for row in hub_rows(WIKITEXT, "--text"))


def choose_texts(text: str, codec: TextCodec, config: DecodingEvalConfig) -> Texts:
    """Pack the text, take the first `num_texts` of its blocks in shuffled order, and choose what stays visible.

    The visible positions of a block are a uniform choice that depends on the seed and the block alone.
    """
    ids = codec.encode(text)
    if codec.mask_token_id in ids:
        raise InputError(f"the text holds {codec.mask_token}, which stands for what is to be decoded: take it out")
    blocks = pack([ids], codec.eos_token_id, config.length)
    index = np.random.default_rng(config.seed).permutation(len(blocks))[: config.num_texts].tolist()
    if len(index) < config.num_texts:
        logger.info("the text has %d blocks of %d tokens, fewer than num_texts", len(index), config.length)
    given = torch.zeros(len(index), config.length, dtype=torch.bool)
    for row, block in enumerate(index):
        given[row, np.random.default_rng([config.seed, block]).permutation(config.length)[: config.visible]] = True
    return Texts(index, torch.from_numpy(blocks[index]).long(), given)


def visible_text(codec: TextCodec, tokens: list[int], given: list[bool]) -> str:
    """The visible tokens, with every run of n masked ones written as `___n`."""
    pieces = []
    for seen, run in groupby(zip(tokens, given, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        pieces.append(codec.decode(ids) if seen else f" ___{len(ids)}")
    return "".join(pieces)


def decode_unit(
    model, codec: TextCodec, judge: Judge, texts: Texts, unit: Unit, config: DecodingEvalConfig
) -> list[dict]:
    """Decode and judge one batch under one variant: a line for each of its texts."""
    rows = list(unit.rows)
    tokens, given = texts.tokens[rows].to(model.device), texts.given[rows].to(model.device)
    index = [texts.index[row] for row in rows]
    seeds = [sampling_seed(config.seed, block) for block in index]
    masked = tokens.masked_fill(~given, codec.mask_token_id)
    result = sample(model, masked, given, ~given, unit.variant.config, seeds)
    decoded = [codec.decode(row) for row in result.tokens.tolist()]
    judgements = judge(decoded, result.tokens)
    return [
        {
            "index": index[row],
            "variant": unit.variant.name,
            "sampler": unit.variant.sampler,
            "k": unit.variant.config.k,
            "batch": unit.batch,
            "nfe": int(result.nfe[row]),
            "targets": int(result.targets[row]),
            "seconds": result.seconds / len(rows),  # wall time of the batch over its texts
            "proposed": result.proposed[row].tolist(),
            "accepted": result.accepted[row].tolist(),
            "gen_nll": judgements[row].nll,
            "gen_ppl": math.exp(judgements[row].nll),
            "entropy": judgements[row].entropy,
            "visible": visible_text(codec, tokens[row].tolist(), given[row].tolist()),
            "text": decoded[row],
        }
        for row in range(len(rows))
    ]


def warm_up(model, texts: Texts, units: list[Unit], config: DecodingEvalConfig) -> None:
    """Decode the last few targets of one batch with each variant, so that no timing pays for first calls."""
    for unit in {unit.variant.name: unit for unit in units}.values():
        rows = list(unit.rows)
        tokens, target = texts.tokens[rows].to(model.device), ~texts.given[rows].to(model.device)
        target &= target.flip(1).cumsum(1).flip(1) <= WARM_UP_TARGETS
        sample(model, tokens, ~target, target, unit.variant.config, [0] * len(rows))


def plan(config: DecodingEvalConfig, count: int) -> list[Unit]:
    """All work on `count` texts, batch by batch: variants take turns, so that a machine that slows down slows all.

    Each batch begins with another variant.
    """
    variants = config.variants()
    units = []
    for batch, start in enumerate(range(0, count, config.batch_size)):
        turn = batch % len(variants)
        for variant in variants[turn:] + variants[:turn]:
            rows = range(start, min(start + config.batch_size, count, variant.texts))
            units += [Unit(variant, batch, rows)] if rows else []
    return units


def evaluate(config: DecodingEvalConfig) -> dict:
    """Run what is left to run, then write metrics.json, table.md and the plots to output_dir. Returns the metrics."""
    output, device = Path(config.output_dir), pick_device(config.device)
    text = load_text(config.text)
    model, codec = load_on_device(config.model, config.revision, config.white_space, device, config.dtype)
    longest = getattr(model.config, "n_positions", None)
    if longest is not None and config.length > longest:
        raise InputError(f"length={config.length} is over the {longest} positions of {config.model}: lower --length")
    texts = choose_texts(text, codec, config)
    judge = load_judge(config.judge, model, device)

    digests = {
        "weights_sha256": sha256_of_tensors(model.state_dict().values()),
        "texts_sha256": sha256_of_tensors([texts.tokens]),
    }
    claim(output, run_settings(config) | digests)

    samples = output / "samples.jsonl"
    units = plan(config, len(texts.index))
    todo = unfinished(samples, units, UNIT_FIELDS)
    logger.info(
        "%d texts of %d tokens, %d visible; %d of %d decodings to do",
        len(texts.index), config.length, config.visible, sum(u.size for u in todo), sum(u.size for u in units),
    )  # fmt: skip
    model = compiled_for_decoding(model, config.compile)
    warm_up(model, texts, todo, config)
    run_units(samples, units, todo, lambda unit: decode_unit(model, codec, judge, texts, unit, config), "text")
    return report(output)


def report(output: Path) -> dict:
    """metrics.json, table.md and plots of a finished run, from its result files."""
    metrics = summarise(read_json_lines(output / "samples.jsonl"))
    about = json.loads((output / "config.json").read_text(encoding="utf-8"))
    write_json(output / "metrics.json", metrics | about)
    write_text(output / "table.md", table(metrics))
    plot_decoding(output)
    return metrics
