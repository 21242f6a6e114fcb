"""Run the experiments of docs/claims.md: each leaves its numbers in docs/claims/NAME.json.

    python docs/claims.py --books BOOK.txt ... --wikitext FILE --stories FILE --lambada FILE --humaneval FOLDER
        [--work FOLDER] [--only NAME ...]

`--work` (results/claims) keeps what is trained and decoded, so that an interrupted experiment goes on. About five
core-hours for all, of a CPU that multiplies bfloat16; `--list` prints what each takes and runs. Evaluation sets that
are not part of the repository are given by options; an experiment that lacks one is left out.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from results import command_words

REPO = Path(__file__).resolve().parents[1]
FOLDER = REPO / "docs" / "claims"


@dataclass
class Experiment:
    """Some commands, and the file that they leave with the numbers, if any. minutes: on one core, about.

    Capitals in commands are paths: OUT is the experiment's own folder, ADAPTERS that of the adapters.
    """

    name: str
    minutes: int
    commands: tuple[str, ...]
    result: str = "OUT/metrics.json"


DECODE = "python -m asarm decode"
RESIDUAL = "--coupling residual --alternatives 0"  # the presets' values may be others
TRAINED = ("any-subset", "masked-diffusion", "fim", "any-order", "any-rate", "paper-rate", "warm-up")
EXACT = (
    f"--text WIKITEXT --length 64 --batch_size 32 --k_sweep_texts 0 {RESIDUAL} "
    "--samplers sequential assd-self fused --output_dir OUT"
)
GRID = (
    "--models ADAPTERS/any-subset/model --text WIKITEXT --length 64 --num_texts 24 --k_sweep_texts 24 --k 5 "
    f"--batch_size 8 {RESIDUAL} --output_dir OUT"
)
STORY_SAMPLERS = (
    "--stories STORIES --tasks 1/5 --max_items 300 --trials 1 --gap_length oracle --special_tokens False "
    "--batch_size 32 --dtype auto --device cpu"
)

PASSAGES = "python benchmarks/claims/passages.py ADAPTERS/passages.jsonl BOOKS"
TRAIN = "bash benchmarks/claims/train_adapters.sh ADAPTERS/passages.jsonl ADAPTERS 80"
FUNCTIONS = (
    "python -m asarm sources ADAPTERS/functions.jsonl --functions "
    "--exclude HUMANEVAL/HumanEval-SingleLineInfilling.jsonl.gz"
)
TRAIN_CODE = "bash benchmarks/claims/train_adapters.sh ADAPTERS/functions.jsonl ADAPTERS 80"

EXPERIMENTS = [
    Experiment("exact-tiny-text", 8, (f"{DECODE} tiny {EXACT} --num_texts 1000 --k 5",)),
    Experiment("exact-smollm2-text", 70, (f"{DECODE} small {EXACT} --num_texts 2144",)),
    Experiment(
        "k-any-subset",
        10,
        (f"{DECODE} ablate-k small {GRID} --k_sweep 2 3 8 --samplers sequential assd-self assd-ngram fused",),
    ),
    Experiment(
        "tolerance-any-subset",
        2,
        (f"{DECODE} ablate-tolerance small {GRID} --tolerance_sweep 0 0.1 0.3 --samplers sequential assd-self",),
    ),
    *(
        Experiment(
            f"grid-{model}-{rate}",
            minutes * rate // 95 + 1,
            (
                f"{DECODE} ablate-k {preset} --text WIKITEXT --mask_rate 0.{rate} --length {lengths} --k_sweep {sweep} "
                f"--num_texts {texts} --k_sweep_texts {texts} --batch_size 8 {RESIDUAL} --output_dir OUT",
            ),
        )
        for model, preset, minutes, lengths, sweep, texts in (
            ("tiny-text", "tiny", 6, "64 128 256", "2 3 5 8 15", 24),
            ("smollm2-text", "small", 10, "32 64 128", "2 3 5 8", 12),
        )
        for rate in (15, 50, 95)
    ),
    *(Experiment(f"adapter-{name}", 12, (PASSAGES, f"{TRAIN} {name}"), "") for name in TRAINED),
    *(
        Experiment(f"adapter-code-{name}", 12, (FUNCTIONS, f"{TRAIN_CODE} code-{name}"), "")
        for name in ("any-subset", "fim")
    ),
    Experiment(
        "code",
        25,
        (
            "python -m asarm code paper --data_dir HUMANEVAL --models ADAPTERS/code-any-subset/model "
            "--causal ADAPTERS/code-fim --splits single-line random-span-light --max_items 150 "
            "--samplers sequential prefix-only --gap_length oracle --samples_per_task 1 --temperature 0.2 "
            "--special_tokens False --dtype auto --device cpu --allow_code_execution --output_dir OUT",
        ),
    ),
    Experiment(
        "lambada",
        8,
        (
            "python -m asarm language paper --tasks lambada --lambada LAMBADA --max_items 500 --samplers greedy "
            "--models smollm2 ADAPTERS/any-subset/model ADAPTERS/any-order/model ADAPTERS/masked-diffusion/model "
            "--dtype auto --device cpu --output_dir OUT",
        ),
    ),
    Experiment(
        "parallel",
        12,
        (
            "python benchmarks/claims/parallel.py --models ADAPTERS/any-subset/model ADAPTERS/masked-diffusion/model "
            "--names any-subset masked-diffusion --text WIKITEXT --num_texts 48 "
            "--steps 60 15 4 1 --output OUT/parallel.json",
        ),
        "OUT/parallel.json",
    ),
    Experiment(
        "training-rates",
        10,
        (
            "python benchmarks/claims/held_out.py ADAPTERS/any-subset/model ADAPTERS/any-order/model "
            "ADAPTERS/any-rate/model ADAPTERS/paper-rate/model ADAPTERS/warm-up/model "
            "--texts ADAPTERS/passages.jsonl --any_order --num_texts 48 --output OUT/held_out.json",
        ),
        "OUT/held_out.json",
    ),
    Experiment(
        "story-nll",
        20,
        (
            "python benchmarks/reference_nll.py smollm2 ADAPTERS/any-subset/model ADAPTERS/any-order/model "
            "--diffusion ADAPTERS/masked-diffusion/model --fim ADAPTERS/fim --stories STORIES "
            "--max_items 500 --output OUT/nll.json",
        ),
        "OUT/nll.json",
    ),
    *(
        Experiment(
            f"stories-{name}",
            minutes,
            (f"python -m asarm stories paper --models {model} {STORY_SAMPLERS} {options} --output_dir OUT",),
        )
        for name, minutes, model, options in (
            (
                "any-subset",
                3,
                "ADAPTERS/any-subset/model",
                "--samplers sequential prefix-only bag --causal ADAPTERS/fim",
            ),
            (
                "masked-diffusion",
                3,
                "ADAPTERS/masked-diffusion/model",
                "--samplers parallel --parallel_steps 2 4 999 --causal ''",
            ),
        )
    ),
    Experiment("density", 5, ("python benchmarks/claims/density.py --output OUT/density.json",), "OUT/density.json"),
]


def run(experiment: Experiment, paths: dict[str, list[Path]]) -> None:
    """Run the commands, and keep their numbers, and the picture beside them if there is one."""
    for command in experiment.commands:
        words = command_words(command, paths)
        print(shlex.join(words), file=sys.stderr, flush=True)
        if subprocess.run(words, cwd=REPO, env={**os.environ, "PYTHON": sys.executable}).returncode:
            sys.exit(f"{experiment.name} failed")
    if experiment.result:
        found = Path(*command_words(experiment.result, paths))
        FOLDER.mkdir(exist_ok=True)
        text = found.read_text(encoding="utf-8")
        for name, every in paths.items():
            for path in every:
                text = text.replace(str(path), name)  # it is of this machine
        text = text.replace(f"{REPO}/", "")
        (FOLDER / f"{experiment.name}.json").write_text(text, encoding="utf-8")
        if (picture := found.with_suffix(".png")).exists():
            shutil.copyfile(picture, FOLDER / f"{experiment.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", nargs="+", type=Path, default=[], help="plain text, a paragraph in each line")
    parser.add_argument("--wikitext", type=Path, help="WikiText-2's test part, a text file")
    parser.add_argument("--stories", type=Path, help="the Story Cloze validation stories, a CSV file")
    parser.add_argument("--lambada", type=Path, help="LAMBADA's test part, a passage in each line")
    parser.add_argument("--humaneval", type=Path, help="folder with HumanEval-Infilling's official files")
    parser.add_argument("--work", type=Path, default=REPO / "results" / "claims")
    parser.add_argument("--only", nargs="+", default=[], choices=[one.name for one in EXPERIMENTS])
    parser.add_argument("--list", action="store_true", help="print the experiments, and run none")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    given = {
        "BOOKS": arguments.books,
        "WIKITEXT": arguments.wikitext,
        "STORIES": arguments.stories,
        "LAMBADA": arguments.lambada,
        "HUMANEVAL": arguments.humaneval,
    }
    files = {
        name: [path.resolve() for path in (paths if isinstance(paths, list) else [paths])]
        for name, paths in given.items()
        if paths
    }
    for experiment in EXPERIMENTS:
        if arguments.only and experiment.name not in arguments.only:
            continue
        if arguments.list:
            print(f"{experiment.name} ({experiment.minutes} min)", *experiment.commands, sep="\n  ")
            continue
        paths = files | {"ADAPTERS": [work / "adapters"], "OUT": [work / experiment.name]}
        missing = [name for name in given if name not in paths and any(name in one for one in experiment.commands)]
        if missing:
            print(f"{experiment.name} is left out: no --{missing[0].lower()}", file=sys.stderr)
            continue
        for folder in (*paths["ADAPTERS"], *paths["OUT"]):
            folder.mkdir(parents=True, exist_ok=True)
        run(experiment, paths)


if __name__ == "__main__":
    main()
