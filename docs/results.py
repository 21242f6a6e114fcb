"""Run the commands of docs/results.md and write it: every table under the command that prints it, from one commit.

    python docs/results.py [--wikitext FILE] [--story_cloze FILE] [--only NAME ...]

Ten minutes on two idle cores; each section is written when it is done. Evaluation sets that are not part of the
repository are given by options; without them their sections keep what they had. Run it from a clean checkout: the page
says which commit printed the tables.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGE = REPO / "docs" / "results.md"
OUTPUT = "OUTPUT"  # replaced by a temporary folder
DECODE, STORIES, CODE = "_run_speculative_decoding.sh", "_run_nlp_infill_eval.sh", "_run_code_infill_eval.sh"


@dataclass
class Section:
    """One command. shown: "stdout", or the name of a result file whose contents are shown instead."""

    name: str
    title: str
    text: str
    command: str
    shown: str = "stdout"


SECTIONS = [
    Section(
        "decode",
        "Decoding with the bundled model",
        "24 texts of 128 tokens, 95 % masked. Perplexity is the model's own, from its exact joint likelihood.",
        f"bash {DECODE} tiny --output_dir OUTPUT",
        "table.md",
    ),
    Section(
        "wikitext",
        "Decoding WikiText",
        "Texts of 512 tokens of WikiText-2's test part, enough of them to say whether perplexity and entropy agree.",
        f"bash {DECODE} tiny --text WIKITEXT --length 512 --num_texts 64 --batch_size 16 --k_sweep_texts 0 "
        "--samplers sequential fused assd-self --output_dir OUTPUT",
        "table.md",
    ),
    Section(
        "parts",
        "What each part of `fused` brings",
        "Every text alone (batch 1), variants taking turns on each text; `docs/decoding.md` explains the rows.",
        "python benchmarks/fused.py --text WIKITEXT --stories STORY_CLOZE --texts 3 --length 256 --gaps 16 "
        "--text_models tiny-text --code_models --parts table --output OUTPUT/fused.json",
    ),
    Section(
        "parts-small",
        "What each part of `fused` brings with SmolLM2",
        "The same with the bundled adapters of a real model, on shorter and fewer texts.",
        "python benchmarks/fused.py --text WIKITEXT --stories STORY_CLOZE --texts 3 --length 64 --gaps 8 "
        "--text_models smollm2-text --code_models smollm2-code --parts table",
    ),
    Section(
        "drafts",
        "How often drafts are accepted, and other orders",
        "The chance that a draft is accepted if all before it were, by its depth: the unseen tokens right before it.",
        "python benchmarks/drafts.py --text WIKITEXT --stories STORY_CLOZE --gaps 24",
    ),
    Section(
        "cache",
        "Cached decoding beside recomputation",
        "The cached samplers beside the same model when it recomputes all tokens in each evaluation, at batch 1.",
        "python benchmarks/decode.py --models tiny-text --tables reference",
    ),
    Section(
        "stories",
        "Stories of our own",
        "Ten stories are there to try the command, not to measure a model.",
        f"bash {STORIES} tiny --output_dir OUTPUT",
    ),
    Section(
        "story-cloze",
        "1,000 Story Cloze stories",
        "The first 1,000 validation stories, with the length of the gap given.",
        f"bash {STORIES} tiny --stories STORY_CLOZE --trials 1 --gap_length oracle "
        "--samplers sequential fused assd-self bag --output_dir OUTPUT",
        "table.md",
    ),
    Section(
        "language",
        "Last words and endings of our own",
        "",
        f"bash {STORIES} language tiny --output_dir OUTPUT",
    ),
    Section(
        "code",
        "Code of our own",
        "Twenty small problems; the 1,033 of HumanEval-Infilling are in the model card of `tiny-code`.",
        f"bash {CODE} tiny --allow_code_execution --output_dir OUTPUT",
    ),
]


def run(section: Section, files: dict[str, Path | None]) -> str:
    """What the command of a section printed or left."""
    with tempfile.TemporaryDirectory() as folder:
        given = {name: [path] for name, path in files.items() if path is not None}
        words = command_words(section.command, {**given, OUTPUT: [Path(folder)]})
        result = subprocess.run(words, cwd=REPO, stdout=subprocess.PIPE, text=True, check=True)
        if section.shown != "stdout":
            return (Path(folder) / section.shown).read_text(encoding="utf-8")
        return re.sub(r"\n[^\n]*" + re.escape(folder) + r"[^\n]*", "", result.stdout)  # where the results are


def command_words(command: str, paths: dict[str, list[Path]]) -> list[str]:
    """The words of a command, with this Python for `python`, and paths for names in capitals: a name may be a whole
    word, which stands for all of its paths, or be followed by a slash and a file in it."""
    words: list[str] = []
    for word in shlex.split(command):
        name, slash, rest = word.partition("/")
        words += [f"{path}{slash}{rest}" for path in paths[name]] if name in paths else [word]
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def sections_of(page: str) -> dict[str, str]:
    """{title: the whole section} of a page that this script wrote."""
    return {part.partition("\n")[0]: f"## {part}" for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, help="WikiText-2's test part, a text file")
    parser.add_argument("--story_cloze", type=Path, help="the Story Cloze validation stories, a CSV file")
    parser.add_argument("--only", nargs="+", default=[], choices=[section.name for section in SECTIONS])
    arguments = parser.parse_args()
    files = {"WIKITEXT": arguments.wikitext, "STORY_CLOZE": arguments.story_cloze}
    known = sections_of(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    commit = subprocess.run(
        ["git", "-C", str(REPO), "describe", "--always", "--dirty"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    header = (
        "# Results\n\nWritten by `python docs/results.py`: each table under the command that prints it. Two cores of a "
        "shared virtual\nmachine, float32, no GPU; times vary from run to run, ratios of one table less so. "
        "`WIKITEXT` is WikiText-2's test part,\n`STORY_CLOZE` the validation stories of the Story Cloze Test; neither "
        "is part of the repository.\n\n"
    )
    for section in SECTIONS:
        missing = [name for name, path in files.items() if name in section.command and path is None]
        if missing or (arguments.only and section.name not in arguments.only):
            continue
        print(f"{section.title}: {section.command}", file=sys.stderr, flush=True)
        shown = run(section, files).strip()
        about = f"{section.text}\n\n" if section.text else ""
        command = section.command.replace(" --output_dir OUTPUT", "").replace(" --output OUTPUT/fused.json", "")
        known[section.title] = (
            f"## {section.title}\n\n{about}```bash\n{command}\n```\n\n{shown}\n\n(commit {commit})\n\n"
        )
        ordered = [known[section.title] for section in SECTIONS if section.title in known]
        PAGE.write_text(header + "".join(ordered).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
