"""LSQ+: Tables 2 to 6, from the trainings of `benchmarks.finetune`."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.papers.cells import Cells, Figures, kept
from benchmarks.papers.table import Table

_WIDTHS = ("W2A2", "W3A3", "W4A4")
_NOTE = (
    "Here: a SiLU network with squeeze-and-excite for CIFAR-10 (88.39 in float), short trainings of 3 epochs on 4,000 "
    "images, one seed each: differences below 1 point are not settled. The paper trains on ImageNet to the end."
)
_TABLE_2 = ((43.5, 67.5, 71.9), (23.7, 54.8, 68.8), (49.1, 69.9, 73.5), (48.7, 69.3, 73.8))
_TABLE_3 = ((39.9, 64.3, 70.4), (23.4, 62.1, 67.2), (42.5, 66.7, 71.6), (42.8, 66.1, 71.7))
_TABLE_4 = ((66.7, 69.4, 70.7), (64.7, 66.1, 69.2), (66.7, 69.4, 70.7), (66.8, 69.3, 70.8))
_TABLE_5 = {
    "minmax": ("71.3 ± 2.2", "43.8 ± 4.7"),
    "lsq": ("72.0 ± 1.6", "44.4 ± 2.9"),
    "lsqplus": ("73.0 ± 0.9", "46.8 ± 1.9"),
}
_TABLE_6 = (71.9, 72.5, 73.8)


def tables(cells: Cells) -> Iterator[Table]:
    yield Table(
        number="Tables 2 and 3",
        title="configurations on Swish: EfficientNet-B0, MixNet-S",
        note=_NOTE,
        rows=_on_swish,
    )
    yield Table(
        number="Table 4",
        title="ReLU: ResNet-18 (70.1 in float)",
        note="Here: ResNet-20 and ResNet-32 of CIFAR-10 (91.73 and 92.63), with the configuration that each tensor has "
        "by default (1 after ReLU), 20,000 labelled images, one seed. The four are not compared on them.",
        rows=_on_relu,
    )
    yield Table(
        number="Table 5",
        title="initialisations, configuration 4: mean of 5 seeds, ± half the range",
        note=_NOTE.replace("one seed each: differences below 1 point are not settled", "5 seeds each"),
        rows=_initialised,
    )
    yield Table(number="Table 6", title="fixed and learned offsets at W4A4, configuration 4", note=_NOTE, rows=_offsets)


def _on_swish() -> list[Figures]:
    rows = []
    for index, row in enumerate(kept("finetune_configs")):
        line: Figures = {"configuration": row["configuration"]}
        for width in range(3):
            line[f"paper {_WIDTHS[width]}"] = f"{_TABLE_2[index][width]} / {_TABLE_3[index][width]}"
            line[f"here {_WIDTHS[width]}"] = row[_WIDTHS[width]]
        rows.append(line)
    return rows


def _on_relu() -> list[Figures]:
    names = ("1: unsigned", "2: signed", "3: signed, offset", "4: unsigned, offset")
    rows = [
        {"network": "paper: ResNet-18", "configuration": name} | dict(zip(_WIDTHS, figures, strict=True))
        for name, figures in zip(names, _TABLE_4, strict=True)
    ]
    known = {(row["network"], row["bits"]): row for row in kept("finetune_reach")}
    for name in ("resnet20", "resnet32"):
        line: Figures = {"network": name, "configuration": "by default"}
        rows.append(line | {width: round(known[name, width]["top1"], 2) for width in _WIDTHS if (name, width) in known})
    return rows


def _initialised() -> list[Figures]:
    rows = []
    for row in kept("finetune_inits"):
        line: Figures = {"initialisation": row["initialisation"]}
        for width, printed in zip(("W4A4", "W2A2"), _TABLE_5[row["initialisation"]], strict=True):
            known = row.get(f"{width} mean")
            line[f"paper {width}"] = printed
            line[f"here {width}"] = None if known is None else f"{known:.1f} ± {row[f'{width} +-']:.1f}"
        rows.append(line)
    return rows


def _offsets() -> list[Figures]:
    return [
        {"offset": row["offset"], "paper": printed, "here": row["W4A4"]}
        for row, printed in zip(kept("finetune_beta"), _TABLE_6, strict=True)
    ]
