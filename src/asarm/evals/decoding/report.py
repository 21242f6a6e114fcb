"""Tables of the decoding evaluation, from its metrics."""

from asarm.evals.decoding.metrics import MARGINS, SWEPT
from asarm.evals.stats import BASELINE
from asarm.evals.tables import SCREEN, aligned_table, counted, markdown_table, p_text, plus_minus, stated, too_few

MEASURES = {"nfe": ("NFE", 1), "tokens_per_nfe": ("tokens per NFE", 3), "seconds": ("seconds a text", 3),
            "perplexity": ("generative perplexity", 1), "entropy": ("entropy, bits", 3)}  # fmt: skip

SHORT = {"nfe": "NFE", "perplexity": "gen. PPL"}  # what is printed of sweeps


def table(metrics: dict) -> str:
    """All metrics as Markdown. Mean ± standard error over texts; seconds over batches."""
    variants, comparisons = _main_variants(metrics), _main_comparisons(metrics)
    drafting = {name: one for name, one in variants.items() if one["acceptance"]}
    parts = [_variant_table(variants), _models_differ(variants)]
    parts += _comparison_table(comparisons) if comparisons else []
    parts += _acceptance_table(drafting) if drafting else []
    for swept in SWEPT:
        parts += _sweep_table(metrics[f"{swept}_sweep"], swept) if metrics[f"{swept}_sweep"] else []
    return "\n".join(filter(None, parts))


def summary(metrics: dict) -> str:
    """What is printed at the end: the costs of the variants, a line on each comparison with sequential decoding, and
    NFE and perplexity against what was swept over."""
    variants = _main_variants(metrics)
    alone = _has_batch_1(variants)
    rows = [
        [
            name,
            f"{one['nfe']['mean']:.1f}",
            f"{one['tokens_per_nfe']['mean']:.2f}",
            f"{one['seconds']['mean']:.3f}",
            *([f"{one['seconds_batch_1']['mean']:.3f}"] if alone else []),
            f"{one['perplexity']['mean']:.1f}",
            f"{one['entropy']['mean']:.2f}",
        ]
        for name, one in variants.items()
    ]
    count = next(iter(variants.values()))["nfe"]["n"]
    size = next(iter(variants.values()))["batch_size"]
    seconds = [f"s, batch {size}", "s, batch 1"] if alone else ["seconds"]
    header = ["variant", "NFE", "tokens/NFE", *seconds, "gen. PPL", "entropy"]
    first = [
        f"{counted(count, 'texts')}; seconds a text, generative perplexity (gen. PPL), entropy in bits\n",
        aligned_table(header, rows),
    ]
    few = too_few(count, "texts")
    compared = _main_comparisons(metrics)
    last = [few] if few else [*(_comparison_line(name, one) for name, one in compared.items()), *slow_line(compared)]
    matrices = [_matrix(sweep, swept, key) for swept in SWEPT if (sweep := metrics[f"{swept}_sweep"]) for key in SHORT]
    # Lines of comparisons take two of a terminal; four are the protocol's end, progress and where the results are.
    room = SCREEN - 4 - sum(part.count("\n") + 1 for part in first) - (1 if few else 2 * len(last))
    middle = []
    for matrix in matrices:
        room -= matrix.count("\n") + 1
        middle += [matrix] if room >= 0 else []
    left = ["The rest of what was swept over is in table.md."] if len(middle) < len(matrices) else []
    return "\n".join([*first, *middle, *left, *last])


def _main_variants(metrics: dict) -> dict[str, dict]:
    """Without the runs of the sweeps, which have names of their own and tables of their own."""
    return {name: one for name, one in metrics["variants"].items() if one["variant"] == one["sampler"]}


def _main_comparisons(metrics: dict) -> dict[str, dict]:
    main = _main_variants(metrics)
    return {name: one for name, one in metrics[f"against_{BASELINE}"].items() if name in main}


def _has_batch_1(found: dict[str, dict]) -> bool:
    return any("seconds_batch_1" in one for one in found.values())


def _seconds_header(variants: dict[str, dict]) -> list[str]:
    """The headers of the columns of seconds; batch sizes are said where there are two."""
    if not _has_batch_1(variants):
        return ["seconds a text"]
    return [f"seconds a text, batch {next(iter(variants.values()))['batch_size']}", "seconds, batch 1"]


def _comparison_line(name: str, one: dict) -> str:
    alone = f" ({one['seconds_batch_1']['speedup']:.2f} at batch 1)" if "seconds_batch_1" in one else ""
    return (
        f"{name} against {BASELINE}: {one['nfe']['difference']:+.1f} NFE and {one['seconds']['speedup']:.2f} times as "
        f"fast{alone}; log perplexity {stated(one['gen_nll'], 3)}; entropy {stated(one['entropy'], 3)}"
    )


def slow_line(comparisons: dict[str, dict]) -> list[str]:
    """A line on drafts that took more time than they saved, if some did."""
    fixed = {name: one["seconds"]["speedup"] for name, one in comparisons.items() if "adaptive" not in name}
    slow = [name for name, speedup in fixed.items() if speedup < 1]
    hint = "--samplers fused-adaptive assd-adaptive draft as many tokens as this machine gains by"
    return [f"slower here than {BASELINE}: {', '.join(slow)}. {hint}"] if slow else []


def _variant_table(variants: dict[str, dict]) -> str:
    alone = _has_batch_1(variants)
    quality = ["generative perplexity", "entropy, bits"]
    header = ["variant", "texts", "NFE", "tokens per NFE", *_seconds_header(variants), *quality]
    rows = [
        [
            name,
            str(one["nfe"]["n"]),
            plus_minus(one["nfe"], 1),
            plus_minus(one["tokens_per_nfe"], 3),
            plus_minus(one["seconds"], 3),
            *([plus_minus(one["seconds_batch_1"], 3)] if alone else []),
            plus_minus(one["perplexity"], 1),
            plus_minus(one["entropy"], 3),
        ]
        for name, one in variants.items()
    ]
    return markdown_table(header, rows)


def _models_differ(variants: dict[str, dict]) -> str:
    several = len({one["model"] for one in variants.values()}) > 1
    return "Models with different tokenizers have different texts and tokens.\n" if several else ""


def _comparison_table(comparisons: dict[str, dict]) -> list[str]:
    count = next(iter(comparisons.values()))["nfe"]["n"]
    if few := too_few(count, "texts"):
        return [few + "\n"]
    margins = ", ".join(f"{name} ± {margin:.3f}" for name, margin in MARGINS.items())
    about = (
        f"Against {BASELINE}, paired by text (time: by batch): t-test p, 95 % intervals, and whether the two are "
        f"the same up to a margin (two one-sided tests at 0.05; margins: {margins}).\n"
    )
    alone = _has_batch_1(comparisons)
    rows = [
        [
            name,
            f"{one['nfe']['difference']:+.1f}, {p_text(one['nfe']['t_test_p'])}",
            _times_as_fast(one["seconds"]),
            *([_times_as_fast(one["seconds_batch_1"])] if alone else []),
            stated(one["gen_nll"], 3),
            stated(one["entropy"], 3),
        ]
        for name, one in comparisons.items()
    ]
    header = [
        "variant",
        "NFE",
        "times as fast",
        *(["times as fast, batch 1"] if alone else []),
        "log perplexity",
        "entropy",
    ]
    return [about, markdown_table(header, rows)]


def _times_as_fast(seconds: dict) -> str:
    return f"{seconds['speedup']:.2f}, {p_text(seconds['t_test_p'])}"


def _acceptance_table(drafting: dict[str, dict]) -> list[str]:
    width = max(len(one["acceptance"]) for one in drafting.values())
    rows = []
    for name, one in drafting.items():
        shares = ["-" if share is None else f"{share:.3f}" for share in one["acceptance"]]
        rows.append([name, f"{one['mean_window']:.2f}", *shares, *[""] * (width - len(shares))])
    table = markdown_table(["variant", "drafts", *map(str, range(1, width + 1))], rows)
    about = "Mean number of drafts in a window, and the share of verified drafts that were accepted, by index in it.\n"
    return [about, table]


def _sweep_table(sweep: dict[str, list[dict]], swept: str) -> list[str]:
    """Every measure against k or the tolerance, a row for each of its values."""
    rows = [
        [name, f"{point[swept]:g}", *("-" if point[key] is None else plus_minus(point[key], digits)
                                      for key, (_, digits) in MEASURES.items())]
        for name, curve in sweep.items()
        for point in curve
    ]  # fmt: skip
    table = markdown_table(["variant", swept, *(header for header, _ in MEASURES.values())], rows)
    return [f"By {swept}, on {next(iter(sweep.values()))[0]['n']} of the texts.\n", table]


def _matrix(sweep: dict[str, list[dict]], swept: str, key: str) -> str:
    """One measure by variant and value swept over: the fewer of them are the columns."""
    values = sorted({point[swept] for curve in sweep.values() for point in curve})
    shown = [{point[swept]: f"{point[key]['mean']:.1f}" for point in curve} for curve in sweep.values()]
    header = [f"{value:g}" for value in values]
    cells = [[column.get(value, "") for value in values] for column in shown]
    names, about = list(sweep), f"{SHORT[key]} by {swept}, {counted(next(iter(sweep.values()))[0]['n'], 'texts')}"
    if len(values) > len(names) > 1:
        header, cells, names = names, [list(row) for row in zip(*cells, strict=True)], header
    return aligned_table([about, *header], [[name, *row] for name, row in zip(names, cells, strict=True)])
