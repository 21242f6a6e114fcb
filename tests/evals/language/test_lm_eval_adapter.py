"""The model in lm-evaluation-harness: its numbers against our script's, windows, generation, its command line."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'asarm[harness]'")

from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from lm_eval.tasks.hellaswag.utils import process_docs

from asarm.__main__ import main
from asarm.cli.language import PRESETS
from asarm.evals.language import lm_eval_adapter as harness
from asarm.evals.language.config import LanguageEvalConfig
from asarm.evals.language.data import hellaswag_questions
from asarm.evals.language.likelihood import Pair, score_pairs
from asarm.evals.language.lm_eval_adapter import AsArmLM, generate
from asarm.evals.language.run import evaluate
from asarm.sampling.config import SamplerConfig
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from asarm.utils.jsonl import read_json_lines

# Ends of words that the bundled model finds most probable, so that the accuracy is not 0.
EXTRA = ["She was as happy as a child, and it was one of the", "She went out of the room, and in the middle of the"]
TASKS = {
    "local_lambada": """
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "local_hellaswag": """
output_type: multiple_choice
process_docs: !function utils.process_docs
doc_to_text: "{{query}}"
doc_to_target: "{{gold}}"
doc_to_choice: "choices"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "local_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "local_generate": """
output_type: generate_until
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{text.split(' ')[-1]}}"
generation_kwargs: {until: [","], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files (YAML and JSON lines) and a passage file for our script."""
    folder = tmp_path_factory.mktemp("tasks")
    passages = Path(PRESETS["tiny"]["lambada"]).read_text(encoding="utf-8").splitlines() + EXTRA
    (folder / "passages.txt").write_text("\n".join(passages) + "\n", encoding="utf-8")
    (folder / "passages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in passages))
    shutil.copy(PRESETS["tiny"]["hellaswag"], folder / "questions.jsonl")
    for name, text in TASKS.items():
        file = "questions.jsonl" if name == "local_hellaswag" else "passages.jsonl"
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / file}}}}}\n"
        (folder / f"{name}.yaml").write_text(f"{head}test_split: test{text}")
    (folder / "utils.py").write_text("from lm_eval.tasks.hellaswag.utils import process_docs\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """`datasets` keeps what it reads."""
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def evaluated(folder):
    """What the harness returns for all four tasks."""
    return simple_evaluate(
        model="asarm",
        model_args={"pretrained": "tiny-text"},
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=5,
        device="cpu",
        bootstrap_iters=0,
    )


@pytest.fixture(scope="module")
def lm():
    return AsArmLM("tiny-text", batch_size=3, device="cpu")


def requests(*arguments):
    """What the harness hands to a model."""
    return [SimpleNamespace(args=one) for one in arguments]


def test_harness_and_script_agree(evaluated, folder, tmp_path):
    settings = {"lambada": str(folder / "passages.txt"), "hellaswag": str(folder / "questions.jsonl"), "samplers": []}
    config = from_options(
        LanguageEvalConfig, output_dir=str(tmp_path), model="tiny-text", device="cpu", batch_size=3, **settings
    )
    ours, theirs = evaluate(config), evaluated["results"]
    lambada, hellaswag = ours["lambada"]["likelihood"], ours["hellaswag"]["likelihood"]
    assert theirs["local_lambada"]["acc,none"] == lambada["accuracy"]["mean"] > 0
    assert theirs["local_lambada"]["perplexity,none"] == pytest.approx(lambada["perplexity"]["mean"], rel=1e-5)
    assert theirs["local_hellaswag"]["acc,none"] == hellaswag["accuracy"]["mean"]
    assert theirs["local_hellaswag"]["acc_norm,none"] == hellaswag["accuracy_norm"]["mean"]
    assert hellaswag["accuracy"]["mean"] != hellaswag["accuracy_norm"]["mean"]
    # And one by one.
    lines = {(line["task"], line["index"]): line for line in read_json_lines(tmp_path / "samples.jsonl")}
    for sample in evaluated["samples"]["local_lambada"]:
        line, (log_prob, greedy) = lines["lambada", sample["doc_id"]], sample["filtered_resps"][0]
        assert (log_prob, greedy) == (pytest.approx(line["log_prob"], abs=1e-4), line["correct"])
    for sample in evaluated["samples"]["local_hellaswag"]:
        line = lines["hellaswag", sample["doc_id"]]
        assert [score for score, _ in sample["filtered_resps"]] == pytest.approx(line["log_probs"], abs=1e-3)
        assert [len(choice) for choice in sample["doc"]["choices"]] == line["characters"]
        assert sample["doc"]["gold"] == line["label"]


def test_questions_are_the_harness_ones(folder):
    import datasets

    rows = [json.loads(line) for line in (folder / "questions.jsonl").open(encoding="utf-8")]
    rows[0] |= {
        "ctx_a": " [header] How to [title] do  it ",
        "ctx_b": "the MAN",
        "endings": ["[step] x  y", "[a]", "", "z"],
    }
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    theirs = process_docs(datasets.Dataset.from_list(rows))
    for question, row in zip(hellaswag_questions(str(folder / "odd.jsonl")), theirs, strict=True):
        assert question == (row["query"], [" " + choice for choice in row["choices"]], row["gold"])


def test_rolling_scores_every_token_once_after_as_many_as_fit(lm):
    texts = ["The old man went to the castle, and the king was in the garden with all of his children.", "Yes", ""]
    ids = [lm.tok_encode(text) for text in texts]
    whole = lm.loglikelihood_rolling(requests(*((text,) for text in texts)), disable_tqdm=True)
    pairs = [Pair([lm.eot_token_id], some) for some in ids if some]
    assert whole == pytest.approx([score.log_prob for score in score_pairs(lm.model, pairs, 2)] + [0.0], abs=1e-3)

    short = AsArmLM("tiny-text", max_length=8, device="cpu")
    tokens = ids[0]
    windows = [Pair([lm.eot_token_id], tokens[:7])]  # 8 tokens in all
    start = 7
    while start < len(tokens):
        end = min(start + 7, len(tokens))
        windows.append(Pair(tokens[end - 8 : start], tokens[start:end]))
        start = end
    assert [len(pair.context) + len(pair.continuation) for pair in windows] == [8] * len(windows)
    expected = sum(score.log_prob for score in score_pairs(lm.model, windows, 4))
    found = short.loglikelihood_rolling(requests((texts[0],)), disable_tqdm=True)
    assert found == pytest.approx([expected], abs=1e-3)


def test_long_contexts_are_cut_on_the_left_with_a_warning(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    short = AsArmLM("tiny-text", max_length=8, device="cpu")
    text = "The old man went to the castle, and the king was in"
    found = short.loglikelihood(requests((text, " the"), ("The king", " was")), disable_tqdm=True)
    kept = short.tok_encode(text)[-7:]
    score = score_pairs(short.model, [Pair(kept, short.tok_encode(" the"))], 1)[0]
    assert found[0] == (pytest.approx(score.log_prob, abs=1e-4), score.is_greedy)
    assert "1 of 2 contexts are cut on the left to 8 tokens" in caplog.text


def test_an_empty_context_is_an_end_of_text(lm):
    found = lm.loglikelihood(requests(("", "The king")), disable_tqdm=True)[0]
    score = score_pairs(lm.model, [Pair([lm.eot_token_id], lm.tok_encode("The king"))], 1)[0]
    assert found == (pytest.approx(score.log_prob, abs=1e-4), score.is_greedy)


def test_a_context_of_white_space_is_an_empty_one(lm):
    """The harness moves its white space to the continuation."""
    found = lm.loglikelihood(requests((" \n", "The king"), ("Yes", " no")), disable_tqdm=True)
    pairs = [Pair([lm.eot_token_id], lm.tok_encode(" \nThe king")), Pair(lm.tok_encode("Yes"), lm.tok_encode(" no"))]
    expected = score_pairs(lm.model, pairs, 2)
    assert [score.log_prob for score in found] == pytest.approx([score.log_prob for score in expected], abs=1e-4)
    lm.generate_until(requests((" ", {"until": [], "max_gen_toks": 2})), disable_tqdm=True)


def test_no_tokens_are_an_empty_text(lm):
    settings = [{"until": [], "max_gen_toks": count} for count in (0, 3)]
    texts = lm.generate_until(requests(*(("The king", one) for one in settings)), disable_tqdm=True)
    assert texts[0] == ""
    assert texts[1] == lm.codec.decode(greedy_ids(lm, lm.tok_encode("The king"), 3))
    assert AsArmLM("tiny-text", max_gen_toks=0, device="cpu").generate_until(
        requests(("The king", {"until": []})), disable_tqdm=True
    ) == [""]
    with pytest.raises(InputError, match="max_gen_toks must be at least 0, not -1"):
        lm.generate_until(requests(("The king", {"until": [], "max_gen_toks": -1})), disable_tqdm=True)


def greedy_ids(lm, context, count):
    """The most probable token each time, one function evaluation a token."""
    ids = list(context)
    for _ in range(count):
        contexts = [max(rank + 1, len(context)) for rank in range(len(ids))]
        arguments = [torch.tensor([x]) for x in (ids, range(len(ids)), contexts, [len(ids)], [len(ids)])]
        ids.append(int(lm.model(*arguments)[0, 0].argmax()))
    return ids[len(context) :]


@pytest.mark.parametrize("sampler", ["sequential", "assd"])
def test_greedy_text_is_the_argmax_text_up_to_the_stop(sampler):
    lm = AsArmLM("tiny-text", sampler=sampler, batch_size=2, device="cpu")
    contexts = ["The old man went to", "She said that the", "It was a cold morning, and the children"]
    whole = [lm.codec.decode(greedy_ids(lm, lm.tok_encode(text), 40)) for text in contexts]
    plain = {"until": [], "max_gen_toks": 40}
    assert lm.generate_until(requests(*((text, plain) for text in contexts)), disable_tqdm=True) == whole
    stop = whole[0][5:8]
    for until in ([stop], stop, ["not there", stop]):
        found = lm.generate_until(requests((contexts[0], {"until": until, "max_gen_toks": 40})), disable_tqdm=True)
        assert found == [whole[0][: whole[0].index(stop)]]


def test_sampled_text_does_not_depend_on_where_it_is_looked_at(lm, monkeypatch):
    """Gaps that grow give what one gap of full length gives: the stop is found, and the distribution is not changed.
    Text is a function of its seed alone, whatever the sampler."""
    contexts = [lm.tok_encode(text) for text in ("The old man", "She said that the king was", "In the morning")]

    def texts(first_gap, stops, **sampler):
        monkeypatch.setattr(harness, "FIRST_GAP", first_gap)
        config = SamplerConfig(**sampler)
        return generate(lm.model, lm.codec, contexts, [1, 2, 3], config, stops, 48)

    whole = texts(48, [])
    for sampler in ({"sampler": "sequential"}, {"draft": "ngram"}, {"k": 2}):
        assert texts(48, [], **sampler) == whole
    assert len(set(whole)) == 3
    stops = [whole[0][10:13], whole[2][60:63]]
    cut = [text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))] for text in whole]
    assert texts(3, stops) == texts(48, stops) == texts(3, stops, draft="ngram") == cut
    assert cut != whole


def test_text_ends_where_the_model_ends_it(lm, monkeypatch):
    eos, word = lm.eot_token_id, lm.tok_encode(" king")[0]

    def ending(model, tokens, given, target, config, seeds):
        filled = tokens.masked_fill(target, word)
        filled[:, -3] = eos
        return SimpleNamespace(tokens=filled)

    monkeypatch.setattr(harness, "sample", ending)
    config = SamplerConfig()
    assert generate(lm.model, lm.codec, [[word]], [0], config, [], 6) == [lm.codec.decode([word] * 3)]


def test_generation_settings(lm, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    sampled = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20, "until": []}
    first, second = lm.generate_until(requests(("The king", sampled), ("The king", sampled)), disable_tqdm=True)
    assert first != second  # repeats of a request are samples of their own
    (likeliest,) = lm.generate_until(requests(("The king", sampled | {"top_k": 1})), disable_tqdm=True)
    assert likeliest == lm.codec.decode(greedy_ids(lm, lm.tok_encode("The king"), 20))
    with pytest.raises(InputError, match="top_p must lie above 0"):
        lm.generate_until(requests(("The king", sampled | {"top_p": 1.9})), disable_tqdm=True)
    short = AsArmLM("tiny-text", max_length=16, device="cpu")
    text = short.generate_until(requests(("The king " * 20, {"until": [], "max_gen_toks": 99})), disable_tqdm=True)[0]
    assert text == short.codec.decode(greedy_ids(short, short.tok_encode("The king " * 20)[-8:], 8))
    assert "max_gen_toks 99 is lowered to 8, half of what the model takes" in caplog.text


def test_all_request_types_gave_a_number(evaluated):
    assert 1 < evaluated["results"]["local_rolling"]["bits_per_byte,none"] < 5
    texts = [sample["filtered_resps"][0] for sample in evaluated["samples"]["local_generate"]]
    assert all(texts)
    assert not any("," in text for text in texts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "tiny-none"}, "no bundled model"),
        ({"pretrained": "tiny-text", "dtype": "int3"}, "unknown dtype 'int3'"),
        ({"pretrained": "tiny-text", "sampler": "parallel"}, "does not write from left to right"),
        ({"pretrained": "tiny-text", "batch_size": "x"}, "batch_size must be a number from 1, or auto, not 'x'"),
        ({"pretrained": "tiny-text", "max_length": 4096}, r"max_length must lie in \[2, 512\]"),
    ],
)
def test_bad_model_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        AsArmLM(**arguments)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(folder, tmp_path):
    """Also of sampled texts, each of which is drawn twice."""
    sampled = (folder / "local_generate.yaml").read_text().replace("local_generate", "local_sampled")
    sampled = sampled.replace("max_gen_toks: 6", "max_gen_toks: 6, do_sample: true, temperature: 1.0")
    (folder / "local_sampled.yaml").write_text(f"{sampled}repeats: 2\n")
    results = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]):
        output = tmp_path / f"{len(results)}.json"
        command = [sys.executable, *launcher, "-m", "asarm", "harness", "--model", "asarm", "--model_args"]
        command += ["pretrained=tiny-text", "--batch_size", "1", "--include_path", folder, "--tasks", ",".join(TASKS)]
        command[-1] += ",local_sampled"
        command += ["--device", "cpu", "--output_path", output, "--log_samples", "--limit", "7"]
        shown = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.count("|local_lambada  |") == 1
        (found,) = tmp_path.glob(f"{len(results)}_*.json")
        # The harness repeats a process's last request until each has as many.
        texts = {
            sample["doc_id"]: sample["resps"][0][:2]
            for path in tmp_path.glob(f"samples_local_sampled_*{found.stem.partition('_')[2]}.jsonl")
            for sample in read_json_lines(path)
        }
        numbers = {
            (task, name): value
            for task, values in json.loads(found.read_text())["results"].items()
            for name, value in values.items()
            if name != "perplexity_stderr,none"  # of resampled documents, in the order in which they come
        }
        results.append((numbers, texts))
    (one, texts), (two, same_texts) = results
    assert two.keys() == one.keys()
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
    assert texts == same_texts
    assert len(texts) == 7


def test_processes_that_cannot_meet(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="start them with torchrun or accelerate launch"):
        AsArmLM("tiny-text", device="cpu")


def test_command_line(folder, monkeypatch, capsys):
    assert get_model("hf") is not None  # the harness' own models are still there
    command = ["--model", "asarm", "--model_args", "pretrained=tiny-text", "--include_path", str(folder)]
    tail = ["--limit", "3", "--device", "cpu", "--batch_size", "2"]
    monkeypatch.setattr(sys, "argv", ["asarm", "harness", *command, "--tasks", "local_lambada", *tail])
    assert main() == 0
    assert "|local_lambada|" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["asarm", "harness", *command, "--tasks", "local_lambda", *tail])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("asarm harness: ")
    assert "local_lambda" in error
