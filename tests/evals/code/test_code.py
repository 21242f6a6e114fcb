"""The evaluation on code: problems, cutting, baselines, filling, judging, statistics, resuming, pages, bad input."""

import gzip
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

from asarm.__main__ import main
from asarm.cli.code import OFFICIAL_SETS, PRESETS, parse_arguments
from asarm.evals.code import metrics as code_stats
from asarm.evals.code import verdicts as code_judge
from asarm.evals.code.baselines import BASELINES, frequent_line
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.data import (
    FIELDS,
    SPLITS,
    Problem,
    official_file,
    problems_of_files,
    read_completions,
    read_problems,
)
from asarm.evals.code.examples import CodeGapLengthPolicy, cut, visible_lengths
from asarm.evals.code.metrics import compare_shares, facts, pass_at_k
from asarm.evals.code.run import evaluate
from asarm.evals.code.sandbox.runner import Verdict, check
from asarm.evals.infilling import systems as systems
from asarm.evals.infilling.causal import CausalModel
from asarm.evals.infilling.example import InfillExample, truncate_context
from asarm.evals.infilling.fim import FAMILIES, find_fim
from asarm.evals.infilling.infill import fill
from asarm.evals.infilling.systems import CausalSystem
from asarm.models.load import load
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after
from asarm.utils.errors import InputError
from asarm.utils.jsonl import read_json_lines, write_json_lines
from support.models import tiny_gpt2
from support.paths import REPO, SHARED
from support.results import lines_of, read_page, without_times
from support.wrappers import active, run
from support.xlnet_tokenizer import train_xlnet_tokenizer

HUMANEVAL = SHARED / "humaneval-infilling"
OFFICIAL = sorted(SHARED.glob("*.jsonl.gz"))
needs_official = pytest.mark.skipif(not OFFICIAL, reason=f"no official problems in {SHARED}")
OWN = [Path(path) for path in PRESETS["tiny"]["problems"]]
SAMPLES, BATCH = 2, 2


def made(number, prompt, solution, suffix, prefix="SingleLineInfilling", **changed):
    """A row of a problem file, whose function is called f."""
    row = {
        "task_id": f"{prefix}/made/{number}/L1", "entry_point": "f", "prompt": prompt, "suffix": suffix,
        "canonical_solution": solution, "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    }  # fmt: skip
    return row | changed


ROWS = [
    made(0, "def f(a):\n", "    b = a + 1\n", "    return b\n"),
    made(1, "def f(a):\n    b = 2\n", "    return b\n", ""),
    made(2, "def f(a):\n    <b> = 'café'\n".replace("<b>", "b"), "    c = 2 * a\n", "    return c\n"),
    made(3, "def f(a):\n    # " + "the <i>long</i> & winding road\n    # " * 4 + "ends\n", "    return a + 1\n", ""),
]
SPAN_ROWS = [
    made(0, "def f(a):\n    b = a", " + 1\n    ret", "urn b\n", "RandomSpanInfilling"),
    made(1, "def f(a):\n    return ", "2", " * a\n", "RandomSpanInfilling"),
]


def write(path, rows, compressed=False):
    """A file of rows, as JSON lines."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    return str(path)


def problems_of(rows):
    return [Problem(index, **{field: row[field] for field in FIELDS}) for index, row in enumerate(rows)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    return [write(folder / "some lines.jsonl.gz", ROWS, True), write(folder / "spans.jsonl", SPAN_ROWS)]


@pytest.fixture(scope="module")
def settings(tiny_folder, files):
    return {
        "problems": files, "models": [tiny_folder], "device": "cpu", "samples_per_task": SAMPLES, "batch_size": BATCH,
        "k": 3, "gap_length": ["oracle", "search", "fixed:7"], "proposals": 3,
    }  # fmt: skip


def fake_verdicts(programs, limits, workers):
    """A runner that runs nothing: a program passes if it is one with the right solution in it. Last ones first."""
    right = {problem.program(problem.canonical_solution) for problem in problems_of(ROWS) + problems_of(SPAN_ROWS)}
    for index in reversed(range(len(programs))):
        passed = programs[index] in right
        yield index, Verdict(passed, "passed" if passed else "failed: AssertionError <x>")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, settings):
    """The folder of a finished run, judged by `fake_verdicts`."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_judge, "check_all", fake_verdicts)
        evaluate(CodeConfig(output_dir=str(folder), allow_code_execution=True, **settings))
    return folder


@pytest.fixture(scope="module")
def code_codec():
    """XLNet's kind of tokenizer, with white space written as tokens."""
    text = "\n".join(row["prompt"] + row["suffix"] for path in OWN for row in map(json.loads, path.open()))
    return TextCodec(train_xlnet_tokenizer(text, 200), "tokens")


# --- problems


def test_problems_are_read_from_plain_and_compressed_files(tmp_path):
    plain, packed = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "a.jsonl.gz", ROWS, True)
    assert read_problems(plain) == read_problems(packed) == problems_of(ROWS)


def test_a_program_is_put_together_as_the_official_runner_does():
    problem = problems_of(ROWS)[0]
    expected = (
        problem.prompt + "    b = 3\n" + problem.suffix + "\n" + problem.test + "\n" + f"check({problem.entry_point})"
    )
    assert problem.program("    b = 3\n") == expected


def test_our_own_problems_are_ours_and_solved_by_their_solutions():
    problems = [problem for path in OWN for problem in read_problems(path)]
    assert 12 <= len(problems) <= 20
    for problem in problems:
        assert problem.task_id.split("/")[1] == "asarm"
        exec(problem.program(problem.canonical_solution), {})
    if OFFICIAL:
        official = {problem.entry_point for path in OFFICIAL for problem in read_problems(path)}
        assert not official & {problem.entry_point for problem in problems}


@needs_official
@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_official_files_are_found_by_the_names_of_their_splits(path):
    name = next(split.name for split in SPLITS.values() if path.name in split.files)
    assert official_file(name, SHARED) == path
    assert len(problems_of_files([path], [name])[name]) == {"single-line": 1033, "random-span-light": 164}[name]


def test_splits_choose_among_files(files, tmp_path):
    assert list(problems_of_files(files, [])) == ["single-line", "random-span"]
    assert problems_of_files(files, ["random-span"]) == {"random-span": problems_of(SPAN_ROWS)}
    mine = write(tmp_path / "mine.jsonl", [row | {"task_id": f"mine/{place}"} for place, row in enumerate(ROWS)])
    assert len(problems_of_files([mine], ["multi-line"])["multi-line"]) == 4


def install(folder, direct_url, with_data=False):
    """A package called human-eval-infilling in a folder of packages."""
    info = folder / "human_eval_infilling-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: human-eval-infilling\nVersion: 1.0\n")
    if direct_url is not None:
        (info / "direct_url.json").write_text(json.dumps(direct_url))
    (folder / "human_eval_infilling").mkdir()
    (folder / "human_eval_infilling" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if with_data:
        (folder / "data").mkdir()
        write(folder / "data" / "HumanEval-SingleLineInfilling.jsonl.gz", ROWS, True)


def test_the_package_of_a_stranger_is_refused_by_name(tmp_path, monkeypatch):
    install(tmp_path, None, with_data=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"human-eval-infilling that is installed does not come.*stranger"):
        official_file("single-line", tmp_path / "data")


@pytest.mark.parametrize(
    "direct_url",
    [
        {"url": "https://github.com/openai/human-eval-infilling.git", "vcs_info": {"vcs": "git"}},
        {"url": "file:///home/me/human-eval-infilling", "dir_info": {"editable": True}},
    ],
)
def test_the_package_of_the_repository_is_read(tmp_path, monkeypatch, direct_url):
    install(tmp_path, direct_url, with_data=True)
    monkeypatch.syspath_prepend(tmp_path)
    path = official_file("single-line", tmp_path / "none")
    assert path == tmp_path / "data" / "HumanEval-SingleLineInfilling.jsonl.gz"
    with pytest.raises(InputError, match="came without its data"):
        official_file("multi-line", tmp_path / "none")


def test_another_repository_is_refused(tmp_path, monkeypatch):
    install(tmp_path, {"url": "https://github.com/someone/human-eval-infilling", "vcs_info": {"vcs": "git"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="does not come from OpenAI's repository"):
        official_file("single-line", tmp_path)


# --- tokens and lengths


@pytest.mark.parametrize("kind", ["byte-level", "white space"])
def test_the_parts_joined_are_the_program(kind, tiny_folder, code_codec):
    codec = load(tiny_folder)[1] if kind == "byte-level" else code_codec
    problems = problems_of(ROWS) + problems_of(SPAN_ROWS) + [p for path in OWN for p in read_problems(path)]
    for problem in problems:
        gap = cut(problem, "single-line", codec)
        joined = gap.prefix_tokens + gap.reference_tokens + gap.suffix_tokens
        whole = problem.source(problem.canonical_solution)
        if kind == "byte-level":
            assert codec.decode(joined) == whole
            assert text_after(codec, gap.prefix_tokens, gap.reference_tokens) == problem.canonical_solution
        elif problem.prompt.endswith("\n"):
            assert codec.decode(joined) == codec.decode(codec.encode(whole))
            assert joined == codec.encode(whole)


@needs_official
def test_official_programs_round_trip_through_a_byte_level_tokenizer():
    codec = load("tiny-text")[1]
    for path in OFFICIAL:
        for problem in read_problems(path)[::7]:
            gap = cut(problem, "single-line", codec)
            joined = gap.prefix_tokens + gap.reference_tokens + gap.suffix_tokens
            assert codec.decode(joined) == problem.source(problem.canonical_solution)


def test_a_gap_in_a_line_is_decoded_where_it_stands(code_codec):
    """SentencePiece drops the first space of a text, but a gap does not begin a text."""
    prefix, gap = code_codec.encode("    return"), code_codec.encode(" b")
    assert code_codec.decode(gap) == "b"
    assert text_after(code_codec, prefix, gap) == " b"
    assert text_after(code_codec, [], gap) == "b"


def test_half_a_character_does_not_reach_over_the_gap(tiny_folder):
    codec = load(tiny_folder)[1]
    ids = codec.encode("\u03c0")
    assert len(ids) == 2
    assert text_after(codec, codec.encode("a = '"), ids[:1]) == "\ufffd"
    assert text_after(codec, codec.encode("a = '"), ids) == "\u03c0"


def test_visible_pieces_are_of_the_kind_of_the_gap(tiny_folder):
    codec = load(tiny_folder)[1]
    prompt = 'import os\n\ndef f(a):\n    """Add.\n\n    A long story.\n    """\n    # so\n    b = a\n\n    c = b\n'
    problem = problems_of([made(0, prompt, "    d = c\n", "    return d\n")])[0]
    sizes = [len(codec.encode(line)) for line in ("    b = a\n", "    c = b\n", "    return d\n")]
    assert visible_lengths(problem, "single-line", codec) == sizes
    # A stretch between two random places of n tokens, as a multiple of the tokens that are left.
    total, rng = sum(sizes), np.random.default_rng(0)
    share = np.abs(np.diff(rng.uniform(size=(100_000, 2)), axis=1))
    expected = np.quantile(total * share / (1 - share), (np.arange(16) + 0.5) / 16)
    for split in ("multi-line", "random-span", "random-span-light"):
        assert visible_lengths(problem, split, codec) == pytest.approx(expected.clip(1), rel=0.05, abs=0.6)
    nothing = problems_of([made(0, 'def f(a):\n    """Add."""\n', "    return a\n", "")])[0]
    assert visible_lengths(nothing, "random-span", codec) == []


def gapped(prefix=0, gold=1, suffix=0, visible=(), index=0):
    parts = {"prefix_tokens": [1] * prefix, "reference_tokens": [2] * gold, "suffix_tokens": [3] * suffix}
    return InfillExample(index=index, name="a", visible=list(visible), **parts)


def test_lengths_are_proposed_from_the_visible_code():
    rng = np.random.default_rng(0)
    gaps = [gapped(visible=rng.lognormal(2.5, 0.5, 6).clip(1).astype(int)) for _ in range(300)]
    lengths = CodeGapLengthPolicy(gaps, 5, None)
    found = lengths.tried("search", gaps[0])
    drawn = rng.lognormal(2.5, 0.5, 100_000)
    assert found == pytest.approx(np.quantile(drawn, [0.1, 0.3, 0.5, 0.7, 0.9]), rel=0.15)
    assert lengths.tried("search", gapped()) == pytest.approx(found, abs=2)  # nothing is visible
    far = [gapped(visible=[10] * 6), gapped(visible=[40] * 6)]
    assert CodeGapLengthPolicy(far, 3, None).tried("search", far[1]) == [40]
    assert lengths.tried("oracle", gapped(gold=17)) == [17]
    assert CodeGapLengthPolicy(gaps, 5, 16).tried("oracle", gapped(gold=17)) == [15]
    with pytest.raises(InputError, match="a gap of 16 tokens, but the model takes at most 16"):
        CodeGapLengthPolicy(gaps, 5, 16).tried("fixed:16", gaps[0])


@pytest.mark.parametrize(
    ("prefix", "suffix", "length", "kept"),
    [
        (50, 40, 10, (50, 40)),
        (60, 60, 10, (45, 45)),
        (80, 30, 11, (59, 30)),
        (20, 90, 10, (20, 70)),
        (9, 9, 99, (1, 0)),
    ],
)
def test_long_texts_are_cut_at_their_far_ends(prefix, suffix, length, kept):
    gap = InfillExample(index=0, name="a", visible=[], prefix_tokens=list(range(prefix)), reference_tokens=[1],
                 suffix_tokens=list(range(suffix)))  # fmt: skip
    found = truncate_context(gap, length, 100)
    assert found.prefix_tokens == list(range(prefix))[prefix - kept[0] :]
    assert found.suffix_tokens == list(range(suffix))[: kept[1]]
    assert truncate_context(gap, length, None) is gap


# --- baselines


@pytest.mark.parametrize(
    ("prompt", "suffix", "line"),
    [
        ("def f(a):\n    b = 1\n", "    b = 1\n    return b\n", "    b = 1\n"),
        ("def f(a):\n    for x in a:\n", "    return x\n", "        for x in a:\n"),  # the nearest one of equals
        ('def f(a):\n    """A.\n    A.\n    A.\n    """\n', "    return a\n", "    def f(a):\n"),
        ("def f(a):\n    # so\n    # so\n    b = a\n", "", "    b = a\n"),
        ("def f(a):\n    b = 1\n    c =", " 2\n    b = 1\n", "b = 1"),  # in a line, without the line's own pieces
        ("def f(a):\n", "\n    return a\n", "    def f(a):"),
        ("", "x = 1\n", "x = 1\n"),
        ("", "", ""),
    ],
)
def test_frequent_line(prompt, suffix, line):
    assert frequent_line(problems_of([made(0, prompt, "pass", suffix)])[0]) == line


# --- filling


def test_leading_white_space_of_a_completion_is_kept(tiny_folder):
    codec = load(tiny_folder)[1]
    model = tiny_gpt2(len(codec), n_positions=128)
    model.config.mask_token_id = codec.mask_token_id
    gaps = [cut(problem, "single-line", codec) for problem in problems_of(ROWS[:3])]
    for _ in range(3):
        filled = fill(model, codec, [(gap, 9) for gap in gaps], SamplerConfig(k=3), range(3))
        for gap, one in zip(gaps, filled, strict=True):
            whole = codec.decode(gap.prefix_tokens + one.tokens + gap.suffix_tokens)
            assert whole == gap.problem.source(one.text)


@pytest.fixture(scope="module")
def causal_folder(tmp_path_factory, tiny_folder):
    """A causal model with random weights whose tokenizer has StarCoder's marks."""
    folder = tmp_path_factory.mktemp("causal")
    codec = load(tiny_folder)[1]
    codec.tokenizer.add_tokens(list(FAMILIES[0]))
    torch.manual_seed(0)
    shape = {"n_positions": 96, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(codec), **shape, **special)).save_pretrained(folder)
    codec.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("marks", FAMILIES, ids=lambda marks: marks[0])
def test_marks_of_models_that_fill_in_the_middle_are_found(marks, tiny_folder):
    tokenizer = load(tiny_folder)[1].tokenizer
    assert find_fim(tokenizer) is None
    tokenizer.add_tokens(list(marks))
    ids = tokenizer.convert_tokens_to_ids(list(marks))
    assert find_fim(tokenizer).prompt([1, 2], [3]) == [ids[0], 1, 2, ids[1], 3, ids[2]]


def test_a_causal_model_with_marks_sees_prefix_and_suffix(causal_folder, tmp_path):
    config = CodeConfig(model="unused", output_dir=str(tmp_path), causal=causal_folder, temperature=1e-4)

    def cut_all(codec, longest):
        assert longest == 96 - 3
        gaps = [cut(problem, "single-line", codec) for problem in problems_of(ROWS)]
        return {"single-line": gaps}, {"single-line": CodeGapLengthPolicy(gaps, 1, longest)}

    (variant,) = (one for one in config.variants() if one.sampler == "causal")
    system = CausalSystem(causal_folder, config, cut_all, torch.device("cpu"), use_fim=True)
    filled = system.fill(system.gaps["single-line"], "single-line", variant, 0)
    assert [one.cut > 0 for one in filled] == [False, False, False, True]
    marks = system.model.fim
    for gap, one in zip(system.gaps["single-line"][:3], filled, strict=False):
        ids = marks.prompt(gap.prefix_tokens, gap.suffix_tokens)
        for token in one.tokens:
            with torch.no_grad():
                logits = system.model.model(torch.tensor([ids])).logits[0, -1]
            logits[[*system.model.codec.tokenizer.all_special_ids, *marks]] = -math.inf
            assert token == int(logits.argmax())
            ids.append(token)
        assert len(one.tokens) == len(gap.reference_tokens) == one.nfe
    alone = CausalSystem(causal_folder, config, cut_all_without(cut_all), torch.device("cpu"))
    assert alone.fill(alone.gaps["single-line"], "single-line", variant, 0)[0].tokens != filled[0].tokens


def cut_all_without(cut_all):
    """The same for a model that needs no room for marks."""
    return lambda codec, longest: cut_all(codec, longest - 3)


def test_a_causal_model_begins_as_its_tokenizer_does(causal_folder):
    model = CausalModel(causal_folder, torch.device("cpu"))
    assert model.begin == []
    (filled,) = model.fill([(gapped(prefix=0), 3)], 1.0, [0])  # nothing to go on from but the end of a text
    assert len(filled.tokens) == 3


# --- a whole run


def test_every_problem_is_completed_by_every_variant(finished, tiny_folder):
    lines = lines_of(finished)
    drawn = ["sequential", "assd-self", "assd-ngram", "parallel-1", "parallel-4", "prefix-only"]
    drawn += ["assd-self search", "assd-self fixed:7"]
    wanted = {
        (model, split, variant, sample, index)
        for model, variants, samples in ((tiny_folder, drawn, SAMPLES), (systems.NO_MODEL, BASELINES, 1))
        for split, rows in (("single-line", ROWS), ("random-span", SPAN_ROWS))
        for variant, sample, index in itertools.product(variants, range(samples), range(len(rows)))
    }
    found = [(line["model"], line["split"], line["variant"], line["sample"], line["index"]) for line in lines]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    for line in lines:
        problem = problems_of(ROWS if line["split"] == "single-line" else SPAN_ROWS)[line["index"]]
        assert line["task_id"] == problem.task_id
        assert {key: line[key] for key in ("exact", "stripped", "syntax")} == facts(problem, line["completion"])
        assert (line["cut"] > 0) == (line["task_id"] == ROWS[3]["task_id"] and line["model"] == tiny_folder)
        if line["variant"] in BASELINES:
            assert line["completion"] == BASELINES[line["variant"]](problem)
            assert (line["nfe"], line["length"]) == (0, None)
            continue
        if line["gap_length"] == "search":
            scored = {int(length): score for length, score in line["scores"].items()}
            assert scored[line["length"]] == max(scored.values())
        elif line["gap_length"] == "oracle":
            assert line["length"] == line["gold_length"] >= line["nfe"]
        else:
            assert line["length"] == 7


def test_completions_are_in_the_official_format(finished, tiny_folder):
    files = sorted((finished / "completions").rglob("*.jsonl"))
    assert len(files) == 2 * (8 + 3)
    for path in files:
        split = path.parts[-3]
        rows = ROWS if split == "single-line" else SPAN_ROWS
        samples = 1 if path.stem in BASELINES else SAMPLES
        # What OpenAI's write_jsonl writes: json.dumps and a newline, in the order of the problems.
        lines = path.read_bytes().splitlines(keepends=True)
        assert [json.loads(line)["task_id"] for line in lines] == [r["task_id"] for r in rows for _ in range(samples)]
        for line in lines:
            row = json.loads(line)
            assert list(row) == ["task_id", "completion"]
            assert line == (json.dumps(row) + "\n").encode()
        found = read_completions(path, split, problems_of(rows))
        if path.stem == "canonical":
            assert found == {row["task_id"]: [row["canonical_solution"]] for row in rows}
    assert {path.stem for path in files} >= {"assd-self-search", "assd-self-fixed-7"}


def test_pass_rates_come_from_the_verdicts(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    found = {(one["split"], one["variant"]): one for one in metrics["variants"]}
    for split, n in (("single-line", 4), ("random-span", 2)):
        assert found[split, "canonical"]["pass@1"] == {"mean": 1.0, "interval_95": [1.0, 1.0], "n": n}
        assert found[split, "empty"]["pass@1"]["mean"] == 0
        assert "pass@10" not in found[split, "sequential"]
    for (split, variant), one in found.items():
        lines = [line for line in lines_of(finished) if (line["split"], line["variant"]) == (split, variant)]
        for key in ("exact", "stripped", "syntax", "nfe"):
            assert one[key]["mean"] == pytest.approx(np.mean([line[key] for line in lines]))
        assert one["cut"] == sum(line["cut"] > 0 for line in lines)
    against = {(one["split"], one["variant"], one["against"]) for one in metrics["comparisons"]}
    assert {("single-line", "assd-self", other) for other in ("sequential", "frequent-line", "empty")} < against
    assert not any(variant in BASELINES for _, variant, _ in against)
    assert metrics["provenance"]["torch"] == torch.__version__
    table = (finished / "table.md").read_text()
    assert table.startswith("generated code runs in a sandbox")
    assert table.count("| model | variant | pass@1 | exact match |") == 2
    assert "Cut at their far ends, for the model takes no more tokens: 2 of sequential" in table
    assert (finished / "code.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_samples_is_whole_and_escaped(finished):
    text_of_page, tags = read_page(finished / "samples.html")
    assert not tags & {"b", "i", "x", "script"}
    for row in ROWS + SPAN_ROWS:
        assert row["prompt"] + "___" + row["suffix"] in text_of_page
        assert row["canonical_solution"] in text_of_page
    assert "failed: AssertionError <x>" in text_of_page
    assert "passed; exact match" in text_of_page


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.8])
def test_resuming_after_an_interruption_repeats_the_run(finished, settings, tmp_path, monkeypatch, kept):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    whole = (folder / "samples.jsonl").read_bytes()
    (folder / "samples.jsonl").write_bytes(whole[: int(kept * len(whole))])
    judged = (folder / "verdicts.jsonl").read_bytes()
    (folder / "verdicts.jsonl").write_bytes(judged[: int(kept * len(judged))])
    ran = []

    def counting(programs, *args):
        ran.extend(programs)
        yield from fake_verdicts(programs, *args)

    monkeypatch.setattr(code_judge, "check_all", counting)
    # How many programs run at a time may change; and they may be run or not.
    evaluate(CodeConfig(output_dir=str(folder), allow_code_execution=True, workers=1, **settings))
    assert without_times(lines_of(folder)) == without_times(lines_of(finished))
    assert not kept or (folder / "samples.jsonl").read_bytes()[:200] == whole[:200]
    before, after = (code_judge.read_verdicts(path / "verdicts.jsonl") for path in (finished, folder))
    assert before == after
    assert len(ran) == len(set(ran)) == len(after) - judged[: int(kept * len(judged))].count(b"\n")


def test_a_finished_run_is_neither_filled_nor_judged_again(finished, settings, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(systems, "fill", lambda *args: pytest.fail("filled again"))
    monkeypatch.setattr(code_judge, "check_all", lambda *args: pytest.fail("judged again"))
    evaluate(CodeConfig(output_dir=str(folder), allow_code_execution=True, **settings))
    assert (folder / "samples.jsonl").read_bytes() == (finished / "samples.jsonl").read_bytes()


def test_nothing_is_run_unless_it_is_allowed(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(code_judge, "check_all", lambda *args: pytest.fail("run without being allowed to"))
    monkeypatch.setattr("asarm.evals.code.run.describe_isolation", lambda: pytest.fail("run without being allowed to"))
    change = {"samplers": ["sequential", "empty", "canonical"], "gap_length": ["oracle"], "samples_per_task": 1}
    metrics = evaluate(CodeConfig(output_dir=str(tmp_path / "run"), **(settings | change)))
    assert not any(key.startswith("pass@") for one in metrics["variants"] for key in one)
    assert metrics["variants"][0]["syntax"]["n"] == 4
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.splitlines()[0] == (
        "pass@k is not measured: the programs that were completed are run with --allow_code_execution only."
    )
    monkeypatch.setattr(code_judge, "check_all", fake_verdicts)
    monkeypatch.setattr("asarm.evals.code.run.describe_isolation", lambda: "guarded")
    change["allow_code_execution"] = True
    metrics = evaluate(CodeConfig(output_dir=str(tmp_path / "run"), **(settings | change)))
    assert all("pass@1" in one for one in metrics["variants"])


def test_results_do_not_depend_on_batches_samples_or_the_number_of_problems(finished, settings, tmp_path):
    change = {"batch_size": 3, "max_items": 2, "samples_per_task": 1, "samplers": ["assd-self", "prefix-only"]}
    evaluate(CodeConfig(output_dir=str(tmp_path / "run"), **(settings | change)))
    some = lines_of(tmp_path / "run")
    same = {(line["split"], line["variant"], line["sample"], line["index"]) for line in some}
    whole = [x for x in lines_of(finished) if (x["split"], x["variant"], x["sample"], x["index"]) in same]
    assert len(some) == 4 * 4
    assert without_times(some, "batch", "scores") == without_times(whole, "batch", "scores")


def test_other_settings_are_not_mixed_in(finished, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(InputError, match=r"timeout 3.0, now 5.*choose another output_dir"):
        evaluate(CodeConfig(output_dir=str(folder), **(settings | {"timeout": 5.0})))


def test_baselines_alone_need_no_model(settings, tmp_path):
    change = {"models": ["tiny-none"], "samplers": ["empty"], "gap_length": ["oracle", "search"]}
    metrics = evaluate(CodeConfig(output_dir=str(tmp_path / "run"), **(settings | change)))
    assert [one["variant"] for one in metrics["variants"]] == ["empty", "empty"]


def test_a_causal_model_beside_others(settings, tmp_path, causal_folder):
    change = {"causal": causal_folder, "samplers": ["assd-self"], "gap_length": ["oracle"], "samples_per_task": 1}
    metrics = evaluate(CodeConfig(output_dir=str(tmp_path / "run"), **(settings | change)))
    assert [(one["model"], one["variant"]) for one in metrics["variants"]][2:] == [(causal_folder, "causal")] * 2
    assert {path.stem for path in (tmp_path / "run" / "completions").rglob("*.jsonl")} == {"assd-self", "causal"}


# --- judging with the real runner


def test_our_own_problems_are_judged_in_the_sandbox(tmp_path):
    config = {"problems": list(map(str, OWN)), "model": "unused", "samplers": ["empty", "canonical"], "timeout": 20.0}
    metrics = evaluate(CodeConfig(output_dir=str(tmp_path / "run"), allow_code_execution=True, **config))
    rates = {(one["split"], one["variant"]): one["pass@1"]["mean"] for one in metrics["variants"]}
    assert rates == {
        (split, variant): float(variant == "canonical")
        for split in ("single-line", "random-span")
        for variant in ("empty", "canonical")
    }
    results = {line["result"] for line in read_json_lines(tmp_path / "run" / "verdicts.jsonl")}
    assert "passed" in results
    assert any(result.startswith("failed: ") for result in results)


def test_a_file_of_completions_is_judged(files, tmp_path, monkeypatch, capsys):
    rows = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in ROWS]
    wrong = [row | {"completion": "    return 3\n"} for row in rows]
    mixed = [pair[place] for pair in zip(rows, wrong, strict=True) for place in (0, 1)]
    path = tmp_path / "my samples.jsonl"
    write_json_lines(path, mixed)
    command = ["asarm", "code", "judge", str(path), "--problems", files[0], "--timeout", "20"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    assert "allow it with --allow_code_execution" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--allow_code_execution"])
    assert main() == 0
    output = capsys.readouterr().out
    assert "single-line: 4 problems, 8 completions" in output
    assert "| 50.0 [50.0, 50.0] | 50.0 [50.0, 50.0] |" in output
    results = read_json_lines(tmp_path / "my samples.jsonl_results.jsonl")
    assert [(row["task_id"], row["completion"]) for row in results] == [tuple(row.values()) for row in mixed]
    assert [row["passed"] for row in results] == [True, False] * 4
    assert len(read_json_lines(tmp_path / "my samples.jsonl_verdicts.jsonl")) == 8
    monkeypatch.setattr(code_judge, "check_all", lambda *args: pytest.fail("judged again"))
    assert main() == 0


def test_text_that_is_no_unicode_fails_like_other_code():
    program = problems_of(ROWS)[0].program("    b = '\ud800'\n")
    assert not facts(problems_of(ROWS)[0], "    b = '\ud800'\n")["syntax"]
    assert code_judge.sha256_of_text(program)
    assert not check(program).passed


# --- statistics


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for samples in range(1, 7):
        for correct in range(samples + 1):
            for k in range(1, samples + 1):
                subsets = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
                assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def made_line(index, sample, variant="sequential", **values):
    return {
        "split": "single-line", "model": "m", "variant": variant, "sampler": variant, "gap_length": "oracle",
        "sample": sample, "index": index, "length": 5, "gold_length": 5, "drawn": 6, "nfe": 3, "seconds": 1.0, "cut": 0,
        "exact": False, "stripped": False, "syntax": True, "passed": False,
    } | values  # fmt: skip


def test_pass_rates_are_means_over_problems():
    lines = [made_line(i, s, passed=s < i) for i in range(10) for s in range(10)]
    (found,) = code_stats.summarise(lines, (1, 10, 100))["variants"]
    assert found["pass@1"]["mean"] == pytest.approx(np.mean(range(10)) / 10)
    assert found["pass@10"]["mean"] == pytest.approx(0.9)
    assert "pass@100" not in found
    low, high = found["pass@1"]["interval_95"]
    assert 0.2 < low < 0.35
    assert 0.55 < high < 0.7
    lines[7].pop("passed")
    assert "pass@1" not in code_stats.summarise(lines, (1,))["variants"][0]


def test_mcnemar_looks_at_what_only_one_got_right():
    mine, theirs = [1.0] * 8 + [0.0] * 2 + [1.0] * 5, [0.0] * 8 + [1.0] * 2 + [1.0] * 5
    found = compare_shares(mine, theirs)
    assert (found["test"], found["only"], found["difference"]) == ("McNemar", [8, 2], pytest.approx(0.4))
    tail = sum(math.comb(10, wins) for wins in range(3)) / 2**10
    assert found["p"] == pytest.approx(2 * tail)
    assert compare_shares([1.0, 0.0], [1.0, 0.0])["p"] == 1.0
    several = compare_shares([0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5])
    assert several["test"] == "t-test"
    assert several["p"] == pytest.approx(stats.ttest_rel([0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5]).pvalue)


def test_comparisons_are_paired_by_problem():
    lines = [made_line(i, 0, nfe=6, seconds=3.0, exact=i < 30) for i in range(60)]
    lines += [made_line(i, 0, "assd-self", exact=i < 45) for i in range(60)]
    lines += [made_line(i, 0, "empty", model="none", sampler="empty", nfe=0, drawn=0) for i in range(60)]
    found = {(x["variant"], x["against"]): x for x in code_stats.summarise(lines, (1,))["comparisons"]}
    assert list(found) == [("sequential", "empty"), ("assd-self", "sequential"), ("assd-self", "empty")]
    one = found["assd-self", "sequential"]
    assert (one["exact"]["difference"], one["exact"]["only"]) == (0.25, [15, 0])
    assert one["exact"]["p"] == pytest.approx(2**-14)
    assert (one["nfe"]["difference"], one["times_as_fast"]) == (-3.0, 3.0)


def test_what_parses_is_told_without_running_it(tmp_path):
    for source, good in (
        ("x = 1\n", True), (f"open({str(tmp_path / 'x')!r}, 'w')\n", True), ("x = \n", False), ("x = '\0'\n", False),
        ("(" * 5000, False), ("x = '\\d'\n", True), ("  x = 1\n", False),
    ):  # fmt: skip
        assert code_stats.parses(source) == good, source[:20]
    assert list(tmp_path.iterdir()) == []


# --- the command line


def test_options_override_the_preset():
    paper = parse_arguments([])
    assert paper.model_names() == ["therealgabeguo/ASARM@code"]
    assert (paper.splits, paper.k, paper.gap_length, paper.samples_per_task) == (["single-line"], 10, ["oracle"], 1)
    assert [v.name for v in paper.variants()] == ["sequential", "assd-self", "frequent-line", "empty", "canonical"]
    assert not paper.allow_code_execution
    assert paper.data_dir == str(OFFICIAL_SETS)
    tiny = parse_arguments(
        ["tiny", "--model", "a/b", "--allow-code-execution", "--split", "single-line", "random-span"]
    )
    assert (tiny.model_names(), tiny.splits, tiny.allow_code_execution) == (
        ["a/b"],
        ["single-line", "random-span"],
        True,
    )
    assert parse_arguments(["paper", "--model", "a/b"]).model_names() == ["a/b"]
    assert parse_arguments(["tiny"]).model_names() == ["tiny-code"]


def bad_files(tmp_path):
    """Files that are not as they should be, by name."""
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    (tmp_path / "bytes.jsonl.gz").write_bytes(packed[:40] + b"XXXXXXXX" + packed[48:])
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROWS[2], ensure_ascii=False).encode("latin-1"))
    (tmp_path / "text.jsonl").write_text("def f():\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "nothing.jsonl").write_text("\n\n")
    write(tmp_path / "twice.jsonl", [*ROWS, ROWS[1]])
    write(tmp_path / "fields.jsonl", [ROWS[0], {key: ROWS[1][key] for key in ROWS[1] if key != "suffix"}])
    write(tmp_path / "number.jsonl", [ROWS[0] | {"test": 1}])
    write(tmp_path / "empty.jsonl", [made(0, "def f(a):\n", "", "    return a\n")])
    write(tmp_path / "several.jsonl", [ROWS[0], SPAN_ROWS[0]])
    write(tmp_path / "unknown.jsonl", [ROWS[0] | {"task_id": "mine/1"}])
    write(tmp_path / "mask.jsonl", [made(0, "def f(a):\n", "    return '<mask>'\n", "")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problems", "{tmp}/none.jsonl"], "no such file: "),
        (["--problems", "{tmp}"], "Is a directory"),
        (["--problems", "{tmp}/cut.jsonl.gz"], "cut.jsonl.gz is damaged or cannot be read"),
        (["--problems", "{tmp}/bytes.jsonl.gz"], "bytes.jsonl.gz is damaged or cannot be read"),
        (["--problems", "{tmp}/latin.jsonl"], "is no UTF-8 text"),
        (["--problems", "{tmp}/text.jsonl"], "text.jsonl, line 1 is no JSON"),
        (["--problems", "{tmp}/list.jsonl"], "list.jsonl, line 1 is no JSON object"),
        (["--problems", "{tmp}/nothing.jsonl"], "nothing.jsonl is empty"),
        (["--problems", "{tmp}/twice.jsonl"], "has task_id SingleLineInfilling/made/1/L1 2 times"),
        (["--problems", "{tmp}/fields.jsonl"], "fields.jsonl, line 2 has no field suffix"),
        (["--problems", "{tmp}/number.jsonl"], "number.jsonl, line 1 has no field test with a text"),
        (["--problems", "{tmp}/empty.jsonl"], "the canonical_solution of SingleLineInfilling/made/0/L1 is empty"),
        (["--problems", "{tmp}/several.jsonl"], "problems of several splits: random-span, single-line"),
        (["--problems", "{tmp}/unknown.jsonl"], "do not tell its split"),
        (["--problems", "{tmp}/mask.jsonl"], "problem SingleLineInfilling/made/0/L1 holds <mask>"),
        (["--problems", "{file}", "{file}"], "two files of problems of single-line"),
        (["--split", "random-span"], "no problems of random-span: some lines.jsonl.gz holds those of single-line"),
        (["--split", "double-line"], "unknown split 'double-line': choose from single-line, multi-line"),
        (["--gap_length", "fixed:128"], "a gap of 128 tokens, but the model takes at most 128"),
        (["--gap_length", "some"], "unknown gap_length 'some'"),
        (["--samplers", "magic"], "unknown sampler 'magic'"),
        (["--samples_per_task", "0"], "samples_per_task must be at least 1, not 0"),
        (["--workers", "0"], "workers must be at least 1, not 0"),
        (["--timeout", "0"], "timeout must be a number of seconds of at least 0.1, not 0"),
        (["--timeout", "nan"], "timeout must be a number of seconds"),
        (["--model", "tiny-none"], "no bundled model 'tiny-none'"),
        (["--causal", "{tmp}/none"], "cannot load the causal model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, tiny_folder, files, options, message):
    bad_files(tmp_path)
    output = tmp_path / "output"
    usual = ["tiny", "--model", tiny_folder, "--problems", files[0], "--output_dir", str(output)]
    given = [option.format(tmp=tmp_path, file=files[0]) for option in options]
    monkeypatch.setattr(sys, "argv", ["asarm", "code", *usual, *given])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("asarm code: ")
    assert message in error[0]
    assert not (output / "samples.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS[:3], [], "has no completion of SingleLineInfilling/made/3/L1 (1 of 4 problems have none)"),
        ([*ROWS, ROWS[2]], [], "has 2 completions of SingleLineInfilling/made/2/L1, and 1 of most problems"),
        (SPAN_ROWS, [], "is not of single-line: RandomSpanInfilling/made/0/L1 is of random-span"),
        ([ROWS[0] | {"task_id": "SingleLineInfilling/HumanEval/0/L0"}], [], "is none of its problems"),
        ([{"task_id": ROWS[0]["task_id"]}], [], "line 1 has no field completion"),
        ([{"completion": "x"}], [], "line 1 has no field task_id"),
        (ROWS, ["--split", "double-line"], "unknown split 'double-line'"),
        (ROWS, ["--split", "multi-line"], "no problems of multi-line: some lines.jsonl.gz holds those of single-line"),
        (ROWS, ["--max_items", "-1"], "max_items must be at least 0"),
        (ROWS, ["--max_items", "2"], "SingleLineInfilling/made/2/L1 is none of its problems"),
        (ROWS, ["--workers", "0"], "workers must be at least 1"),
    ],
)
def test_bad_completions_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, files, rows, options, message):
    path = tmp_path / "samples.jsonl"
    write_json_lines(path, [{"completion": "x", **row} for row in rows] if len(rows) > 1 else rows)
    if rows and message == "is none of its problems":
        write_json_lines(path, [row | {"completion": "x"} for row in rows])
    monkeypatch.setattr(code_judge, "check_all", lambda *args: pytest.fail("judged"))
    command = ["asarm", "code", "judge", "--allow_code_execution", str(path), "--problems", files[0], *options]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert message in error[0]


# --- the wrapper


@pytest.fixture
def wrapper(repo):
    name = "_run_code_infill_eval.sh"
    return Path(shutil.copy(REPO / name, repo / name))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "code paper --output_dir {results}/code-paper"),
        (["tiny", "--seed", "3"], "code tiny --output_dir {results}/code-tiny --seed 3"),
        (["--allow_code_execution"], "code paper --output_dir {results}/code-paper --allow_code_execution"),
        (["judge", "a.jsonl", "--split", "multi-line"], "code judge a.jsonl --split multi-line"),
    ],
)
def test_wrapper_names_command_preset_and_folder(wrapper, bare, tmp_path, words, command):
    result = run(wrapper, *words, env=bare, cwd=tmp_path)
    assert result.stdout == f"ran: -m asarm {command.format(results=wrapper.parent / 'results')}\n", result.stderr


def test_wrapper_runs_from_any_folder(wrapper, tmp_path, tiny_folder):
    options = [
        "--model",
        tiny_folder,
        "--samples_per_task",
        1,
        "--max_items",
        2,
        "--samplers",
        "assd-self",
        "canonical",
    ]
    result = run(wrapper, "tiny", *options, "--gap_length", "oracle", env=active(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("pass@k is not measured: ")
    assert "| none | canonical | 100.0 [100.0, 100.0] |" in result.stdout
    assert (wrapper.parent / "results/code-tiny/samples.html").exists()


def test_missing_problems_are_one_line(wrapper, tmp_path):
    result = run(wrapper, "paper", env=active(), cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "put HumanEval-SingleLineInfilling.jsonl.gz from the folder data of" in result.stderr
