"""The training loop: joint loss plus optional draft loss, with validation and checkpoints.

Everything random is a function of the seed, the step and the number of the micro-batch in the step, counted over
processes and accumulation steps: number i * w + r is the i-th micro-batch of process r of w. So a resumed run repeats
the uninterrupted one bit for bit, and 2 processes do what one does with twice the accumulation steps.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from tqdm import tqdm

from asarm.data.training_data import TrainingData
from asarm.models.adapter import save_adapter
from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import compiler_options
from asarm.tokenization.batch import PADDING
from asarm.training import checkpoint, distributed, validation
from asarm.training.config import RunConfig
from asarm.training.cost_model import Parameters, ThroughputMeter, sequence_flops
from asarm.training.initial_model import initial_model
from asarm.training.report import RunSummary, plot_training
from asarm.training.run_folder import RunFolder
from asarm.utils.cluster.preemption import StopRequest, requeue
from asarm.utils.errors import want_of_memory
from asarm.utils.files import write_json, write_whole
from asarm.utils.progress import progress_bar

logger = logging.getLogger(__name__)


class Trainer:
    """One training run. Build it, then call `run`; results are in `config.training.output_dir`.

    load_scorer: loads what scores the texts that validation decodes, named by `perplexity_model`; None for no scores.
    """

    def __init__(
        self, config: RunConfig, load_scorer: Callable[[str, torch.device], validation.TextScorer] | None = None
    ):
        self.config = config
        self.accelerator = distributed.new_accelerator(config.training)
        self.processes, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.is_main = self.accelerator.is_main_process
        set_seed(config.training.seed)
        self.folder = RunFolder(config.training.output_dir)
        self.resumed = self.checkpoint_to_resume()
        self.step = checkpoint.read_manifest(self.resumed)["step"] if self.resumed else 0
        model, self.codec = initial_model(config, self.resumed)
        self.data = self.load_data()
        self.settings = config.settings(self.processes, self.data.training_blocks)
        self.folder.check(self.settings)
        device = self.accelerator.device
        self.summary = RunSummary(
            config, model.config, Parameters.of(model), self.data.training_blocks, self.processes, device.type
        )
        self.meter = ThroughputMeter(device)
        self.scorer = None
        if load_scorer is not None and self.is_main and config.training.eval_decodings and not config.training.dry_run:
            self.scorer = load_scorer(config.training.perplexity_model, device)
        self.prepare(model)

    def checkpoint_to_resume(self) -> Path | None:
        """The checkpoint to resume from, if any; the first process looks for all."""
        found = self.folder.checkpoint_to_resume(self.config.training.resume) if self.is_main else None
        return broadcast_object_list([found])[0]

    def load_data(self) -> TrainingData:
        """Open the data. On each node one process tokenises, and the others find the result in the cache."""
        with self.accelerator.main_process_first(), self.accelerator.local_main_process_first():
            return TrainingData.load(self.config.data, self.codec, self.config.training.eval_blocks, self.is_main)

    def prepare(self, model: AnyOrderModel) -> None:
        """Make `loss` and `optimizer` of the model, wrapped for the processes, and with the checkpoint's state."""
        training = self.config.training
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        if training.torch_compile:
            options = compiler_options(self.accelerator.device)
            model.hidden = torch.compile(model.hidden, dynamic=True, options=options)  # type: ignore[method-assign]
        self.pattern = self.config.gaps(self.codec)
        loss = distributed.TrainingLoss(model.train(), self.config.loss, self.pattern)
        self.loss, self.optimizer = distributed.wrap(self.accelerator, loss, training)
        if self.resumed:
            state = checkpoint.read_optimizer_state(self.resumed)
            distributed.load_optimizer_state(self.loss, self.optimizer, state)

    # The run

    def run(self) -> dict:
        """Train to max_steps, then save the model and `metrics.json`. Returns the final metrics; {} in processes other
        than the first, and when a signal stopped the run, which then has a checkpoint to resume from."""
        training, first, stopping = self.config.training, self.step, False
        self.begin()
        bar = progress_bar("training", "step", training.max_steps, first, self.is_main)
        with self.batches, StopRequest() as stop, bar:
            while self.step < training.max_steps and not stopping:
                with self.meter.step():
                    losses = self.train_step_or_advice(stop=bool(stop.signal))
                stopping = losses.pop("stop") > 0
                bar.update()
                if self.is_due(training.logging_steps):
                    self.log(losses, bar)
                scores = self.validate_and_record() if self.is_due(training.eval_steps) else {}
                if self.is_due(training.save_steps) or stopping:
                    self.save_checkpoint(validation.mean_nll(scores))
        return self.finish() if self.step >= training.max_steps else self.stopped()

    def is_due(self, every: int) -> bool:
        """Whether what happens every `every` steps, and after the last, is due now."""
        return self.step % every == 0 or self.step == self.config.training.max_steps

    def begin(self) -> None:
        """Claim the folder, start the trackers, and open the data where the run is."""
        if self.is_main:
            self.folder.claim(self.settings, self.step)
            if self.resumed:
                logger.info("resumed at step %d from %s", self.step, self.resumed)
        self.accelerator.wait_for_everyone()
        distributed.start_trackers(self.accelerator, self.config.training, self.settings)
        self.open_batches()
        if self.is_main:
            logger.info("%s", self.summary.describe())
            if self.summary.model.draft_head:
                logger.info("the draft head stays as it is: train it again for the new weights (asarm draft_head)")

    def open_batches(self) -> None:
        """Begin to read at the current step."""
        training = self.config.training
        self.batches = self.data.batches(
            training.per_device_train_batch_size, training.seed, self.rank, self.processes,
            start=self.step * training.gradient_accumulation_steps,
            states=checkpoint.read_reader_states(self.resumed) if self.resumed else {},
        )  # fmt: skip

    def train_step_or_advice(self, stop: int) -> dict[str, float]:
        """As `train_step`. Raises MemoryError, with the batch size to try, where the device has too little memory."""
        try:
            return self.train_step(stop)
        except torch.OutOfMemoryError as error:
            is_cuda = self.accelerator.device.type == "cuda"
            card = torch.cuda.get_device_properties(self.accelerator.device).total_memory if is_cuda else float("inf")
            raise MemoryError(f"{want_of_memory(error)}; {self.summary.smaller_batch(0.9 * card - 1e9)}") from error

    def train_step(self, stop: int = 0) -> dict[str, float]:
        """One optimiser step over all micro-batches of all processes.

        Returns mean losses, the norm of the gradient, the mean, lowest and highest masking rate, and `stop`, summed
        over processes. Raises FloatingPointError for a loss or gradient that is not finite, before anything is changed.
        """
        training, count = self.config.training, self.config.training.gradient_accumulation_steps
        total = count * self.processes
        rng = np.random.default_rng([training.seed, 3, self.step])
        quantiles = (rng.permutation(total) + rng.random(total)) / total
        rates = [self.config.masking.rate(self.step, quantile) for quantile in quantiles]
        seeds = rng.integers(2**62, size=total)
        losses = torch.zeros(2, device=self.accelerator.device)  # joint, draft
        for index in range(count):
            number = index * self.processes + self.rank
            with nullcontext() if index == count - 1 else self.accelerator.no_sync(self.loss):
                losses += self.backward(rates[number], int(seeds[number])) / total
        norm = self.accelerator.clip_grad_norm_(self.loss.parameters(), training.max_grad_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        sums = self.accelerator.reduce(torch.cat((losses, losses.new_tensor([stop]))), "sum")
        joint, draft, stops, norm = torch.cat((sums, norm.reshape(1).to(sums))).tolist()
        if not np.isfinite(joint + draft + norm):
            raise FloatingPointError(
                f"at step {self.step} the loss became {joint:.4g} and its gradient's norm {norm:.4g}: nothing of this "
                "step is kept; try a lower learning_rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_scale(self.processes) * training.learning_rate_at(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        masking = {"mask_rate": float(np.mean(rates)), "mask_rate_low": min(rates), "mask_rate_high": max(rates)}
        return {"joint": joint, "draft": draft, "grad_norm": norm, "stop": stops} | masking

    def backward(self, rate: float, seed: int) -> torch.Tensor:
        """Add the gradient of the next micro-batch at a masking rate. Returns joint and draft loss [2], detached."""
        sequences = torch.from_numpy(next(self.batches).astype(np.int64))  # [B, N]
        torch.manual_seed(seed)  # for dropout
        with self.accelerator.autocast():  # accelerate leaves it out when FSDP shards the weights
            joint, draft = self.loss(sequences.to(self.accelerator.device), rate, torch.Generator().manual_seed(seed))
        loss = self.config.loss.total(joint, draft, rate)
        self.accelerator.backward(loss / self.config.training.gradient_accumulation_steps)
        for length in (sequences != PADDING).sum(1).tolist():
            self.meter.tokens += length * self.processes  # the other processes' sequences are about as long
            self.meter.flops += sequence_flops(self.summary.model, self.config.rows(rate, length), self.summary.adapter)
        return torch.stack((joint, joint.new_zeros(()) if draft is None else draft)).detach()

    def log(self, losses: dict[str, float], bar: tqdm) -> None:
        """Record losses, learning rate and throughput, and show them beside the bar."""
        speed = self.meter.report(self.config.training.max_steps - self.step)
        self.record(losses | {"lr": self.optimizer.param_groups[0]["lr"]} | speed)
        bar.set_postfix(loss=f"{losses['joint']:.3f}", tok_s=f"{speed['tokens_per_second']:.0f}", refresh=False)

    def record(self, values: dict[str, float]) -> None:
        """Write values of this step to metrics.jsonl and the trackers."""
        if self.is_main:
            self.folder.record(self.step, values)
            self.accelerator.log(values, step=self.step)

    def validate(self) -> dict[str, float]:
        """Scores of the model on the held-out sequences (see `validation.validate`); {} but in the first process."""
        model, scores = distributed.whole_model(self.accelerator, self.loss), {}
        if self.is_main and model is not None:
            with self.accelerator.autocast():
                decodings, gaps = self.config.training.eval_decodings, self.pattern.gaps
                scores = validation.validate(model, self.codec, self.data.held_out, decodings, self.scorer, gaps)
        self.accelerator.wait_for_everyone()
        return scores

    def validate_and_record(self) -> dict[str, float]:
        """`validate`, with the scores recorded."""
        scores = self.validate()
        self.record(scores)
        return scores

    def write_model(
        self, path: Path, weights: dict[str, torch.Tensor] | None, adapter_dtype: torch.dtype = torch.float32
    ) -> None:
        """Write a model folder, or that of an adapter in a dtype. weights: of the whole model, if it is sharded."""
        model = distributed.unwrapped_model(self.accelerator, self.loss)
        if self.config.training.lora_rank:
            save_adapter(model, path, adapter_dtype)
        else:
            model.save_pretrained(path, state_dict=weights)
        self.codec.save_pretrained(path)

    def save_checkpoint(self, score: float | None = None) -> None:
        """Write a checkpoint with the state of all processes, and delete old ones. score: of its validation."""
        weights = distributed.gathered_weights(self.accelerator, self.loss)
        optimizer = distributed.optimizer_state(self.loss, self.optimizer)
        readers = dict(gather_object(list(self.batches.states.items())))

        def write(path: Path) -> None:
            checkpoint.write_state(path, lambda folder: self.write_model(folder, weights), optimizer, readers)

        if self.is_main:
            checkpoint.save(self.folder.path, self.step, score, write)
            checkpoint.prune(self.folder.path, self.config.training.save_total_limit)
        self.accelerator.wait_for_everyone()

    def stopped(self) -> dict:
        """End a run that a signal stopped."""
        if self.is_main:
            logger.info("stopped at step %d by a signal; the same command goes on from there", self.step)
            requeue()
        self.close()
        return {}

    def finish(self) -> dict:
        """Write weights (or adapter) and tokenizer to output_dir/model, metrics with baselines, and the loss curve.

        Returns the metrics; {} but in the first process.
        """
        known = self.folder.values_at(self.step, f"nll_{validation.RATES[0]}") if self.is_main else {}
        scores = broadcast_object_list([known])[0] or self.validate_and_record()
        weights, metrics = distributed.gathered_weights(self.accelerator, self.loss), {}
        if self.is_main:
            write_whole(self.folder.path / "model", lambda path: self.write_model(path, weights, torch.float16))
            metrics = {
                "steps": self.step,
                "parameters": self.summary.parameters.total,
                "seconds_now": self.meter.total_seconds,
                "tokens_trained_now": self.meter.total_tokens,
            } | scores
            if self.summary.adapter:
                metrics["trained_parameters"] = self.summary.adapter
            if self.data.train_blocks is not None:
                metrics |= validation.ngram_baselines(self.data.train_blocks, self.data.held_out, len(self.codec))
            write_json(self.folder.path / "metrics.json", metrics)
            plot_training(self.folder.path)
        self.accelerator.wait_for_everyone()
        self.close()
        return metrics

    def close(self) -> None:
        """Let go of the model and leave the group of processes.

        As long as DDP's reducer exists the group does, too, whoever left it; and when gloo's threads outlive the
        interpreter, they may abort the process at its very end.
        """
        del self.loss, self.optimizer
        self.accelerator.free_memory()
        self.accelerator.end_training()

    def dry_run(self) -> str:
        """What `run` would do: sizes, an estimate of memory, and the first batch as text. Writes no results."""
        self.open_batches()
        with self.batches:
            texts = [self.codec.decode(row[row != PADDING].tolist()) for row in next(self.batches)]
        return self.summary.dry_run(texts)
