"""Golden file of behaviour: small runs of every sampler and command, which must not change with the structure.

`python tests/golden/make.py` writes golden.json beside this script, `python tests/golden/make.py --check` compares with
it. Only the public names of `asarm`, its command line and the files that commands write are used, so that modules may
move. Times, versions and machines are left out; everything else that is written stays, keys and names of files too.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import pyarrow.parquet
import torch
from transformers import GPT2Config, GPT2LMHeadModel, XLNetConfig, XLNetLMHeadModel, XLNetTokenizer

import asarm
from asarm.__main__ import main as command_line

GOLDEN = Path(__file__).resolve().with_name("golden.json")
RELATIVE, ABSOLUTE = 1e-4, 1e-5  # tolerances of floats
LONG = 120  # characters from which a text is shortened
# What depends on the clock, the machine, versions or the names of classes.
VARYING = {
    "seconds", "seconds_batch_1", "seconds_now", "tokens_per_second", "eta_seconds", "mfu", "times_as_fast", "speedup",
    "provenance", "hardware", "device", "git", "python", "torch", "transformers", "transformers_version", "judging",
    "architectures",
}  # fmt: skip
VARIES = "(varies)"


# --- texts

NOUNS = ["cat", "dog", "king", "owl", "miller", "sailor", "child", "bear"]
PLACES = ["house", "garden", "castle", "market", "forest", "harbour", "mill"]
VERBS = ["sat", "slept", "waited", "sang", "laughed"]
PROSE = [
    f"The {NOUNS[n % 8]} of {PLACES[n % 7]} {n} {VERBS[n % 5]} by the {PLACES[n * n % 7]}, and no {NOUNS[n * 3 % 8]} "
    f"came by.\n"
    for n in range(600)
]
TALE = """\
Once upon a time there was an old king who lived in a castle by the sea. Every morning he went down to the market and
asked the people what they had seen in the night. One day a child told him that a ship had come, and that nobody was on
it. The king took a lamp and went to the harbour with his two sons. They looked at the ship, and it was full of flowers.
"Who has sent us this?" he asked, and the owl in the tree said that it was the summer. So they carried the flowers home
and put them into every window of the house. When the winter came they were still there, and the town was glad of them.
"""
TEXTS_WITH_GAPS = [
    "Once upon a time ___6 lived in a castle by the ___3, and every morning he went to the market.",
    "___7 said the old king, ___.",
    "The owl ___16 in the tree.",
]
CODE_GAP = "def add(a, b):\n    total = ___4\n    return total\n"
PYTHON = {
    "shapes.py": '''"""Areas of shapes."""

import math


def circle_area(radius):
    """The area of a circle."""
    if radius < 0:
        raise ValueError("a radius must not be negative")
    return math.pi * radius**2


def triangle_area(base, height):
    """The area of a triangle."""
    product = base * height
    return product / 2


class Square:
    """A square with sides of one length."""

    def __init__(self, side):
        self.side = side

    def area(self):
        return self.side * self.side
''',
    "words/count.py": '''"""Words of texts, and how often they are there."""

from collections import Counter


def most_common_words(text, count):
    """The words that are there most often."""
    words = [word.strip(".,;:!?").lower() for word in text.split()]
    counter = Counter(word for word in words if word)
    return [word for word, _ in counter.most_common(count)]


def longest_word(text):
    best = ""
    for word in text.split():
        if len(word) > len(best):
            best = word
    return best
''',
    "words/copy_of_count.py": '''"""Words of texts, and how often they are there (a copy)."""

from collections import Counter


def most_common_words(text, count):
    """The words that are there most often."""
    words = [word.strip(".,;:!?").lower() for word in text.split()]
    counter = Counter(word for word in words if word)
    return [word for word, _ in counter.most_common(count)]


def longest_word(text):
    best = ""
    for word in text.split():
        if len(word) > len(best):
            best = word
    return best
''',
    "words/tests/test_count.py": "def test_nothing():\n    assert True\n" * 30,
    "short.py": "x = 1\n",
}
PROBLEMS = [
    {
        "task_id": f"SingleLineInfilling/made/{number}/L1",
        "entry_point": "f",
        "prompt": "def f(a):\n",
        "suffix": "    return b\n",
        "canonical_solution": f"    b = a + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
    }
    for number in range(3)
]
COMPLETIONS = {0: ["    b = a\n", "    b = a + 1\n"], 1: ["    b = a + 1\n", "    b = (\n"], 2: ["", "    b = 3\n"]}


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_corpus(folder: Path) -> None:
    """A folder with files of every kind that can be trained on."""
    write_lines(folder / "lines.jsonl", ({"content": text} for text in PROSE[:150]))
    (folder / "deep").mkdir()
    (folder / "deep/text.txt.gz").write_bytes(gzip.compress("".join(PROSE[150:300]).encode()))
    (folder / "deep/none.md").write_text("not read\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"text": PROSE[300:450]}), folder / "table.parquet")


def write_inputs(folder: Path) -> None:
    """All files that runs read, models but the bundled ones among them."""
    (folder / "prose.txt").write_text("".join(PROSE), encoding="utf-8")
    (folder / "tale.txt").write_text(TALE.replace("\n", " ") * 2, encoding="utf-8")
    (folder / "gaps.txt").write_text(CODE_GAP, encoding="utf-8")
    for number in range(4):
        write_lines(folder / f"stream/part-{number}.jsonl", ({"text": line} for line in PROSE[number::4]))
    for name, text in PYTHON.items():
        path = folder / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    write_corpus(folder / "corpus")
    write_lines(folder / "problems.jsonl", PROBLEMS)
    write_lines(folder / "held.jsonl", [{"code": "def longest_word(text):\n    pass\n"}])
    rows = [(PROBLEMS[number]["task_id"], text) for number, texts in COMPLETIONS.items() for text in texts]
    write_lines(folder / "completions.jsonl", ({"task_id": name, "completion": text} for name, text in rows))
    with (folder / "tales.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        sentences = [f"InputSentence{number}" for number in range(1, 5)]
        endings = ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
        writer.writerow(["InputStoryid", *sentences, *endings, "AnswerRightEnding"])
        for number in range(3):
            lines = [line.strip() for line in PROSE[6 * number : 6 * number + 6]]
            writer.writerow([f"tale-{number}", *lines, 1 + number % 2])
    write_xlnet(folder / "xlnet")


# --- models


def xlnet_tokenizer(text: str) -> XLNetTokenizer:
    """A tokenizer of XLNet's class whose pieces are the text's letters, frequent parts of words, and words."""
    words = ["\u2581" + word for word in text.split()]
    pieces = Counter(words)
    for word in words:
        pieces.update(word[start : start + size] for size in (2, 3) for start in range(len(word) - size + 1))
    kept = [piece for piece, count in sorted(pieces.items(), key=lambda pair: (-pair[1], pair[0])) if count > 3][:250]
    letters = sorted(
        {*"".join(words), *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()_=+-*"}
    )
    kept = list(dict.fromkeys([*letters, *kept]))
    total = sum(pieces.values())
    special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]  # XLNet's ids 0..8
    # Letters cost as much as pieces that are there once.
    scores = [(piece, math.log((pieces[piece] if len(piece) > 1 else 1) / total)) for piece in kept]
    return XLNetTokenizer(vocab=[(token, 0.0) for token in special] + scores)


def drawn(make_model: Callable[[], torch.nn.Module], seed: int, scale: float) -> torch.nn.Module:
    """A model with random weights, so large that what it says depends much on what it sees."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = make_model()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, scale)
    return model


def write_xlnet(folder: Path) -> None:
    """A small XLNet with random weights, with a tokenizer."""
    tokenizer = xlnet_tokenizer("".join(PROSE[:50]) + TALE * 3)
    shape = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "vocab_size": len(tokenizer)}
    drawn(lambda: XLNetLMHeadModel(XLNetConfig(**shape)), 1, 0.4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_gpt2(folder: Path, tokenizer) -> None:
    """A small left-to-right GPT-2 with random weights, with a tokenizer that another model has, too."""
    shape = {"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(tokenizer)}
    shape |= {"bos_token_id": 0, "eos_token_id": 0}
    drawn(lambda: GPT2LMHeadModel(GPT2Config(**shape)), 2, 0.4).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# --- what is kept of a result


def shortened(text: str) -> str:
    """The text, or its beginning and the first digits of its SHA-256."""
    if len(text) <= LONG:
        return text
    return f"{text[:80]}... {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def kept(value):
    """A JSON value without what varies, with floats of 7 digits, and with long texts shortened."""
    if isinstance(value, dict):
        return {str(key): VARIES if key in VARYING else kept(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [kept(part) for part in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else str(value)
    return shortened(as_name(value)) if isinstance(value, str) else value


def as_name(text: str) -> str:
    """The name of a file whose whole path is given, as that depends on where the package is; all other text as it
    is."""
    return Path(text).name if re.fullmatch(r"/[\w ./-]+", text) else text


def without_numbers(text: str) -> str:
    """A text for people, without decimals (which are in other files), and without columns of times in its tables."""
    lines, hidden = [], set()
    for line in text.splitlines():
        cells = line.split(" | ")
        if line.startswith("| ") and not (lines and lines[-1].startswith("| ")):
            hidden = {i for i, cell in enumerate(cells) if "seconds" in cell or "times as fast" in cell}
        elif line.startswith("| ") and "---" not in line:
            cells = [VARIES if i in hidden else cell for i, cell in enumerate(cells)]
        line = " | ".join(cells).removesuffix(" |") if line.startswith("| ") else line
        lines.append(re.sub(r"[-+]?\d+\.(\d+)", lambda match: "#." + "#" * len(match[1]), line))
    return "\n".join(lines)


def columns(lines: list[dict]) -> dict[str, list]:
    """JSON lines by key, which takes less room; a line without the key has "(none)" there."""
    lines = [kept(line) for line in lines]
    found = {
        key: [line.get(key, "(none)") for line in lines] for key in dict.fromkeys(k for line in lines for k in line)
    }
    return {key: VARIES if set(map(str, values)) == {VARIES} else values for key, values in found.items()}


def read_lines(path: Path) -> list[dict]:
    """The rows of a file of JSON lines; verdicts in an order that does not depend on which program ended first."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["program_sha256"]) if "verdicts" in path.name else rows


def results(folder: Path) -> dict:
    """The names of all files of a folder of results, and the contents of those that can be compared."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {"files": [str(path.relative_to(folder)) for path in paths]}
    for path in paths:
        name = str(path.relative_to(folder))
        if path.name in ("tokenizer_config.json", "generation_config.json"):
            continue
        if name.startswith("checkpoint-"):
            if path.name == "checkpoint.json":
                about = json.loads(path.read_text())
                found[name] = kept({key: sorted(value) if key == "files" else value for key, value in about.items()})
        elif path.suffix == ".jsonl":
            found[name] = columns(read_lines(path))
        elif path.suffix == ".html" or path.name == "tokenizer.json":
            found[name] = shortened(path.read_text(encoding="utf-8"))
        elif path.suffix == ".json":
            found[name] = kept(json.loads(path.read_text(encoding="utf-8")))
            if path.name == "metrics.json" and found[name].get("settings") == found["config.json"].get("settings"):
                found[name]["settings"] = "(as in config.json)"
        elif path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
            # On code it begins with what the sandbox keeps from programs on this machine.
            runs_code = text.startswith("generated code runs")
            found[name] = without_numbers(text.partition("\n")[2] if runs_code else text).splitlines()
    return found


# --- samplers

SAMPLERS = {
    "sequential": {"sampler": "sequential"},
    "sequential cold": {"sampler": "sequential", "temperature": 0.7},
    **{
        f"assd {draft} {coupling}": {"sampler": "assd", "draft": draft, "coupling": coupling}
        for draft in ("self", "ngram")
        for coupling in ("residual", "block", "gumbel")
    },
    **{
        f"fused {draft} {coupling}": {"sampler": "fused", "draft": draft, "coupling": coupling}
        for draft in ("self", "blind")
        for coupling in ("residual", "block", "gumbel")
    },
    "assd cold": {"sampler": "assd", "temperature": 0.7, "k": 8},
    "assd k1": {"sampler": "assd", "k": 1},
    "assd tolerance": {"sampler": "assd", "tolerance": 0.05},
    "fused cold": {"sampler": "fused", "temperature": 0.7, "k": 3},
    "fused tolerance": {"sampler": "fused", "tolerance": 0.05},
    "parallel 4": {"sampler": "parallel", "steps": 4},
    "parallel 1 cold": {"sampler": "parallel", "steps": 1, "temperature": 0.7},
}
ADAPTIVE = {"sampler": "fused", "coupling": "gumbel", "adaptive": True, "k": 4}
TRACED = ("sequential", "assd self residual", "assd ngram gumbel", "fused self block", "parallel 4")
SEEDS = [3, 14, 159]


def batch_of(codec, texts: list[str]) -> list[torch.Tensor]:
    """Tokens, given and target of texts with gaps, padded at the right: [B, N] each."""
    rows = [[part.view(-1) for part in asarm.parse_gaps(text, codec, default_gap_tokens=5)] for text in texts]
    return [torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True) for parts in zip(*rows, strict=True)]


def sampled(model, batch: list[torch.Tensor], settings: dict, trace: bool = False) -> dict:
    """What one sampler makes of a batch, at its targets; all other positions must stay as they were."""
    tokens, given, target = batch
    result = asarm.sample(model, tokens, given, target, asarm.SamplerConfig(**settings), SEEDS, trace=trace)
    found = {
        "tokens": [row[wanted].tolist() for row, wanted in zip(result.tokens, target, strict=True)],
        "others_kept": bool((result.tokens == tokens)[~target].all()),
    }
    if settings.get("adaptive"):  # what it costs depends on the clock
        return found
    counts = {name: getattr(result, name).tolist() for name in ("nfe", "targets", "proposed", "accepted", "windows")}
    steps = {"trace": [[list(asdict(step).values()) for step in row] for row in result.trace]} if trace else {}
    return found | counts | steps


def scores(model, batch: list[torch.Tensor]) -> dict:
    """Exact log-densities of the texts that the sequential sampler makes of a batch."""
    _, given, target = batch
    texts = asarm.sample(model, *batch, asarm.SamplerConfig(sampler="sequential"), SEEDS).tokens
    found = {}
    for temperature in (1.0, 0.7):
        values = asarm.log_prob(model, texts, given, target, temperature)
        found[f"temperature {temperature}"] = [row[wanted].tolist() for row, wanted in zip(values, target, strict=True)]
        found[f"sums {temperature}"] = values.sum(1).tolist()
    one = slice(0, 1)  # a text without padding: what is not given is the target
    length = int((given | target)[0].sum())
    found["all the rest"] = asarm.log_prob(model, texts[one, :length], given[one, :length]).sum(1).tolist()
    every = asarm.log_prob(model, texts, torch.zeros_like(given), given | target)
    return found | {"from nothing": every.sum(1).tolist()}


def codec_record(codec) -> dict:
    """Text to tokens and back, with and without gaps."""
    texts = [TALE[:60], "def f(a):\n\tif a:\n\t    return  a   + 1\n", " caf\u00e9 \u201cquoted\u201d  ", "a\n\nb"]
    encoded = [codec.encode(text) for text in texts]
    gaps = [batch_of(codec, [text]) for text in (*TEXTS_WITH_GAPS, CODE_GAP)]
    return {
        "tokens": encoded,
        "texts": [codec.decode(ids) for ids in encoded],
        "gaps": [[tokens[0].tolist(), target[0].nonzero()[:, 0].tolist()] for tokens, _, target in gaps],
        "special": [len(codec), codec.mask_token_id, codec.eos_token_id],
    }


def sampling() -> dict:
    """All samplers on both backbones, log-densities and codecs."""
    found = {}
    for name in ("tiny-text", "xlnet"):
        model, codec = asarm.load(name)
        batch = batch_of(codec, TEXTS_WITH_GAPS)
        found[name] = {case: sampled(model, batch, settings, case in TRACED) for case, settings in SAMPLERS.items()} | {
            "fused adaptive gumbel": sampled(model, batch, ADAPTIVE),
            "log_prob": scores(model, batch),
            "codec": codec_record(codec),
        }
    found["tiny-code"] = {"codec": codec_record(asarm.load("tiny-code")[1])}
    found["xlnet with white space as tokens"] = {"codec": codec_record(asarm.load("xlnet", white_space="tokens")[1])}
    return found


def sampling_of_trained(name: str) -> dict:
    """The same in short, for a model that a command has written."""
    model, codec = asarm.load(name)
    batch = batch_of(codec, [text.replace("upon", "by") for text in TEXTS_WITH_GAPS])
    cases = ("sequential", "assd self residual", "fused self residual", "fused self gumbel", "fused blind residual")
    return {case: sampled(model, batch, SAMPLERS[case]) for case in cases} | {"log_prob": scores(model, batch)}


# --- commands

EVALUATIONS = {
    "decode-tiny": """decode tiny --num_texts 3 --length 48 --k 4 --k_sweep 2 --k_sweep_texts 2 --batch_size 2 --steps 4
        --samplers sequential fused fused-blind assd-self assd-ngram parallel""",
    "decode-xlnet": """decode tiny --model xlnet --text tale.txt --num_texts 4 --length 40 --mask_rate 0.8 --k 4
        --k_sweep 2 --k_sweep_texts 2 --batch_size 3 --coupling block --judge gpt2
        --samplers sequential fused assd-self assd-ngram""",
    "decode-gumbel": """decode tiny --model xlnet --text tale.txt --num_texts 2 --length 40 --temperature 0.8 --seed 5
        --coupling gumbel --k_sweep_texts 0 --samplers sequential fused-blind assd-self --judge gpt2""",
    "stories-tiny": """stories tiny --max_items 2 --trials 1 --proposals 3 --parallel_steps 1 4 --gap_length oracle
        search median --samplers sequential fused assd-ngram parallel prefix-only bag""",
    "stories-xlnet": """stories tiny --models xlnet --stories tales.csv --max_items 2 --trials 2 --proposals 3 --causal
        gpt2 --gap_length oracle search fixed:5 --length_sampler assd-self --samplers sequential assd-self bag
        --tasks 3/5 --tolerance 0.05 --batch_size 3""",
    "language-tiny": "language tiny --max_items 6 --batch_size 2 --samplers sequential fused assd-ngram greedy",
    "language-xlnet": "language tiny --model xlnet --max_items 2 --samplers assd-self parallel greedy --steps 3",
    "code-tiny": """code tiny --max_items 2 --proposals 3 --allow_code_execution --workers 1 --timeout 20
        --parallel_steps 4 --samplers sequential fused assd-ngram parallel prefix-only frequent-line canonical""",
    "code-xlnet": """code tiny --model xlnet --white_space tokens --problems problems.jsonl --max_items 2 --causal gpt2
        --samples_per_task 2 --gap_length oracle fixed:4 --samplers fused assd-self prefix-only frequent-line""",
}

TINY = """--cache_dir cache --block_size 32 --per_device_train_batch_size 4 --gradient_accumulation_steps 2
    --learning_rate 3e-3 --warmup_steps 2 --held_out 0.1 --eval_blocks 6 --eval_decodings 2 --logging_steps 1
    --eval_steps 2 --save_steps 2"""
SHAPE = "--n_positions 64 --vocab_size 400 --n_embd 32 --n_layer 2 --n_head 2"
TRAININGS = {
    "train": f"""train --train_files prose.txt {TINY} {SHAPE} --max_steps 6 --learning_rate 2e-2 --eval_steps 3
        --draft_weight 0.5 --mask_spans 0.25 --mask_lines 0.25 --mask_start 0.2 --mask_low 0.4 --mask_high 0.9
        --mask_warmup_steps 3""",
    "train-muon": f"""train --train_files prose.txt {TINY} {SHAPE} --max_steps 4 --optimizer muon --scale_learning_rate
        --final_learning_rate 1e-3 --max_grad_norm 0.5 --seed 3 --logging_steps 2""",
    "train-on": f"train --train_files corpus {TINY} --max_steps 2 --init_from train/model --eval_decodings 0",
    "train-xlnet": f"train --train_files tale.txt {TINY} --max_steps 3 --init_from xlnet --draft_weight 0.3",
    "train-xlnet-lines": f"""train --train_files prose.txt {TINY} --max_steps 2 --init_from xlnet --white_space tokens
        --mask_lines 0.5 --gradient_checkpointing --eval_decodings 0""",
    "train-gpt2": f"train --train_files prose.txt {TINY} --max_steps 2 --init_from gpt2",
    "train-stream": f"""train --dataset stream {TINY} {SHAPE} --max_steps 4 --streams 2 --num_workers 0
        --shuffle_buffer 20""",
}
RESUMED = {"train": 6, "train-stream": 4}  # run on from the checkpoint before the last
HEADS = {
    "head": """draft_head --model train-gpt2/model --train_files prose.txt --window 4 --block_size 32 --max_steps 8""",
    "head-xlnet": """draft_head --model xlnet --train_files tale.txt --window 3 --block_size 24 --max_steps 8
        --span_share 1""",
}
HEAD = "--hidden 16 --learning_rate 0.1 --held_out 0.2 --cache_dir cache --logging_steps 4 --device cpu"

TEXT = ["Once upon a time ___ lived in a ___5.", "--model", "tiny-text"]
INFILLINGS = {
    "text": TEXT,
    "samples": [*TEXT, "--samples", "2", "--seed", "3", "--sampler", "assd", "--draft", "ngram", "--gap_tokens", "4"],
    "trace": [*TEXT, "--trace", "--coupling", "block"],
    "json": [*TEXT, "--json", "--trace", "--samples", "2", "--k", "3", "--temperature", "0.8"],
    "file": ["--file", "gaps.txt", "--model", "tiny-code"],
    "stdin": ["-", "--model", "tiny-code", "--json", "--sampler", "sequential"],
    "xlnet": ["--file", "gaps.txt", "--model", "xlnet", "--white_space", "tokens", "--json", "--sampler", "parallel"],
}
ERRORS = {
    "no command": "",
    "unknown command": "magic",
    "no gap": "infill text --model tiny-text",
    "no model": "infill ___ --model tiny-none",
    "long gap": "infill ___600 --model tiny-text",
    "bad option": "infill ___ --tolerance 0.1 --coupling block",
    "unknown preset": "decode papper",
    "unknown sampler": "decode tiny --samplers magic --output_dir errors",
    "no trials": "stories tiny --trials 0 --output_dir errors",
    "unknown task": "language tiny --tasks magic --output_dir errors",
    "unknown gap_length": "code tiny --gap_length some --output_dir errors",
    "judging not allowed": "code judge completions.jsonl --problems problems.jsonl",
    "no data": "train --output_dir errors",
    "no file": "train --train_files none.txt --output_dir errors",
    "no space": "train --train_files prose.txt --block_size 100 --n_positions 64 --output_dir errors",
    "no newlines": "train --train_files prose.txt --init_from xlnet --mask_lines 1 --cache_dir c --output_dir errors",
    "no head's model": "draft_head --train_files prose.txt --output_dir errors",
    "no evaluation set": "sources out.jsonl --exclude none.jsonl",
}
PARSERS = [
    "infill", "draft_head", "sources", "code judge", "train",
    *(f"train {name}" for name in ("tiny", "paper-nlp", "paper-nlp-continued", "paper-nlp-infill")),
    *(f"train {name}" for name in ("paper-code", "paper-code-single-line")),
    *(f"{command} {preset}" for command in ("decode", "stories", "language", "code") for preset in ("tiny", "paper")),
]  # fmt: skip


def run(arguments: list[str], given: str = "") -> tuple[int, str, str]:
    """Exit code, output and the last line of the messages of one command. given: its standard input."""
    output, messages = io.StringIO(), io.StringIO()
    stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
    with (
        mock.patch.object(sys, "argv", ["asarm", *arguments]),
        mock.patch.object(sys, "stdin", stdin),
        redirect_stdout(output),
        redirect_stderr(messages),
    ):
        try:
            code = command_line()
        except SystemExit as end:  # argparse's
            code = end.code or 0
    return code, output.getvalue(), (messages.getvalue().strip().splitlines() or [""])[-1]


def ran(arguments: str) -> str:
    """The output of a command that must succeed."""
    code, output, message = run(arguments.split())
    if code:
        raise RuntimeError(f"asarm {arguments} ended with {code}: {message}")
    return output


def evaluations() -> dict:
    """Every evaluation's files and last line of output; and one that goes on after an interruption."""
    found = {}
    for name, arguments in EVALUATIONS.items():
        output = ran(f"{arguments} --output_dir {name}")
        found[name] = results(Path(name)) | {"output": output.splitlines()[-1]}
    samples = Path("decode-xlnet/samples.jsonl")
    before = read_lines(samples)
    samples.write_text("".join(samples.read_text(encoding="utf-8").splitlines(keepends=True)[:5]), encoding="utf-8")
    ran(f"{EVALUATIONS['decode-xlnet']} --output_dir decode-xlnet")
    key = str  # lines may come in another order
    found["decode-xlnet"]["resumed"] = same(
        *(sorted((kept(line) for line in lines), key=key) for lines in (before, read_lines(samples)))
    )
    return found


def same(before, now) -> bool:
    """Whether two results are equal, floats up to the tolerance."""
    return not differences(before, now)


def completions() -> dict:
    """Completions of a file, with their tests run."""
    output = ran(
        "code judge completions.jsonl --problems problems.jsonl --output_dir judged --allow_code_execution "
        "--workers 1 --timeout 20"
    )
    # The first paragraph is what the sandbox keeps from programs on this machine.
    return results(Path("judged")) | {"output": output.partition("\n\n")[2].splitlines()}


def trainings() -> dict:
    """Every training's files and output; and some that go on from an earlier checkpoint."""
    found = {}
    for name, arguments in TRAININGS.items():
        if name == "train-gpt2":
            write_gpt2(Path("gpt2"), asarm.load("train/model")[1].tokenizer)
        output = ran(f"{arguments} --output_dir {name}")
        folder = Path(name)
        found[name] = results(folder) | {"output": [line.split()[0] for line in output.splitlines()]}
        if name in RESUMED:
            before = columns(read_lines(folder / "metrics.jsonl"))
            shutil.rmtree(folder / f"checkpoint-{RESUMED[name]:06d}")
            ran(f"{arguments} --output_dir {name}")
            found[name]["resumed"] = same(before, columns(read_lines(folder / "metrics.jsonl")))
    found["sampling"] = {
        name: sampling_of_trained(f"{name}/model") for name in ("train", "train-muon", "train-xlnet", "train-gpt2")
    }
    return found


def dry_run() -> dict:
    """What a dry run says: its numbers, and the first texts."""
    arguments = f"{TRAININGS['train']} --output_dir dry --dry_run"
    estimate, *texts = re.split(r"^--- .* ---\n", ran(arguments), flags=re.MULTILINE)
    numbers = [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", estimate)]
    written = sorted(str(path) for path in Path("dry").rglob("*")) if Path("dry").exists() else []
    return {"numbers": numbers, "texts": texts, "files": written}


def heads() -> dict:
    """Draft heads' files, and what is drafted with them."""
    found = {}
    for name, arguments in HEADS.items():
        output = ran(f"{arguments} {HEAD} --output_dir {name}")
        found[name] = results(Path(name)) | {
            "output": without_numbers(output).splitlines(),
            "sampling": sampling_of_trained(name),
        }
    return found


def infillings() -> dict:
    """What `infill` prints; of JSON the contents, of the line on cost all but the seconds."""
    found = {}
    for name, arguments in INFILLINGS.items():
        code, output, message = run(["infill", *arguments, "--device", "cpu"], CODE_GAP)
        shown = json.loads(output) if "--json" in arguments else output.splitlines()
        found[name] = {"exit": code, "output": shown, "message": re.sub(r"[\d.]+ s$", VARIES, message)}
    return found


def sources() -> dict:
    """Corpora of Python files."""
    found = {}
    for name, options in {
        "files": "--exclude none",
        "functions": "--exclude none --functions",
        "without-held": "--exclude held.jsonl problems.jsonl --functions",
    }.items():
        output = ran(f"sources {name}.jsonl --folders sources {options}")
        found[name] = {"rows": columns(read_lines(Path(f"{name}.jsonl"))), "output": output}
    return found


def errors() -> dict:
    """Exit code and message of commands that fail; and that nothing was written."""
    found = {}
    for name, arguments in ERRORS.items():
        code, output, message = run(arguments.split())
        recorded = message if message.startswith("asarm") else ""  # else it is the end of the list of commands
        found[name] = {"exit": code, "output": output, "message": recorded}
    return found | {"written": sorted(str(path) for path in Path("errors").rglob("*"))}


def options() -> dict:
    """Every command's options and their defaults under each preset, as its parser knows them."""
    found = {}
    for command in PARSERS:
        parsers = []

        def note(parser, *arguments, parsers=parsers, **named):
            parsers.append(parser)
            raise SystemExit

        with mock.patch.object(argparse.ArgumentParser, "parse_known_args", note):
            run(command.split())
        (parser,) = parsers
        found[command] = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    return found


# --- all of it


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Run in a folder, so that no path of this machine gets into the results."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
            yield
    finally:
        os.chdir(before)


def record(folder: Path) -> dict:
    """All runs, in a scratch folder: what must stay the same, as golden.json holds it."""
    parts = {
        "sampling": sampling,
        "options": options,
        "train": trainings,
        "dry_run": dry_run,
        "draft_head": heads,
        "infill": infillings,
        "evaluations": evaluations,
        "judge": completions,
        "sources": sources,
        "errors": errors,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small to share
    try:
        with working_in(folder), redirect_stderr(io.StringIO()):  # progress bars
            write_inputs(Path())
            return json.loads(json.dumps({name: kept(part()) for name, part in parts.items()}))
    finally:
        torch.set_num_threads(threads)


def differences(expected, found, path: str = "") -> list[str]:
    """Where two records differ, each with its path. Floats are equal up to the tolerances, all else exactly."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{path}/{key}: missing" for key in expected if key not in found]
        lines += [f"{path}/{key}: new" for key in found if key not in expected]
        common = [key for key in expected if key in found]
        return lines + [line for key in common for line in differences(expected[key], found[key], f"{path}/{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{path}/{i}")]
    if type(expected) is float and type(found) is float:
        is_same = math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
    else:
        is_same = type(expected) is type(found) and expected == found
    return [] if is_same else [f"{path}: {_shown(expected)}, now {_shown(found)}"]


def _shown(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 200 else text[:200] + "..."


def as_text(value, depth: int = 4) -> str:
    """JSON, with each part of a dictionary on a line of its own down to some depth."""
    if not (isinstance(value, dict) and value and depth):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    parts = (f"{json.dumps(key, ensure_ascii=False)}: {as_text(part, depth - 1)}" for key, part in value.items())
    return "{\n" + ",\n".join(parts) + "\n}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with golden.json instead of writing it")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        found = record(Path(folder))
    if not check:
        GOLDEN.write_text(as_text(found) + "\n", encoding="utf-8")
        return 0
    lines = differences(json.loads(GOLDEN.read_text(encoding="utf-8")), found)
    print("\n".join(lines) or "no differences")
    return bool(lines)


if __name__ == "__main__":
    sys.exit(main())
