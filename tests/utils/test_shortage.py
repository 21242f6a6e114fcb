"""What the machine lacks is said in one line, and what was half written on a full disk is deleted."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from asarm.__main__ import main
from asarm.cli import infill
from asarm.utils.files import write_whole

OVERFLOW = OverflowError("int too big to convert")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore"), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OVERFLOW, "a number is too large (int too big to convert)"),
        (ValueError("what is wrong"), "what is wrong"),
    ],
)
def test_one_line_and_exit_code_2(monkeypatch, capsys, error, message):
    def fail(arguments):
        raise error

    monkeypatch.setattr(infill, "main", fail)
    monkeypatch.setattr("sys.argv", ["asarm", "infill"])
    assert main() == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"asarm infill: {message}")
    assert printed.count("\n") == 1


def test_faults_of_the_program_are_raised(monkeypatch):
    def fail(arguments):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(infill, "main", fail)
    monkeypatch.setattr("sys.argv", ["asarm", "infill"])
    with pytest.raises(RuntimeError):
        main()


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    def half(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_text("before")
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "file", half)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]
