"""The training loop: packed texts, joint loss plus optional draft loss, validation by exact NLL and by decoding.

Everything random is a function of the seed, the step and the number of the pass within the whole run, counted over
processes and accumulation steps: pass i of w processes is number i of the step's passes * w. So a resumed run repeats
the uninterrupted one bit for bit, and 2 processes do what one does with twice the accumulation steps.
"""

import json
import logging
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object, set_seed
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from tqdm import tqdm

from asarm.data.config import DataConfig
from asarm.data.packed import LocalBatches, blocks, evenly, local_corpus
from asarm.data.streaming import StreamBatches, held_out_blocks, tokenizer_texts
from asarm.data.tokenizer_training import corpus_text, train_tokenizer
from asarm.models.from_gpt2 import start_from
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import load
from asarm.objective.loss import DraftLossConfig, training_loss
from asarm.objective.masking import Gaps, MaskingConfig, random_targets
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.codec import TextCodec
from asarm.training import checkpoint
from asarm.training.config import ModelConfig, TrainingConfig
from asarm.training.cost_model import largest_batches, memory_estimate, peak_flops, text_flops
from asarm.training.distributed import WHOLE, new_accelerator, shard_by_block
from asarm.training.optimizer import new_optimizer
from asarm.training.report import plot_training
from asarm.training.validation import masked_nll, ngram_nll
from asarm.utils.errors import InputError
from asarm.utils.files import write_json, write_whole
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.preemption import StopRequest, requeue
from asarm.utils.progress import update_seconds
from asarm.utils.provenance import provenance

logger = logging.getLogger(__name__)
VALIDATION_RATES = (0.15, 0.5, 0.95)
DECODED_RATE = 0.95
BASELINE_BLOCKS = 20_000
# Settings that a resumed run may change: they do not touch the weights.
FREE = {
    "output_dir", "cache_dir", "num_workers", "gradient_accumulation_steps", "gradient_checkpointing", "torch_compile",
    "eval_steps", "eval_blocks", "eval_decodings", "save_steps", "save_total_limit", "logging_steps", "report_to",
    "resume", "dry_run",
}  # fmt: skip


def new_model(config: ModelConfig, codec: TextCodec) -> AnyOrderGPT2:
    """A randomly initialised `gpt2` backbone for a tokenizer with mask, eos and pad tokens."""
    return AnyOrderGPT2(
        AnyOrderGPT2Config(
            vocab_size=len(codec),
            n_positions=config.n_positions,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            mask_token_id=codec.mask_token_id,
            eos_token_id=codec.eos_token_id,
            pad_token_id=codec.tokenizer.pad_token_id,
        )
    )


class TrainingLoss(torch.nn.Module):
    """Model and objective as one module, so that wrappers (DDP, FSDP) see the whole computation as one forward pass."""

    def __init__(self, model, draft: DraftLossConfig, gaps: Gaps):
        super().__init__()
        self.model, self.draft, self.gaps = model, draft, gaps

    def forward(self, tokens: torch.Tensor, rate: float, generator: torch.Generator):
        """Joint and draft loss of tokens [B, N]; the second may be None."""
        losses = training_loss(self.model, tokens, rate, self.draft, generator, self.gaps)
        return losses.joint, losses.draft


class Trainer:
    """One run. Build it, then call `run`; results lie in `config.output_dir`."""

    def __init__(
        self,
        config: TrainingConfig,
        source: DataConfig,
        shape: ModelConfig,
        masking: MaskingConfig,
        draft: DraftLossConfig,
    ):
        self.config, self.source, self.masking, self.draft = config, source, masking, draft
        self.output = Path(config.output_dir)
        self.accelerator = new_accelerator(config)
        self.ranks, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process
        set_seed(config.seed)
        self.resumed = self.checkpoint_to_resume()
        self.step = checkpoint.about(self.resumed)["step"] if self.resumed else 0
        if self.resumed:
            model, self.codec = load(self.resumed / "model")
        elif config.init_from:
            model, self.codec = start_from(config.init_from, config.init_revision or None, config.white_space)
        else:
            texts = corpus_text(source) if source.train_files else tokenizer_texts(source)
            white_space = "plain" if config.white_space == "auto" else config.white_space
            self.codec = TextCodec(train_tokenizer(texts, shape.vocab_size), white_space)
            model = new_model(shape, self.codec)
        if source.block_size > model.config.n_positions:
            raise InputError(f"block_size={source.block_size} is over the model's {model.config.n_positions} positions")
        if self.codec.eos_token_id is None:
            raise InputError(f"the tokenizer of {config.init_from} has no eos token to end documents with")
        self.load_data()
        self.settings = self.all_settings(shape)
        self.check_settings()

        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.model_class, self.model_config = type(model), model.config
        self.parameters = sum(p.numel() for p in model.parameters())
        if config.torch_compile:
            model.hidden = torch.compile(model.hidden, dynamic=True)
        loss = TrainingLoss(model.train(), draft, self.gaps())
        self.sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if self.sharded:
            if config.optimizer == "muon":
                raise InputError("optimizer muon needs whole matrices, and FSDP shards them: use adamw")
            shard_by_block(self.accelerator, model)
        self.loss, self.optimizer = self.accelerator.prepare(loss, new_optimizer(loss, config))
        if self.resumed:
            state = torch.load(self.resumed / "optimizer.pt", map_location="cpu", weights_only=True)
            set_optimizer_state_dict(self.loss, self.optimizer.optimizer, state, options=WHOLE)

    # What is there

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint from which to go on, if any; the first process looks for all."""
        found = [None]
        if self.is_main:
            if self.config.resume == "auto":
                found = [checkpoint.newest(self.output)]
            elif self.config.resume != "never":
                found = [Path(self.config.resume)]
                checkpoint.about(found[0])
            elif (self.output / "config.json").exists():
                raise InputError(f"{self.output} holds an earlier run: choose another output_dir, or --resume auto")
        return broadcast_object_list(found)[0]

    def all_settings(self, shape: ModelConfig) -> dict:
        """Everything that makes the run what it is, as it stands in config.json."""
        config = self.config
        own = {"micro_batches_per_step": config.gradient_accumulation_steps * self.ranks}
        if self.source.train_files:
            own["training_blocks"] = len(self.train_blocks)
        parts = [asdict(part) for part in (config, self.source, shape, self.masking, self.draft)]
        return json.loads(json.dumps({k: v for part in parts for k, v in part.items()} | own))

    def check_settings(self) -> None:
        """InputError when output_dir holds a run with other settings."""
        path = self.output / "config.json"
        if not path.exists():
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name in self.settings if name not in FREE and before[name] != self.settings[name]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not of such a training run ({error!r}): choose another output_dir") from error
        if changed:
            shown = ", ".join(f"{name} {before[name]!r}, now {self.settings[name]!r}" for name in changed)
            raise InputError(f"{self.output} holds a run with other settings ({shown}): choose another output_dir")

    def load_data(self) -> None:
        """Training blocks (of local files) and the held-out blocks to be scored."""
        source = self.source
        self.train_blocks = None
        # On each node one process tokenises, the others find its work in the cache.
        with self.accelerator.main_process_first(), self.accelerator.local_main_process_first():
            if source.train_files:
                train, held_out = local_corpus(source, self.codec)
                self.train_blocks = blocks(train, source.block_size)
                self.scored = evenly(blocks(held_out, source.block_size), self.config.eval_blocks)
            elif self.is_main:
                self.scored = held_out_blocks(source, self.codec, self.config.eval_blocks)

    def gaps(self) -> Gaps:
        """How targets lie. InputError for lines of a tokenizer that keeps no newlines."""
        masking = self.masking
        ends = self.codec.line_ends() if masking.mask_lines else []
        if masking.mask_lines and set(ends) <= {self.codec.eos_token_id}:
            raise InputError("mask_lines needs a tokenizer that keeps newlines, as --white_space tokens makes XLNet's")
        return Gaps(masking.mask_spans, masking.mask_lines, ends)

    def open_batches(self) -> None:
        """Begin to read where the run stands."""
        config = self.config
        start = self.step * config.gradient_accumulation_steps
        if self.source.train_files:
            self.batches = LocalBatches(
                self.train_blocks, config.per_device_train_batch_size, config.seed, self.rank, self.ranks, start
            )
            return
        states = None
        if self.resumed:
            saved = json.loads((self.resumed / "data.json").read_text(encoding="utf-8"))
            states = {int(reader): state for reader, state in saved.items()}
        self.batches = StreamBatches(
            self.source, self.codec, config.per_device_train_batch_size, config.seed,
            self.rank, self.ranks, start, states,
        )  # fmt: skip

    # One step

    @property
    def texts_per_step(self) -> int:
        return self.config.per_device_train_batch_size * self.config.gradient_accumulation_steps * self.ranks

    @property
    def tokens_per_step(self) -> int:
        return self.texts_per_step * self.source.block_size

    @property
    def learning_rate_scale(self) -> float:
        return self.texts_per_step / 32 if self.config.scale_learning_rate else 1.0

    def queries(self, rate: float) -> tuple[int, int]:
        """Targets and drafted targets of a text at a masking rate."""
        targets = max(1, int(rate * self.source.block_size))
        return targets, round(self.draft.draft_share * (targets - 1)) if self.draft.draft_weight > 0 else 0

    def train_step(self, stop: int = 0) -> dict[str, float]:
        """One optimiser step over all passes of all processes: mean losses, the norm of the gradient, and `stop`, the
        highest of the processes'."""
        config, passes = self.config, self.config.gradient_accumulation_steps
        count = passes * self.ranks
        rng = np.random.default_rng([config.seed, 3, self.step])
        quantiles = (rng.permutation(count) + rng.random(count)) / count
        seeds = rng.integers(2**62, size=count)
        totals = torch.zeros(2, device=self.accelerator.device)
        for index in range(passes):
            number = index * self.ranks + self.rank
            tokens = torch.from_numpy(next(self.batches).astype(np.int64)).to(self.accelerator.device)
            rate = self.masking.rate(self.step, quantiles[number])
            torch.manual_seed(int(seeds[number]))  # dropout
            generator = torch.Generator().manual_seed(int(seeds[number]))
            with nullcontext() if index == passes - 1 else self.accelerator.no_sync(self.loss):
                joint, draft = self.loss(tokens, rate, generator)
                loss = joint if draft is None else joint + self.draft.draft_weight * draft
                self.accelerator.backward(loss / passes)
            totals += torch.stack((joint, joint.new_zeros(()) if draft is None else draft)).detach() / count
            self.flops += len(tokens) * text_flops(self.model_config, self.source.block_size, *self.queries(rate))
        norm = self.accelerator.clip_grad_norm_(self.loss.parameters(), config.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        sums = self.accelerator.reduce(torch.cat((totals, totals.new_tensor([stop]))), "sum")
        joint, draft, stop, norm = torch.cat((sums, norm.reshape(1).to(sums))).tolist()
        if not np.isfinite(joint + draft + norm):
            raise FloatingPointError(
                f"at step {self.step} the loss became {joint:.4g} and its gradient's norm {norm:.4g}: nothing of this "
                "step is kept; try a lower learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate_scale * config.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {"joint": joint, "draft": draft, "grad_norm": norm, "stop": stop}

    # Validation

    def plain_model(self):
        """The model without wrappers, in the first process; None in others where it is sharded."""
        if not self.sharded:
            return self.accelerator.unwrap_model(self.loss, keep_torch_compile=False).model
        weights = get_model_state_dict(self.loss, options=WHOLE)
        if not self.is_main:
            return None
        model = self.model_class(self.model_config).to(self.accelerator.device)
        model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()}, strict=False)
        return model

    def validate(self) -> dict[str, float]:
        """Exact joint NLL (nats a token) of the held-out blocks at each validation rate, and what decoding some of them
        speculatively costs; masks and seeds never change. {} but in the first process."""
        model, scores = self.plain_model(), {}
        if self.is_main:
            compiled = model.__dict__.pop("hidden", None)  # for the shapes of training, not for those of decoding
            model.eval()
            with self.accelerator.autocast():
                for rate in VALIDATION_RATES:
                    scores[f"nll_{rate}"] = float(masked_nll(model, self.scored, rate, seed=0).mean())
                if self.config.eval_decodings:
                    scores |= self.decode_some(model)
            model.train()
            if compiled is not None:
                model.hidden = compiled
        self.accelerator.wait_for_everyone()
        return scores

    def decode_some(self, model) -> dict[str, float]:
        """NFE a token and the share of judged drafts accepted, of ASSD with self drafts on held-out texts."""
        some = evenly(self.scored, self.config.eval_decodings)
        tokens = torch.from_numpy(np.ascontiguousarray(some)).long()
        target = random_targets(*tokens.shape, DECODED_RATE, torch.Generator().manual_seed(1)).to(model.device)
        result = sample(model, tokens.to(model.device), ~target, target, SamplerConfig(), range(len(tokens)))
        return {
            "assd_nfe_per_token": float(result.nfe.sum() / result.targets.sum()),
            "assd_acceptance": float(result.accepted.sum() / result.proposed.sum().clamp(min=1)),
        }

    # Files

    def write_model(self, path: Path, weights: dict | None = None) -> None:
        """A model folder. weights: of the whole model, where it is sharded."""
        model = self.accelerator.unwrap_model(self.loss, keep_torch_compile=False).model
        model.save_pretrained(path, state_dict=weights)
        self.codec.save_pretrained(path)

    def whole_weights(self) -> dict | None:
        if not self.sharded:
            return None
        weights = get_model_state_dict(self.loss, options=WHOLE)
        return {name.removeprefix("model."): value for name, value in weights.items()}

    def save_checkpoint(self, score: float | None = None) -> None:
        """Write the state of all processes; see `asarm.training.checkpoint`."""
        weights = self.whole_weights()
        optimizer = get_optimizer_state_dict(self.loss, self.optimizer.optimizer, options=WHOLE)
        readers = [] if self.source.train_files else gather_object(list(self.batches.states.items()))

        def write(path: Path) -> None:
            self.write_model(path / "model", weights)
            torch.save(optimizer, path / "optimizer.pt")
            (path / "data.json").write_text(json.dumps(dict(readers)) + "\n", encoding="utf-8")

        if self.is_main:
            checkpoint.save(self.output, self.step, score, write)
            checkpoint.prune(self.output, self.config.save_total_limit)
        self.accelerator.wait_for_everyone()

    def record(self, line: dict) -> None:
        if not self.is_main:
            return
        with (self.output / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step} | line) + "\n")
        self.accelerator.log(line, step=self.step)

    def claim_output(self) -> None:
        """Make output_dir this run's: config.json, and metrics.jsonl without the steps that are run again."""
        if self.is_main:
            if not (self.output / "config.json").exists():
                write_json(self.output / "config.json", self.settings | provenance())
            metrics = self.output / "metrics.jsonl"
            write_json_lines(metrics, [line for line in read_json_lines(metrics) if line["step"] <= self.step])
            if self.resumed:
                logger.info("resumed at step %d from %s", self.step, self.resumed)
        self.accelerator.wait_for_everyone()
        if self.accelerator.log_with:
            flat = {name: value if isinstance(value, int | float | str) else str(value)
                    for name, value in self.settings.items()}  # fmt: skip
            self.accelerator.init_trackers("asarm", config=flat)

    def scores_so_far(self) -> dict[str, float]:
        """The last validation's, if it was at this step."""
        lines = read_json_lines(self.output / "metrics.jsonl") if self.is_main else []
        wanted = f"nll_{VALIDATION_RATES[0]}"
        return next((line for line in reversed(lines) if line["step"] == self.step and wanted in line), {})

    # The run

    def run(self) -> dict:
        """Train to max_steps, then save the model and `metrics.json`. Returns the final metrics; {} in processes but
        the first, and when a signal stopped the run, whose checkpoint is then written."""
        config = self.config
        self.claim_output()
        self.open_batches()
        if self.is_main:
            logger.info("%s", self.describe())
        first, seconds, peak = self.step, 0.0, peak_flops(self.accelerator.device)
        window = {"steps": 0, "seconds": 0.0}
        self.flops = 0.0
        with (
            StopRequest() as stop,
            tqdm(
                total=config.max_steps,
                initial=first,
                desc="training",
                unit="step",
                mininterval=update_seconds(),
                disable=not self.is_main,
            ) as bar,
        ):
            while self.step < config.max_steps:
                start = time.perf_counter()
                losses = self.train_step(stop=bool(stop.signal))
                stopping = losses.pop("stop") > 0
                window["steps"] += 1
                window["seconds"] += time.perf_counter() - start
                bar.update()
                last = self.step == config.max_steps
                if self.step % config.logging_steps == 0 or last:
                    rate = window["steps"] * self.tokens_per_step / window["seconds"]
                    line = losses | {
                        "lr": self.optimizer.param_groups[0]["lr"],
                        "tokens_per_second": rate,
                        "eta_seconds": (config.max_steps - self.step) * window["seconds"] / window["steps"],
                    }
                    if peak:
                        line["mfu"] = self.flops / window["seconds"] / peak
                    self.record(line)
                    bar.set_postfix(loss=f"{losses['joint']:.3f}", tok_s=f"{rate:.0f}", refresh=False)
                    seconds, self.flops, window = seconds + window["seconds"], 0.0, {"steps": 0, "seconds": 0.0}
                score = None
                if self.step % config.eval_steps == 0 or last:
                    scores = self.validate()
                    self.record(scores)
                    score = float(np.mean([scores[f"nll_{rate}"] for rate in VALIDATION_RATES])) if scores else None
                if self.step % config.save_steps == 0 or last or stopping:
                    self.save_checkpoint(score)
                if stopping and not last:
                    break
        if self.step < config.max_steps:
            return self.stopped()
        return self.finish(first, seconds)

    def stopped(self) -> dict:
        if self.is_main:
            logger.info("stopped at step %d by a signal; the same command goes on from there", self.step)
            requeue()
        self.close()
        return {}

    def finish(self, first: int, seconds: float) -> dict:
        """Save weights and tokenizer to output_dir/model, metrics with baselines, and the loss curve."""
        scores = broadcast_object_list([self.scores_so_far()])[0]
        if not scores:
            scores = self.validate()
            self.record(scores)
        weights, metrics = self.whole_weights(), {}
        if self.is_main:
            write_whole(self.output / "model", lambda path: self.write_model(path, weights))
            metrics = {"steps": self.step, "parameters": self.parameters, "seconds_now": seconds,
                       "tokens_trained_now": (self.step - first) * self.tokens_per_step}  # fmt: skip
            metrics |= {name: value for name, value in scores.items() if name != "step"} | self.baselines()
            write_json(self.output / "metrics.json", metrics)
            plot_training(self.output)
        self.accelerator.wait_for_everyone()
        self.close()
        return metrics

    def close(self) -> None:
        """Let go of the model and leave the group of processes.

        As long as DDP's reducer is there the group is, too, whoever left it; and when gloo's threads outlive the
        interpreter, they may abort the process at its very end.
        """
        self.loss = self.optimizer = None
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def baselines(self) -> dict[str, float]:
        """NLL of counted tables of (some of) the training blocks on the held-out ones, for local files."""
        if self.train_blocks is None:
            return {}
        train = np.asarray(evenly(self.train_blocks, BASELINE_BLOCKS))
        return {
            f"{name}_nll_{rate}": value
            for rate in VALIDATION_RATES
            for name, value in ngram_nll(train, self.scored, rate, len(self.codec), seed=0).items()
        }

    def describe(self) -> str:
        """Sizes of model, data and step."""
        config, source = self.config, self.source
        if self.train_blocks is None:
            corpus = f"streamed from {source.dataset} by {source.streams} readers"
        else:
            corpus = f"{len(self.train_blocks)} training blocks"
            corpus += f" ({config.max_steps * self.texts_per_step / len(self.train_blocks):.2f} epochs)"
        return (
            f"{self.model_config.model_type}, {self.parameters:,} parameters; {corpus} of {source.block_size} tokens; "
            f"{config.max_steps} steps of {self.tokens_per_step:,} tokens ({self.texts_per_step} texts) on "
            f"{self.ranks} {self.accelerator.device.type} process{'es' if self.ranks > 1 else ''}"
        )

    def dry_run(self) -> str:
        """What `run` would do: sizes, an estimate of memory, and the first packed batch as text. Writes no results."""
        config = self.config
        shape = (self.source.block_size, *self.queries(self.masking.mask_high), config.bf16)
        memory = memory_estimate(
            self.model_config, self.parameters, config.per_device_train_batch_size, *shape,
            config.gradient_checkpointing,
        )  # fmt: skip
        batches = [
            largest_batches(self.model_config, self.parameters, *shape, checkpointing=checkpointing)
            for checkpointing in (False, True)
        ]
        fitting = ", ".join(f"{size} GB {count} ({batches[1][size]})" for size, count in batches[0].items())
        self.open_batches()
        texts = [self.codec.decode(row) for row in next(self.batches).tolist()]
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in memory.items())
        return "\n".join(
            [
                self.describe(),
                f"peak learning rate {config.learning_rate * self.learning_rate_scale:.3g}",
                f"memory of one process, estimated: {sum(memory.values()) / 2**30:.2f} GiB ({parts})",
                f"largest batch by the same estimate (with gradient checkpointing): {fitting}",
                *(f"--- text {index + 1} of the first batch ---\n{text}" for index, text in enumerate(texts)),
            ]
        )
