"""The folder of a training run: the settings it belongs to (config.json), and its metrics by step (metrics.jsonl)."""

import json
from pathlib import Path

from asarm.training import checkpoint
from asarm.utils.errors import InputError
from asarm.utils.files import write_json
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.provenance import provenance

# Settings that a resumed run may change: they do not affect the weights.
MAY_CHANGE = {
    "output_dir", "cache_dir", "num_workers", "preprocessing_num_workers", "gradient_accumulation_steps",
    "gradient_checkpointing", "torch_compile", "eval_steps", "eval_blocks", "eval_decodings", "save_steps",
    "save_total_limit", "logging_steps", "report_to", "perplexity_model", "tracker_project", "tracker_run",
    "resume", "dry_run",
}  # fmt: skip
# Settings that were added later, with the values that earlier runs had.
ADDED = {
    "document_end": "eos", "objective": "joint", "order": "ascending", "loss_scale": "none", "unpacked": False,
    "lora_rank": 0,
}  # fmt: skip
MICRO_BATCHES = "micro_batches_per_step"  # the share of each in its step, and its seed, follow from their number


def to_go_on(micro_batches: int, settings: dict) -> str:
    """How a run of so many micro-batches a step goes on with the processes that there are now."""
    processes = settings[MICRO_BATCHES] // settings["gradient_accumulation_steps"]
    if micro_batches % processes:
        return f"; to go on, take a number of processes that divides {micro_batches}, not {processes}"
    steps, many = micro_batches // processes, "es" if processes > 1 else ""
    return f"; to go on with {processes} process{many}, give gradient_accumulation_steps {steps}"


class RunFolder:
    """A run's folder. One process of a run writes to it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.json", self.path / "metrics.jsonl"

    def checkpoint_to_resume(self, resume: str) -> Path | None:
        """The checkpoint to resume from, if any. resume: auto, never, or a checkpoint folder.

        Raises InputError for a checkpoint folder that is not whole, and if the folder holds a run that `never` forbids
        to resume.
        """
        if resume == "auto":
            return checkpoint.newest(self.path)
        if resume != "never":
            checkpoint.read_manifest(Path(resume))
            return Path(resume)
        if self.config.exists():
            raise InputError(f"{self.path} holds an earlier run: choose another output_dir, or --resume auto")
        return None

    def check(self, settings: dict) -> None:
        """Raise InputError if the folder holds a run with other settings (see `RunConfig.settings`)."""
        if not self.config.exists():
            return
        try:
            before = ADDED | json.loads(self.config.read_text(encoding="utf-8"))
            changed = [name for name in settings if name not in MAY_CHANGE and before[name] != settings[name]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self.config} is not of such a training run ({error!r}): choose another output_dir"
            ) from error
        if changed:
            shown = ", ".join(f"{name} {before[name]!r}, now {settings[name]!r}" for name in changed)
            hint = to_go_on(before[MICRO_BATCHES], settings) if changed == [MICRO_BATCHES] else ""
            raise InputError(f"{self.path} holds a run with other settings ({shown}): choose another output_dir{hint}")

    def claim(self, settings: dict, step: int) -> None:
        """Make the folder this run's: write config.json, and drop the metrics of steps that will be run again."""
        if not self.config.exists():
            write_json(self.config, settings | provenance())
        write_json_lines(self.metrics, [line for line in read_json_lines(self.metrics) if line["step"] <= step])

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | values) + "\n")

    def values_at(self, step: int, wanted: str) -> dict[str, float]:
        """The last line of metrics.jsonl of a step that has the wanted value, without the step; {} if there is none."""
        lines = [line for line in read_json_lines(self.metrics) if line["step"] == step and wanted in line]
        return {name: value for name, value in lines[-1].items() if name != "step"} if lines else {}
