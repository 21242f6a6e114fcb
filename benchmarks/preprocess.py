"""Seconds and memory of tokenising local files, and of reading batches of the tokens, by the size of the files.

    nice python benchmarks/preprocess.py [--sizes 25 50 100 200] [--kind txt] [--tokenizer tiny-text] [--workers 0]

Each size is one file of documents of about 4,000 characters, drawn from `--text` with replacement, and is tokenised in
a process of its own. "CPU s" are seconds of all threads together: on a shared machine they vary less than the others.
Memory is what a process takes beyond its libraries and the tokenizer; of batches, that of which there is no file.
"found again": CPU seconds until a later run, which reads the files once, has found the tokens. The last line follows
from the largest size.
"""

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from decode import show
from memory import forget_peak, resident

from asarm.data.config import CorpusConfig
from asarm.data.packed import LocalBatches, batch_rows, blocks, local_corpus
from asarm.data.readers import corpus_files, read_text
from asarm.models.load import load_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.utils.cluster.processes import usable_cpus

DOCUMENT = 4000  # characters
BLOCK_SIZE, BATCH, BATCHES = 512, 32, 100
GOAL = 50_000  # megabytes


def documents(text: str, megabytes: float) -> Iterator[str]:
    """Parts of a text, with about as many bytes in all."""
    rng, left = random.Random(0), megabytes * 1e6
    while left > 0:
        start = rng.randrange(max(1, len(text) - DOCUMENT))
        part = text[start : start + DOCUMENT]
        yield part
        left -= len(part.encode())


def write_corpus(path: Path, text: str, megabytes: float) -> None:
    """A text file, or one of JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for part in documents(text, megabytes):
            file.write(json.dumps({"text": part}) + "\n" if path.suffix == ".jsonl" else part + "\n\n")


def tokenise(path: Path, tokenizer: str, workers: int, answers: multiprocessing.Queue) -> None:
    """Put (seconds, CPU seconds, peak bytes, tokens, CPU seconds of finding these again) of one file on the queue."""
    codec = TextCodec(load_tokenizer(tokenizer))
    codec.encode_batch([])
    config = CorpusConfig(
        train_files=[str(path)], cache_dir=str(path.parent / "cache"), preprocessing_num_workers=workers
    )
    forget_peak()
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    local_corpus(config, codec)
    seconds, cpu, peak = time.perf_counter() - start, time.process_time() - cpu, resident("VmHWM") - before
    start = time.process_time()
    train, held_out = local_corpus(config, codec)
    answers.put((seconds, cpu, peak, len(train) + len(held_out), time.process_time() - start))


def read_batches(path: Path, tokenizer: str, answers: multiprocessing.Queue) -> None:
    """Put (seconds of a batch after the first, bytes held) of the tokens of a file on the queue `answers`."""
    config = CorpusConfig(train_files=[str(path)], cache_dir=str(path.parent / "cache"))
    train, _ = local_corpus(config, TextCodec(load_tokenizer(tokenizer)))
    batches = LocalBatches(blocks(train, BLOCK_SIZE), BATCH, seed=0, rank=0, ranks=1)
    before = resident("RssAnon")
    next(batches)  # which shuffles the numbers of all blocks
    start = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    answers.put(((time.perf_counter() - start) / BATCHES, resident("RssAnon") - before))


def in_process(function, *arguments):
    """What a function puts on its queue, called in a new process."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=function, args=(*arguments, answers))
    process.start()
    found = answers.get()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[25, 50, 100, 200], help="megabytes")
    parser.add_argument("--kind", choices=("txt", "jsonl"), default="txt")
    parser.add_argument("--tokenizer", default="tiny-text", help="a model, by name or folder")
    parser.add_argument("--workers", type=int, default=0, help="0: one for each usable CPU")
    parser.add_argument("--text", nargs="+", default=["stdlib"], help="files and folders; stdlib is Python's own")
    arguments = parser.parse_args()
    text = "\n".join(
        map(read_text, filter(lambda path: path.stat().st_size, corpus_files(arguments.text, [".txt", ".py"])))
    )
    print(f"{arguments.workers or usable_cpus()} threads, {arguments.tokenizer}, one .{arguments.kind} file\n")
    columns = ("MB", "s", "CPU s", "tokens, M", "peak, MB", "found again, s", "a batch, ms", "MB of batches")
    show(*columns)
    show(*["---:"] * len(columns))
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            path = Path(folder, f"{size}.{arguments.kind}")
            write_corpus(path, text, size)
            seconds, cpu, peak, tokens, again = in_process(tokenise, path, arguments.tokenizer, arguments.workers)
            each, held = in_process(read_batches, path, arguments.tokenizer)
            show(size, seconds, cpu, tokens / 1e6, peak / 1e6, again, each * 1e3, held / 1e6)
            path.unlink()
    more = GOAL / size
    count, before, start = int(tokens * more) // BLOCK_SIZE, resident("RssAnon"), time.process_time()
    batch_rows(count, 0, BATCH, seed=0)
    shuffled, held = time.process_time() - start, resident("RssAnon") - before
    print(
        f"\n{GOAL} MB: {cpu * more / 3600:.1f} h of one CPU, once, {again * more:.0f} s to find the tokens again; "
        f"{tokens * more / 1e9:.1f} G tokens; the order of an epoch's {count / 1e6:.0f} M blocks takes "
        f"{shuffled:.1f} s and {held / 1e6:.0f} MB a process"
    )


if __name__ == "__main__":
    main()
