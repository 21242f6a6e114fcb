"""Settings of the training data."""

from dataclasses import dataclass
from pathlib import Path

from asarm.utils.config import check, check_at_least, check_choices, option


@dataclass
class CorpusConfig:
    """A corpus of local files, tokenised once."""

    train_files: list[str] = option(
        [], "text, .jsonl, .json, .csv or .parquet files (also .gz), and folders of them; `stdlib` is Python's own"
    )
    extensions: list[str] = option([".txt", ".jsonl", ".parquet"], "which files below a folder are read")
    text_field: str = option(
        "", "field of JSON, CSV, parquet and datasets with the text; the default is text, or else content"
    )
    held_out: float = option(0.02, "share of the data that is kept for validation")
    document_end: str = option(
        "eos", "what ends a document: eos; or tokenizer: what the tokenizer puts after a text, as XLNet's sep and cls, "
        "and eos, as in the paper's training",
    )  # fmt: skip
    cache_dir: str = option("", "where tokens of local files are kept; the default is ~/.cache/asarm")
    preprocessing_num_workers: int = option(0, "threads that tokenise local files; 0: one for each usable CPU")

    def __post_init__(self) -> None:
        check(0 < self.held_out <= 0.5, f"held_out must lie in (0, 0.5], not {self.held_out}")
        check_choices("document_end", [self.document_end], ("eos", "tokenizer"))
        check_at_least(self, preprocessing_num_workers=0)

    def names(self, path: Path) -> bool:
        """Whether a file is named itself, and so must be readable; one that is only in a folder is passed over."""
        return path in map(Path, self.train_files)


@dataclass
class DataConfig(CorpusConfig):
    """What is trained on: a corpus of local files, or a streamed dataset."""

    dataset: str = option("", "stream this instead: a dataset on the Hub, or a folder of .jsonl or .parquet files")
    dataset_dir: str = option("", "folder in the dataset, such as python")
    dataset_revision: str = option("", "branch, tag or commit of the dataset; the default is its main branch")
    dataset_split: str = option("train", "split of the dataset")
    block_size: int = option(512, "tokens per packed sequence")
    unpacked: bool = option(False, "one document a sequence, cut or padded to block_size, instead of packed ones")
    streams: int = option(8, "readers that share a streamed dataset: a multiple of the number of processes")
    shuffle_buffer: int = option(1000, "documents of a stream whose sequences are shuffled together")
    num_workers: int = option(2, "worker processes that read the streams of a training process")

    def __post_init__(self) -> None:
        check(bool(self.train_files) or bool(self.dataset), "no train_files given, and no dataset")
        check(not (self.train_files and self.dataset), "both train_files and a dataset given: choose one")
        super().__post_init__()
        check_at_least(self, block_size=1, streams=1, shuffle_buffer=1, num_workers=0)
