"""Peak memory of decoding one sequence beyond that of the model, as a share of the weights' bytes.

    python benchmarks/memory.py [--models gpt2-base xlnet-base] [--length 512]

Each case runs in a process of its own. On a CPU (Linux) it is the growth of the resident set's high-water mark from
the moment the model is in memory, warm-up and libraries' buffers included; on a GPU that of the allocator's.
"""

import argparse
import ctypes
import multiprocessing
from pathlib import Path

import torch
from decode import make_model, random_batch, show

from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig

CASES = {
    "sequential, 95 % masked": (SamplerConfig(sampler="sequential"), 0.95),
    "assd, k=5, 95 % masked": (SamplerConfig(k=5), 0.95),
    "assd, k=15, 95 % masked": (SamplerConfig(k=15), 0.95),
    "assd, k=5, 10 % masked": (SamplerConfig(k=5), 0.10),
}


def resident(which: str) -> int:
    """Bytes of this process's resident set: "VmRSS" now, "VmHWM" at most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {which} in /proc/self/status: this benchmark of CPU memory needs Linux")


def forget_peak() -> None:
    """Return freed memory and reset the high-water mark, so that an earlier peak does not hide a later one."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, case: str, length: int, answers: multiprocessing.Queue) -> None:
    """Put (bytes beyond the model, bytes of the weights) of one case on the queue `answers`."""
    config, rate = CASES[case]
    model = make_model(name)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gpu = torch.cuda.is_available()
    batch = random_batch(length, round(rate * length), model.config.vocab_size)
    if gpu:
        model, batch = model.cuda(), batch.to("cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        forget_peak()
        before = resident("VmRSS")
    sample(model, *batch, config, [0])
    answers.put(((torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")) - before, weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2-base", "xlnet-base"])
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    show("model", "N", "case", "weights, MB", "peak above the model, MB", "share")
    show("---", "---:", "---", "---:", "---:", "---:")
    for name in arguments.models:
        for case in CASES:
            answers = context.Queue()
            process = context.Process(target=measure, args=(name, case, arguments.length, answers))
            process.start()
            beyond, weights = answers.get()
            process.join()
            show(name, arguments.length, case, weights / 1e6, beyond / 1e6, f"{beyond / weights:.1%}")


if __name__ == "__main__":
    main()
