"""A language model's own writing as a corpus to adapt it on: `python -m asarm write OUTPUT.jsonl [options]`.

Writes JSON lines with `kind` and `text`, for `train --train_files OUTPUT.jsonl`. Texts that repeat themselves, speak of
themselves or use slurs are left out, and all are cut at a sentence's end. The command goes on where it was interrupted.
With --clean, files of such lines are filtered in the same way instead.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from asarm.data.rows import read_rows
from asarm.data.writing.filters import has_slur
from asarm.data.writing.generate import Writer, WritingConfig
from asarm.data.writing.prompts import prose
from asarm.evals.hub import load_causal
from asarm.models.load import pick_device, pick_dtype
from asarm.utils.config import OptionParser, flat, from_options, options_of
from asarm.utils.errors import InputError
from asarm.utils.files import write_json, write_whole
from asarm.utils.folder_lock import locked
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.logging_setup import quiet_libraries
from asarm.utils.progress import progress_bar

MOST_EMPTY = 20  # batches in a row of which nothing is kept


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    parser = OptionParser((options_of(WritingConfig),), prog="asarm write", description=__doc__)
    parser.add_argument("output", help="JSON-lines file to write")
    parser.add_argument("--clean", nargs="+", metavar="FILE", help="filter the texts of these JSON-lines files instead")
    options, extra = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    config, output = from_options(WritingConfig, **vars(options)), Path(extra.output)
    with locked(output, beside=True):
        if extra.clean:
            write_whole(output, lambda temporary: clean(extra.clean, temporary))
        else:
            quiet_libraries()
            write(config, output)


def write(config: WritingConfig, output: Path) -> None:
    """Append texts to the output until it has enough tokens. Beside it, OUTPUT.config.json has the settings.

    Raises InputError when the output was written with other settings, or nothing that is written can be kept.
    """
    rows, settings = begun(config, output)
    model, tokenizer = load_causal(config.model, "model", pick_device(config.device))
    writer = Writer(model.to(pick_dtype(config.dtype, model.device, large=True)), tokenizer, config)
    write_json(settings_file(output), settings)
    write_json_lines(output, rows)
    count, number, empty = 0, 0, 0
    if rows:
        count, number = sum(map(tokens_of(writer), rows)), rows[-1]["batch"] + 1
    with progress_bar("writing", "token", config.tokens, count) as bar, output.open("a", encoding="utf-8") as file:
        while count < config.tokens:
            batch = writer.batch(number)
            file.write("".join(json.dumps(row) + "\n" for row in batch))
            file.flush()
            found = sum(map(tokens_of(writer), batch))
            bar.update(found)
            count, number, empty = count + found, number + 1, 0 if batch else empty + 1
            if empty == MOST_EMPTY:
                raise InputError(f"{MOST_EMPTY} batches of {config.model} had no text that is worth training on")
    print(f"{count} tokens: {output}")


def begun(config: WritingConfig, output: Path) -> tuple[list[dict], dict]:
    """The rows that an earlier run of the same settings left, without its last batch, and the settings.

    That batch may not be whole. Raises InputError for other settings, and for a file that this command did not write.
    """
    settings = {name: value for name, value in flat(config).items() if name not in ("tokens", "device")}
    if not output.exists():
        return [], settings
    file = settings_file(output)
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != settings:
        raise InputError(f"{output} was not written with these settings: choose another file, or delete it")
    rows = read_json_lines(output)
    return [row for row in rows if row["batch"] < rows[-1]["batch"]], settings


def settings_file(output: Path) -> Path:
    """Where the settings are."""
    return output.with_name(f"{output.name}.config.json")


def tokens_of(writer: Writer) -> Callable[[dict], int]:
    """What counts the tokens of a row."""
    return lambda row: len(writer.tokenizer.encode(row["text"], add_special_tokens=False))


def clean(files: list[str], output: Path) -> None:
    """Write the texts of files that are worth training on, each once, and print how many are left of each kind."""
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    with output.open("w", encoding="utf-8") as file:
        for row in (row for path in files for row in read_rows(path, ["text"])):
            kind, text = str(row.fields.get("kind", "texts")), row.fields["text"]
            counts[f"{kind} before"] += 1
            texts = [text] * (not has_slur(text)) if kind == "functions" else prose(text)
            for text in (text for text in texts if text not in seen):
                seen.add(text)
                counts[kind] += 1
                file.write(json.dumps({"kind": kind, "text": text}) + "\n")
    for kind in sorted(kind for kind in counts if not kind.endswith(" before")):
        print(f"{kind}: {counts[kind]} of {counts[kind + ' before']} texts")
