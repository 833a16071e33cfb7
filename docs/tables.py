"""Write the generated tables of README.md and the documentation: ``python docs/tables.py``.

The figures come from ``benchmarks/results``, the options and model families from the code. A page has a table between
``<!-- table: NAME -->`` and ``<!-- end of table -->``, where NAME is one of ``TABLES``.
"""

import ast
import importlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from regiontok import RegionizerConfig
from regiontok._require import TESTED_VERSIONS
from regiontok.adapters.huggingface.classes import class_names
from regiontok.adapters.huggingface.families import FAMILIES, UNSUPPORTED
from regiontok.options import OPTIONS
from regiontok.presets import TABLE_1

ROOT = Path(__file__).parent.parent
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "api" / "index.md",
    *(
        ROOT / "docs" / f"{page}.md"
        for page in (
            "installation",
            "serving",
            "models",
            "options",
            "video_model",
            "videos",
            "performance",
            "reproduce_paper",
            "scale",
            "which_source",
        )
    ),
)
MACHINE = "amd-epyc-2cores--cpu"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_SHAPE = "24x24x1024"
_RULES = {"patches": "every patch", "tome": "ToMe", "visionzip": "VisionZip"}
_FAMILIES = {
    "llava": "LLaVA-1.5", "llava_next": "LLaVA-NeXT", "internvl": "InternVL", "smolvlm": "SmolVLM",
    "gemma3": "Gemma 3", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL",
}  # fmt: skip


def results(benchmark: str) -> Any:
    """Return the stored results of a benchmark."""
    text = (ROOT / "benchmarks" / "results" / f"{benchmark}--{MACHINE}.json").read_text(encoding="utf-8")
    return json.loads(text.replace("photo", "image"))["figures"]  # older results use the former name


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the first column aligned left and the others right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Return a number with two or three significant digits."""
    if value >= 1000:
        digits = len(str(int(value)))
        return f"{round(value, 2 - digits):,.0f}".replace(",", " ")
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def median(times: Any, name: str) -> str:
    """Return the median time of a contestant in milliseconds."""
    return number(times[name]["median_ms"])


def shape_name(shape: str) -> str:
    """Return a shape such as ``24x24x1024`` with spaces."""
    return shape.replace("x", " x ")


def clustering() -> str:
    """Centroid linkage with a threshold, compared with other libraries."""
    figures = results("clustering")[_SHAPE]
    names = {
        "regiontok": "**regiontok**",
        "scikit-learn (another rule)": "scikit-learn, connected average linkage (a different linkage)",
        "scikit-image": "scikit-image, `merge_hierarchical`",
        "dictionary scan": "plain dictionary scan",
        "Higra": "Higra, `binary_partition_tree`",
    }
    times, ratios = figures["peers"], figures["times faster than"]
    rows = [[label, median(times, name), number(ratios.get(name, 1))] for name, label in names.items()]
    heading = f"centroid linkage: {shape_name(_SHAPE)}, {figures['regions']['regiontok']} regions"
    return table([heading, "ms", "relative time"], rows)


def ward() -> str:
    """Ward linkage, compared with scikit-learn."""
    figures = {shape: results("clustering")[shape]["rules"] for shape in (_SHAPE, "36x36x1280", "64x64x1024")}
    rules = figures.values()
    return table(
        ["Ward linkage, same partition", *map(shape_name, figures)],
        [
            ["**regiontok**, ms", *(median(rule["race"], "ours") for rule in rules)],
            ["scikit-learn, relative time", *(number(rule["times faster than scikit-learn's Ward"]) for rule in rules)],
            ["full merge tree: scikit-learn, relative time", *(number(rule["trees"]) for rule in rules)],
        ],
    )


def lower_bound() -> str:
    """Time of clustering relative to a lower bound, and costs of the options."""
    figures = results("clustering")
    shapes = figures.values()
    linkages = [shape["rules"]["kernel over the paper's rule"] for shape in shapes]
    variance = [shape["rules"]["explained variance over a count"]["call"] for shape in shapes]
    return table(
        ["clustering, one thread", *map(shape_name, figures)],
        [
            ["lower bound, ms", *(median(shape["one image, one thread"], "floor") for shape in shapes)],
            ["time of the compiled kernel / lower bound", *(number(shape["kernel over floor"]) for shape in shapes)],
            ["time of a call / lower bound", *(number(shape["one image over floor"]) for shape in shapes)],
            ["time of `average` / `centroid`", *(f"{linkage['average']:.2f}" for linkage in linkages)],
            ["time of `ward` / `centroid`", *(f"{linkage['ward']:.2f}" for linkage in linkages)],
            ["time of `explained_variance` / `num_regions`", *(f"{ratio:.2f}" for ratio in variance)],
            ["batch of 32: speed-up by two threads", *(number(shape["two threads over one"]) for shape in shapes)],
        ],
    )


def token_rules() -> str:
    """Time of grouping trained features, compared with other methods."""
    figures = results("partition")["block 10"]
    names = {
        "ward": "**Ward linkage**",
        "DiVT": "DiVT, known threshold",
        "DiVT, threshold searched": "DiVT, search for the threshold of the number of tokens",
        "ToMe": "ToMe",
        "k-means": "k-means, scikit-learn, one start",
    }
    return table(
        ["ms, by number of tokens", *figures],
        [[label, *(median(count["times"], name) for count in figures.values())] for name, label in names.items()],
    )


def pooling() -> str:
    """Attention pooling, compared with masked ``nn.MultiheadAttention``."""
    figures, memory = results("pooling"), results("memory")
    shape = figures["shape"]
    rows = []
    for name, suffix in (("forward", ""), ("forward and backward", " and backward")):
        ours, theirs = figures[name]["regiontok"]["median_ms"], figures[name]["nn.MultiheadAttention"]["median_ms"]
        rows.append([f"{name}, ms", number(ours), number(theirs), number(theirs / ours)])
        ours, theirs = memory[f"pool{suffix}"]["rise_MiB"], memory[f"attention{suffix}"]["rise_MiB"]
        rows.append([f"{name}, peak memory beyond the input, MiB", number(ours), number(theirs), number(theirs / ours)])
    heading = "{images} images, {regions} regions, {patches} patches of {dim}".format(**shape)
    return table([heading, "`CrossAttnPool`", "masked `nn.MultiheadAttention`", "ratio"], rows)


def sources() -> str:
    """Grouping by each source, compared with mask generation."""
    figures = results("sources")
    grouping, making, masks = figures["grouping"], figures["making masks"], figures["masks"]
    sam = next(name for name in making if name.startswith("SAM"))
    paper = figures["the paper's mask generation"].partition(" ")[0]
    return table(
        ["one image of 427 x 640, without the encoder", "ms"],
        [
            ["**clustering**", median(grouping, "clustering")],
            [f"segmentation, {masks} masks as RLE", median(grouping, "segmentation, masks from RLE")],
            [f"combined, {masks} masks as RLE", median(grouping, "combined, masks from RLE")],
            ["generating masks: Felzenszwalb", median(making, "Felzenszwalb")],
            [f"generating masks: {sam}, on this CPU", number(making[sam]["once_ms"])],
            ["generating masks: SAM 2 on an H100, reported by the paper", paper],
        ],
    )


def masks() -> str:
    """Operations on masks, compared with other implementations."""
    figures, annotations, split = results("downsampling"), results("annotations"), results("splitting")["few parts"]
    polygons, peak = annotations["measured"], figures["peak_rise_MiB"]
    rows = [
        ["RLE to the grid", figures["times"], "RLE", "decode, resize, pool", "decode, resize, pool"],
        ["dense masks to the grid", figures["times"], "dense", "resize, pool", "resize, pool"],
        ["polygons to RLE", polygons, "polygons, regiontok", "polygons, pycocotools", "pycocotools"],
        [
            "mean features on the grid", figures["pooling"], "mean features on the grid",
            "mean features at the masks' size", "features enlarged to the masks",
        ],
        [
            "split by DBSCAN", split["times"], "regiontok", "scikit-learn, one thread",
            "scikit-learn, mask by mask, one thread",
        ],
    ]  # fmt: skip
    return table(
        ["{masks} masks".format(**figures["shape"]), "ms", "compared with", "relative time", "memory saved, MiB"],
        [
            [
                label,
                median(times, ours),
                peer,
                number(times[theirs]["median_ms"] / times[ours]["median_ms"]),
                number(peak[theirs] - peak[ours]) if ours in peak else "-",
            ]
            for label, times, ours, theirs, peer in rows
        ],
    )


def generators() -> str:
    """Post-processing of SAM's masks, compared with ``sam2`` and transformers."""
    figures = results("generators")
    masks, memory = figures["same smooth logits"], figures["memory"]["rise_MiB"]
    names = {
        "regiontok, on the grid": "**regiontok**, masks on the grid",
        "regiontok, RLE": "**regiontok**, RLE",
        "sam2 package": "`sam2` package",
        "transformers pipeline": "transformers pipeline",
    }
    rows = []
    for name, label in names.items():
        shared = masks.get(f"masks of {name} matched at IoU 0.9")
        matched = "-" if shared is None else f"{100 * shared:.0f} %"
        rows.append([label, median(masks["times"], name), number(memory[name]), str(masks["masks"][name]), matched])
    heading = [f"{masks['candidates']} candidate masks", "ms", "peak MiB", "masks", "in ours at IoU 0.9"]
    return table(heading, rows)


def stages() -> str:
    """Seconds of each stage of SAM 2.1 tiny."""
    heading, figures = list(results("generators").items())[-1]
    columns = ("encode", "decode", "rest")
    rows = [[name, *(f"{seconds[column]:.2f}" for column in columns)] for name, seconds in figures.items()]
    return table([heading, "encoder", "decoder", "post-processing"], rows)


def steps() -> str:
    """A training step and a prefill of LLaVA by number of tokens."""
    figures = results("steps")
    shape, step, prefill = figures["shape"], figures["training step"], figures["prefill"]
    counts = list(step["times"])
    heading = f"LLaVA of {shape['weights'] / 1e6:.1f} M weights, {shape['images']} images, {shape['words']} text tokens"
    return table(
        [heading, f"{counts[0]} patches", *(f"{count} regions" for count in counts[1:])],
        [
            ["training step, ms", *(median(step["times"], count) for count in counts)],
            ["of which the Regionizer, ms", *(median(figures["of which regions"], count) for count in counts)],
            ["training step, peak MiB", *(number(step["peak_MiB"][count]) for count in counts)],
            ["prefill, ms", *(median(prefill["times"], count) for count in counts)],
        ],
    )


def adapters() -> str:
    """Time of the adapters relative to the stock models."""
    columns = (
        "prefill, regions over stock", "generation, regions over stock", "fed 64 tokens, regions over stock",
        "own work over prefill",
    )  # fmt: skip
    return table(
        ["small random model", "image tokens", "prefill", "generation", "prefill of 64 tokens", "adapter only"],
        [
            [_FAMILIES[name], str(figures["tokens of the image"]), *(f"{figures[column]:.2f}" for column in columns)]
            for name, figures in results("families").items()
        ],
    )


def _budgets(benchmark: str) -> str:
    cells: dict[str, dict[int, str]] = {}
    for row in results(benchmark)["results"]:
        cells.setdefault(row["rule"], {})[row["tokens"]] = f"{row['right']} ({number(row['prefill_ms'])} ms)"
    counts = sorted({count for by_count in cells.values() for count in by_count}, reverse=True)
    return table(
        ["accuracy in % (prefill) by number of tokens", *map(str, counts)],
        [[_RULES.get(rule, rule), *(by_count.get(count, "") for count in counts)] for rule, by_count in cells.items()],
    )


def budgets_dinov2() -> str:
    """Accuracy without training by rule and budget, with DINOv2-small."""
    return _budgets("budgets-dinov2-small")


def budgets_pixels() -> str:
    """Accuracy without training by rule and budget, with the ``pixels`` encoder."""
    return _budgets("budgets-pixels")


def _video_scores(clips: str, measure: str, heading: str) -> str:
    figures = results("video")[clips]
    rules = [rule for rule in figures["512"] if rule != "k-means"]
    rows = [
        [
            f"**{rule}**" if rule.startswith("space-time") else rule,
            *(f"{scores[rule][measure]:.3f}" if scores[rule] else "-" for scores in figures.values()),
        ]
        for rule in rules
    ]
    return table([heading, *figures], rows)


def video_errors() -> str:
    """Squared error of real clips by rule and number of tokens."""
    return _video_scores("real", "squared error", "squared error, by number of tokens")


def video_objects() -> str:
    """IoU of the object in made clips by rule and number of tokens."""
    return _video_scores("made", "object IoU", "IoU of the object, by number of tokens")


def video_supervoxels() -> str:
    """Metrics of LIBSVX in made clips at 512 tokens by rule."""
    columns = ("boundary recall", "undersegmentation error", "mean duration")
    rows = [
        [f"**{rule}**" if "space-time" in rule else rule, *(number(scores[column]) for column in columns)]
        for rule, scores in results("video")["made"]["512"].items()
        if columns[0] in scores
    ]
    return table(["512 tokens", *columns], rows)


def video_times() -> str:
    """Time of each rule for one clip."""
    figures = results("video")["time"]
    ours = "space-time Ward, motion 0"
    return table(
        ["one clip, 512 tokens", "ms", f"over {ours}"],
        [[rule, median(figures["times"], rule), number(ratio)] for rule, ratio in figures["times of motion 0"].items()],
    )


def video_models() -> str:
    """Prefill of stock video models and their region models."""
    titles = {"qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL", "llava_onevision": "LLaVA-OneVision"}
    columns = ("one region per patch over stock", "a tenth over stock", "adapter over stock")
    return table(
        [
            "prefill over that of the stock model",
            "tokens of the video",
            "one region per patch",
            "a tenth",
            "the adapter alone",
        ],
        [
            [titles[name], str(figures["tokens of the video"]), *(f"{figures[column]:.2f}" for column in columns)]
            for name, figures in results("video_models").items()
        ],
    )


def serving() -> str:
    """Requests per second of a server of vLLM, with and without regions."""
    figures = results("serving")
    rows = []
    for name in ("stock", "25 %", "10 %"):
        measured, stock = figures[name], figures["stock"]
        throughput, first = measured["request_throughput"], measured["median_ttft_ms"]
        over_stock = [throughput / stock["request_throughput"], first / stock["median_ttft_ms"]]
        title = "all" if name == "stock" else name
        rows.append([title, number(throughput), number(first), *(f"{value:.2f}" for value in over_stock)])
    heading = ["image tokens", "requests per second", "ms to the first token", "requests over stock", "ms over stock"]
    return table(heading, rows)


def page() -> str:
    """Size and speed of the interactive page."""
    figures = results("page")
    slider, selected = figures["outlines"], figures["a region held, with its heat map"]
    return table(
        ["page of 36 x 36 patches of 1024", ""],
        [
            ["file", f"{number(figures['megabytes'])} MB"],
            ["time to write it", f"{number(figures['seconds to write'])} s"],
            ["slider step", f"{number(slider['step_ms'])} ms"],
            ["slider step with a selected region and its heat map", f"{number(selected['step_ms'])} ms"],
            ["a frame at 60 Hz, for comparison", f"{number(figures['frame_ms'])} ms"],
        ],
    )


def scale() -> str:
    """Return the costs of stores of many images."""
    figures = results("scale")
    throughput, large = figures["throughput"], figures["large"]
    names = {
        "pixels": "`tokenize --store` instead of `--out --no-pictures`, encoder `pixels`",
        "ViT-S": "the same with a ViT-S at 336 pixels",
        "pixels, pictures": "the same with `pixels`, both with pictures",
    }
    rows = []
    for name, label in names.items():
        run = throughput[name]
        times = f"{number(run['store'])} instead of {number(run['loop'])} ms per image"
        rows.append([label, f"{times}, {run['loop_over_store']} times faster"])
    shares, memory, to_grid = figures["shares"], figures["memory"], figures["masks_to_grid"]
    vit, pixels = shares["timm:vit_small_patch14_dinov2"], shares["pixels"]
    others = f"{100 * vit:.1f} % (ViT-S), {100 * pixels:.0f} % (`pixels`)"
    values = {
        "all steps except reading and encoding, relative to encoding": others,
        "time with `--engine ray` without its start, relative to one process": str(throughput["ray"]["ray_over_here"]),
        "mapping 100 masks from a store to the grid": f"{to_grid['ours']:.1f} ms per image and core",
        "the same, relative to decoding, resizing and pooling": f"{to_grid['ratio']:.0f} times faster",
        "peak memory with 1000 and with 20 000 images": f"{memory['1000']} and {memory['20000']} MiB",
        "opening a store of 10^6 rows": f"{large['open_million_s']:.1f} s",
        "reading one of these rows": f"{large['random_access_ms']['median']:.1f} ms",
        "resuming if all of 10^5 images are done": f"{large['resume_100000_s']:.1f} s",
    }
    rows += [[label, value] for label, value in values.items()]
    return table(["", "measured"], rows)


def families() -> str:
    """Return the supported model families."""
    lines = ["| family | class | features | needs | videos | notes |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {family.title} | `Region{family.stock}` | {family.features} | {family.needs} | {family.videos} | "
        f"{family.notes} |"
        for family in FAMILIES
    ]
    return "\n".join(lines)


def unsupported() -> str:
    """Return the classes of transformers that are not supported."""
    lines = ["| class of transformers | reason |", "| --- | --- |"]
    return "\n".join(lines + [f"| `{name}` | {reason} |" for name, reason in sorted(UNSUPPORTED.items())])


def options() -> str:
    """Return the options of a Regionizer."""
    lines = ["| option | meaning | default; other values | in the paper |", "| --- | --- | --- | --- |"]
    for field in fields(RegionizerConfig):
        option = OPTIONS[field.name]
        default = option.get("default", "none") if field.default is None else f"`{field.default}`"
        others = [f"`{choice}`" for choice in option.get("choices", ()) if f"`{choice}`" not in default]
        values = f"{default}; {', '.join(others)}" if others else default
        lines.append(f"| `{field.name}` | {option['help']} | {values} | {option['paper']} |")
    return "\n".join(lines)


def representation() -> str:
    """Explained variance of regions by number of tokens, and the time of grouping."""
    figures = results("partition")["block 10"]
    names = {
        "grid": "grid", "centroid": "centroid linkage, the paper's", "ward": "**Ward linkage**", "ToMe": "ToMe",
        "k-means": "k-means, without neighbourhood",
    }  # fmt: skip
    rows = []
    for name, label in names.items():
        variances = [f"{100 * (1 - count['squared error'][name]):.0f} %" for count in figures.values()]
        rows.append([label, *variances, median(figures["64"]["times"], name)])
    return table(["explained variance", *(f"{count} tokens" for count in figures), "ms for 64"], rows)


_COLUMNS = {
    "tokens": "#Tok", "focus": "Focus", "pope": "POPE", "ocrbench": "OCRBench", "cv_bench": "CV-Bench",
    "mmstar": "MMStar", "mme_perception": "MME-P", "mme_cognition": "MME-C", "mmbench": "MMBench", "mm_vet": "MM-Vet",
}  # fmt: skip


def _paper_rows(names: Sequence[str]) -> str:
    cells = [["-" if value is None else f"{value:g}" for value in TABLE_1[name].figures.values()] for name in names]
    return table(["row", *_COLUMNS.values()], [[f"`{name}`", *row] for name, row in zip(names, cells, strict=True)])


def table_1() -> str:
    """Return the rows of Table 1 for each source, with RADIO at 384 pixels and RMS norm."""
    return _paper_rows([name for name in TABLE_1 if re.fullmatch(r"radio-384/\w+/rms/\w+/raster", name)])


def table_1_all() -> str:
    """Return all rows of Table 1."""
    return _paper_rows(list(TABLE_1))


def versions() -> str:
    """Return the lowest supported and the latest tested versions of packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest: dict[str, dict[str, None]] = {}
    for extra, requirements in ({"": project["dependencies"]} | project["optional-dependencies"]).items():
        for name, _, version in (requirement.partition(">=") for requirement in requirements):
            text = f"{version} (`{extra}`)" if name in lowest and version not in lowest[name] else version
            lowest.setdefault(name.partition("[")[0], {})[text] = None
    rows = [[name, ", ".join(lowest.get(name, "-")), tested] for name, tested in TESTED_VERSIONS.items()]
    return table(["package", "lowest supported", "latest tested"], rows)


_API = {
    "Core": ("regiontok",),
    "Videos": (
        "regiontok.videos", "regiontok.sampling", "regiontok.streaming", "regiontok.tracks", "regiontok.track_files",
    ),
    "Encoders": ("regiontok.encoders",),
    "Masks": ("regiontok.masks", "regiontok.masks.tracking"),
    "Stores": ("regiontok.store",),
    "Pipeline": ("regiontok.pipeline",),
    "Models of transformers": ("regiontok.adapters.huggingface",),
    "The original LLaVA": ("regiontok.adapters.llava",),
    "Evaluation": tuple(
        f"regiontok.evaluation.{module}"
        for module in (
            "assistant", "conversation", "questions", "partition", "focus", "pixcv", "benchmarks", "table", "prompts",
        )
    ),
    "Figures and pages": ("regiontok.viewing",),
    "The rows of Table 1": ("regiontok.presets",),
    "Steps of a Regionizer": (
        "regiontok.batch", "regiontok.budgets", "regiontok.masked", "regiontok.tiles", "regiontok.tile_masks",
        "regiontok.placeholders",
    ),
    "Errors": ("regiontok.errors",),
}  # fmt: skip
"""Modules of the reference, by heading."""


def public_names(module: Any) -> list[str]:
    """Return the functions and classes that a module lists, or that it defines. Errors have a module of their own."""
    names = getattr(module, "__all__", None)
    if names is None:
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    made = class_names()  # one description for all families, in docs/models.md
    values = {name: getattr(module, name) for name in sorted(names) if not name.startswith("_") and name not in made}
    is_errors = module.__name__ == "regiontok.errors"
    return [
        name
        for name, value in values.items()
        if inspect.isroutine(value) or (inspect.isclass(value) and (is_errors or not issubclass(value, Exception)))
    ]


def constants(module: Any) -> list[str]:
    """Return the names of the constants that a module defines."""
    nodes = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [target for node in nodes for target in getattr(node, "targets", [getattr(node, "target", None)])]
    return [
        target.id for target in targets if isinstance(target, ast.Name) and re.fullmatch("[A-Z][A-Z_0-9]+", target.id)
    ]


def api() -> str:
    """Return the reference: a description of each module, and a page for each of its names."""
    parts = []
    described = {name for modules in _API.values() for name in modules}
    for heading, modules in _API.items():
        parts.append(f"## {heading}")
        for name in modules:
            module = importlib.import_module(name)
            lines = [
                f".. automodule:: {name}",
                "   :no-members:",
                "",
                f".. currentmodule:: {name}",
                "",
                ".. autosummary::",
            ]
            lines += [
                "   :toctree: generated",
                "   :nosignatures:",
                "",
                *(
                    f"   {entry}"
                    for entry in public_names(module)
                    if getattr(module, entry).__module__ not in described - {name}  # under the heading of its module
                ),
            ]
            shown = [
                *constants(module),
                *(["FAMILIES"] if hasattr(module, "FAMILIES") else []),
            ]  # defined in a submodule
            for constant in shown:
                lines += ["", f".. autodata:: {constant}", "   :no-value:"]
            parts.append("\n".join(["```{eval-rst}", *lines, "```"]))
    return "\n\n".join(["", *parts, ""])


TABLES: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        clustering, ward, lower_bound, token_rules, pooling, sources, masks, generators, stages, steps, adapters,
        budgets_dinov2, budgets_pixels, video_errors, video_objects, video_supervoxels, video_times, video_models,
        serving, page, families, unsupported, options, scale, versions, representation, table_1,
        table_1_all, api,
    )
}  # fmt: skip


def updated(path: Path) -> str:
    """Return the text of a page with current tables."""
    return _BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + "\n" + block[3], path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(updated(path), encoding="utf-8")
