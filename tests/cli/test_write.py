"""A language model's own writing: the same with and without interruption, and what is refused."""

import json
import random

import pytest
import torch

from asarm.cli import write as command
from asarm.data.writing.generate import Writer, WritingConfig
from asarm.data.writing.prompts import KINDS
from asarm.evals.hub import load_causal
from asarm.models.load import pick_device
from asarm.utils.errors import InputError
from support.llama import save_llama

CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: "
WORDS = ["the", "a", "boy", "girl", "dog", "house", "river", "went", "saw", "found", "lost", "home", "again", "tree"]


@pytest.fixture
def base(tmp_path, sample_text):
    """A folder of a random model that can be asked in a chat."""
    save_llama(tmp_path / "base", sample_text, max_position_embeddings=1024)
    (tmp_path / "base" / "chat_template.jinja").write_text(CHAT)
    return tmp_path / "base"


def fake_answers(writer, kind, requests):
    """Sentences of random words, as a function of torch's seed."""

    numbers = random.Random(int(torch.randint(2**60, ())))
    return [f"{request.start} {' '.join(numbers.choices(WORDS, k=14))}. The end is" for request in requests]


def options(tmp_path, base, **changes):
    values = {"model": base, "kinds": ["stories", "texts"], "tokens": 600, "batch_size": 3} | changes
    words = [[f"--{name}", *map(str, value if isinstance(value, list) else [value])] for name, value in values.items()]
    return [str(tmp_path / "out.jsonl"), *(word for some in words for word in some)]


def test_an_interrupted_run_writes_what_a_whole_one_does(tmp_path, base, monkeypatch, capsys):
    monkeypatch.setattr(Writer, "answers", fake_answers)
    command.main(options(tmp_path, base))
    output = tmp_path / "out.jsonl"
    whole = output.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert {row["kind"] for row in rows} == {"stories", "texts"}
    assert all(row["text"].endswith(".") for row in rows)
    assert capsys.readouterr().out.endswith(f"tokens: {output}\n")
    for kept in (len(whole) // 2, whole.index("\n", len(whole) // 3) + 1):
        output.write_text(whole[:kept])
        command.main(options(tmp_path, base))
        assert output.read_text() == whole
    command.main(options(tmp_path, base, tokens=900))
    assert output.read_text().startswith(whole)
    with pytest.raises(InputError, match="was not written with these settings"):
        command.main(options(tmp_path, base, seed=1))


def test_a_model_is_asked_in_its_chat_and_by_examples(base):
    model, tokenizer = load_causal(str(base), "model", pick_device("cpu"))
    writer = Writer(model, tokenizer, WritingConfig(model=str(base), batch_size=2))
    for name, kind in KINDS.items():
        requests = [kind.draw(random.Random(seed)) for seed in range(2)]
        prompts = [writer.prompt(request) for request in requests]
        assert all(prompt.endswith(request.start) for prompt, request in zip(prompts, requests, strict=True))
        assert all(prompt.startswith("user: ") == (name != "functions") for prompt in prompts)
        answers = writer.answers(kind, requests)
        assert [answer[: len(one.start)] for answer, one in zip(answers, requests, strict=True)] == [
            one.start for one in requests
        ]
        assert all(len(answer) > len(one.start) for answer, one in zip(answers, requests, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["poems"]}, "poems"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"top_p": 0}, "top_p must lie in"),
        ({"model": "tiny-text"}, "are no causal language models"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, base, changes, message):
    with pytest.raises(InputError, match=message):
        command.main(options(tmp_path, base, **changes))
    assert not (tmp_path / "out.jsonl").exists()


def test_a_model_that_cannot_chat_and_one_that_writes_nothing_fit(tmp_path, base, monkeypatch):
    monkeypatch.setattr(Writer, "answers", lambda writer, kind, requests: ["x"] * len(requests))
    with pytest.raises(InputError, match="no text that is worth training on"):
        command.main(options(tmp_path, base))
    (tmp_path / "out.jsonl").unlink()
    (base / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        command.main(options(tmp_path, base))


def test_files_are_filtered(tmp_path, capsys):
    rows = [
        {"kind": "stories", "text": "Tom went to the park with his dog and they played there until it was dark. And"},
        {"kind": "stories", "text": "No."},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 2))
    command.main([str(tmp_path / "out.jsonl"), "--clean", str(tmp_path / "in.jsonl")])
    kept = [json.loads(line)["text"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [rows[0]["text"].removesuffix(" And")]
    assert capsys.readouterr().out == "stories: 1 of 4 texts\n"
