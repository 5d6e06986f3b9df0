"""Real networks, quantized with defaults and judged from outside, beside onnxruntime's own tools and onnxsim.

`python -m benchmarks.real [FOLDER] [--only NAME ...] [--peers] [--again] [--results FILE.json]`: each NAME.onnx in
FOLDER is calibrated on NAME.calib.npz and judged on NAME.eval.npz; without FOLDER, kept rows are printed.
FOLDER/real.toml, and before it benchmarks/real.toml, may have a table for a network with other needs: `calibration` and
`evaluation` (file names), `mean` and `std` of images, `scores` (outputs whose largest value is a class, if they do not
sum to 1), `options` (further arguments of `qgraph quantize`), `about` (what it is, for README), `kind` (`--only` takes
it like a name), `model` (the network that these settings are for; "*": each, as NETWORK_NAME, if `--only` asks),
`data` (false: nothing calibrates), `states` (inputs, and the outputs that become them in the next run:
`benchmarks.streaming` then runs the files on a stream). Peers run with their defaults, once for each model.

Tools run as whole processes: `CPU s` is user and system time including start-up, and `peak MB` the peak memory. Their
files run in stock onnxruntime on one thread, one sample at a time. Size, latency (median of thread CPU times, measured
in turn) and memory (of a process that runs one sample) are relative to the float file. Rows of the same network,
samples and version of the tool are taken from the results file unless `--again` is given.

A process starts with the peak memory of its parent, so this one imports next to nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real.json"
QGRAPH, STATIC, DYNAMIC, SIMPLIFY = "qgraph", "onnxruntime static", "onnxruntime dynamic", "onnxsim"
BLOCKS = "onnxruntime MatMulNBits"
STEPS = {STATIC: "static", DYNAMIC: "dynamic", BLOCKS: "blocks", SIMPLIFY: "simplify"}
PEERS = tuple(STEPS)
SUMMARY_ROWS = 10
EXACT_DB = 200.0  # where no error is measured
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A float model, the files of its samples, and its settings in real.toml."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A digest of the model, its samples and its settings."""
        settings = {key: value for key, value in self.settings.items() if key != "about"}
        found = sha256(json.dumps(settings, sort_keys=True).encode())
        for path in (self.model, self.calibration, self.evaluation):
            found.update(sha256(path.read_bytes()).digest())
        return found.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The resources that a process used; `problem` is its last line on stderr if it failed, else empty."""

    seconds: float
    peak: int
    output: str
    problem: str


def networks(folder: Path, only: Sequence[str] = ()) -> list[Network]:
    """The models in `folder` that have samples, by name; exits if a name does not exist."""
    settings = known_settings(folder)
    stems = {path.stem: path.stem for path in folder.glob("*.onnx")}
    every = each(settings, stems)
    settings = every if only else {name: given for name, given in every.items() if name in settings}
    stems |= {name: of for name, given in settings.items() if (of := given.get("model")) in stems}
    found = []
    for name, stem in sorted(stems.items()):
        model, given = folder / f"{stem}.onnx", settings.get(name, {})
        files = {**settings.get(stem, {}), **given}
        data = [
            folder / files.get(key, f"{stem}.{short}.npz")
            for key, short in (("calibration", "calib"), ("evaluation", "eval"))
        ]
        if all(path.exists() for path in data):
            calibration, evaluation = data
            found.append(
                Network(name=name, model=model, calibration=calibration, evaluation=evaluation, settings=given)
            )
        elif name in only:
            sys.exit(f"{model} needs samples in {data[0].name} and {data[1].name}; real.toml can name other files")
    words = {word for network in found for word in (network.name, network.settings.get("kind"))}
    if missing := [name for name in only if name not in words]:
        sys.exit(f"{folder} has no {', '.join(f'{name}.onnx' for name in missing)}")
    if not found:
        sys.exit(f"{folder} has no NAME.onnx with NAME.calib.npz and NAME.eval.npz")
    return [network for network in found if not only or {network.name, network.settings.get("kind")} & {*only}]


def known_settings(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The tables of this folder's real.toml, and after it of `folder`'s, by the names of networks."""
    settings: dict[str, dict[str, Any]] = {}
    for place in (ROOT / "benchmarks", folder):
        toml = None if place is None else place / "real.toml"
        settings |= tomllib.loads(toml.read_text(encoding="utf-8")) if toml is not None and toml.exists() else {}
    return settings


def each(settings: dict[str, dict[str, Any]], stems: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The settings with a table for every one of these models in place of one for all of them."""
    found: dict[str, dict[str, Any]] = {}
    for name, given in settings.items():
        every = {f"{stem}_{name}": {**given, "model": stem} for stem in stems}
        found |= every if given.get("model") == "*" else {name: given}
    return found


def spent(command: Sequence[str]) -> Spent:
    """Run `command` and return the CPU seconds and peak memory of the process and its children."""
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": search})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    said = [line.strip() for line in texts[1].splitlines() if line.strip()]
    problem = "" if process.returncode == 0 else (said[-1] if said else f"exit status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Spent(seconds=usage.ru_utime + usage.ru_stime, peak=usage.ru_maxrss * unit, output=texts[0], problem=problem)


def step(name: str, *words: Path | str) -> Spent:
    return spent([sys.executable, "-m", "benchmarks.real_steps", name, *map(str, words)])


def command(tool: str, network: Network, target: Path, calibration: Path) -> list[str]:
    """The process that makes `target`; `calibration` are the prepared samples."""
    python, model, steps = sys.executable, str(network.model), ["-m", "benchmarks.real_steps"]
    if tool == QGRAPH:
        given = network.settings
        numbers = {key: ",".join(map(str, given[key])) for key in ("mean", "std") if key in given}
        words = [word for key, value in numbers.items() for word in (f"--{key}", value)]
        data = ["--data", str(network.calibration), *words] if given.get("data", True) else []
        return [python, "-m", "qgraph", "quantize", model, "-o", str(target), *data, *given.get("options", [])]
    return [python, *steps, STEPS[tool], model, str(target), *([str(calibration)] if tool == STATIC else [])]


def measure(network: Network, tools: Iterable[str], folder: Path) -> Iterable[Row]:
    """One row for each tool, as it is measured."""
    prepared = {"calibration": folder / "calibration.npz", "evaluation": folder / "evaluation.npz"}
    settings = json.dumps(network.settings)
    for key, path in prepared.items():
        if problem := step("prepare", network.model, getattr(network, key), path, settings).problem:
            for tool in tools:
                yield {**_row(network, tool), **_nothing(), "problem": f"the samples cannot be read: {problem}"}
            return
    memory = step("once", network.model, prepared["evaluation"]).peak
    for tool in tools:
        target = folder / f"{tool.replace(' ', '-')}.onnx"
        row = _row(network, tool)
        if (tool == SIMPLIFY) and not row["version"]:
            yield {**row, **_nothing(), "problem": "not installed"}
            continue
        took = spent(command(tool, network, target, prepared["calibration"]))
        found = _nothing() | {"CPU s": took.seconds, "peak MB": took.peak / 2**20, "problem": took.problem}
        yield {**row, **found, **({} if took.problem else judged(network, target, prepared["evaluation"], memory))}


def judged(network: Network, target: Path, evaluation: Path, memory: int) -> Row:
    """The figures of a file that was written; `memory` is what running the float one takes."""
    found = step("judge", network.model, target, evaluation, json.dumps(network.settings.get("scores", [])))
    size = target.stat().st_size / network.model.stat().st_size
    if found.problem:
        return {"size": size, "problem": found.problem}
    figures = json.loads(found.output)
    streamed = None
    if states := network.settings.get("states"):
        words = [sys.executable, "-m", "benchmarks.streaming", network.model, target, evaluation, json.dumps(states)]
        heard = spent([str(word) for word in words])
        streamed = None if heard.problem else min(json.loads(heard.output)["outputs"].values(), default=None)
    return {
        "worst dB": min(figures["outputs"].values(), default=None),
        "streamed dB": streamed,
        "same class %": figures["same class"],
        "size": size,
        "latency": figures["latency"],
        "memory": step("once", target, evaluation).peak / memory,
        "outputs dB": figures["outputs"],
    }


def _row(network: Network, tool: str) -> Row:
    return {"network": network.name, "tool": tool, "digest": network.digest, "version": version(tool)}


def _nothing() -> Row:
    return dict.fromkeys(
        ("worst dB", "streamed dB", "same class %", "size", "latency", "CPU s", "peak MB", "memory", "outputs dB")
    )


def version(tool: str) -> str:
    """What made a file: the commit that last changed qgraph's code (+ for changes since), or a package's version."""
    if tool != QGRAPH:
        package = "onnxsim" if tool == SIMPLIFY else "onnxruntime"
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""
    try:
        commit = _git("log", "-1", "--format=%h", "--", "qgraph", "qmath")
        return commit + ("+" if _git("status", "--porcelain", "--", "qgraph", "qmath") else "")
    except (OSError, subprocess.CalledProcessError):
        return importlib.metadata.version("qgraph-onnx")


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout.strip()


def keep(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows with the machine and its packages, and beside them summaries for README and for docs."""
    packages = ("onnxruntime", "onnx", "onnx-ir", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    machine = {"cpu": cpu(), "cores": os.cpu_count()}
    content = {"title": "Real networks", "machine": machine, "versions": versions}
    parts = {"": ordered(rows), "_summary": summary(rows), "_alone": weights_alone(rows)}
    for ending, part in parts.items():
        if not part:
            continue
        target = path.with_name(f"{path.stem}{ending}.json")
        whole = target.with_suffix(".part")
        whole.write_text(json.dumps({**content, "rows": part}, indent=1) + "\n", encoding="utf-8")
        whole.replace(target)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By network, qgraph first and then its peers."""
    return sorted(rows, key=lambda row: (row["network"], (QGRAPH, *PEERS).index(row["tool"])))


def cpu() -> str:
    """The processor by its name where Linux says it, with the instructions that integer products depend on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [flag for flag in found.get("flags", "").split() if flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni")]
    return " ".join([found.get("model name", platform.machine()), *known])


def table(rows: Sequence[Row]) -> list[Row]:
    """The rows to print, with the CPU seconds of each tool relative to onnxruntime's static quantization."""
    static = {row["network"]: row["CPU s"] for row in rows if row["tool"] == STATIC and not row["problem"]}
    printed = []
    for row in rows:
        other, seconds = static.get(row["network"]), row["CPU s"]
        numbers = {key: row.get(key) for key in _nothing() if key != "outputs dB"}
        ratio = seconds / other if other and seconds else None
        first = {"network": row["network"], "tool": row["tool"]}
        printed.append({**first, **numbers, "CPU / static": ratio, "problem": row["problem"][:60]})
    return printed


def summary(rows: Sequence[Row]) -> list[Row]:
    """One line per network with default settings: first those measured beside other tools, then by increasing dB."""
    settings, tools = each(known_settings(None), {row["network"] for row in rows}), dict[str, dict[str, Row]]()
    for row in table(rows):
        if not settings.get(row["network"], {}).get("options"):
            tools.setdefault(row["network"], {})[row["tool"]] = row
    order = sorted(tools, key=lambda n: (len(tools[n]) == 1, (tools[n].get(QGRAPH) or _nothing())["worst dB"] or 0.0))
    lines = []
    for name in order[:SUMMARY_ROWS]:
        found = tools[name]
        line: Row = {"network": name, "what it is": settings.get(name, {}).get("about", "")}
        line |= {tool: _figures(found.get(tool)) for tool in (QGRAPH, STATIC, DYNAMIC, SIMPLIFY)}
        line["CPU s / static"] = (found.get(QGRAPH) or {}).get("CPU / static")
        lines.append(line)
    return lines


def weights_alone(rows: Sequence[Row]) -> list[Row]:
    """One line per network whose weights alone were quantized, without data."""
    found: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: str(row["network"])):
        name, _, kind = str(row["network"]).rpartition("_w")
        if kind.endswith("_alone") and row["tool"] == QGRAPH:
            bits = kind.removesuffix("_alone")
            line = found.setdefault(name, {"network": name} | {f"{b} bits: dB, size, latency": "-" for b in "84"})
            line[f"{bits} bits: dB, size, latency"] = _figures(row)
    return list(found.values())


def _figures(row: Row | None) -> str:
    """The dB of the worst output, and size and latency relative to float, of one tool's file."""
    if row is None or row["problem"]:
        return "-" if row is None else "fails"
    figures = (row["size"], row["latency"])
    decibels = "exact" if row["worst dB"] is None or row["worst dB"] >= EXACT_DB else f"{row['worst dB']:.1f} dB"
    return ", ".join((decibels, *("-" if f is None else f"{f:.2f}" for f in figures)))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="NAME.onnx, NAME.calib.npz and NAME.eval.npz")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these networks, or kinds of them")
    parser.add_argument("--peers", action="store_true", help="also run onnxruntime's tools, and onnxsim")
    parser.add_argument("--again", action="store_true", help="measure again what the results already have")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json", help="written after every row")
    given = parser.parse_args(words)
    known = json.loads(given.results.read_text(encoding="utf-8"))["rows"] if given.results.exists() else []
    rows: dict[tuple[str, str], Row] = {(row["network"], row["tool"]): row for row in known}
    kept = chosen_names([name for name, _ in rows], given.only)
    names = kept if given.folder is None else _measured(given, rows)
    from benchmarks.common import report

    report("Real networks", table(ordered(row for row in rows.values() if row["network"] in names)))


def chosen_names(names: Iterable[str], only: Sequence[str]) -> set[str]:
    """Those that `only` names, or whose kind it names."""
    known = list(names)
    settings = each(known_settings(None), known)
    return {name for name in known if not only or {name, settings.get(name, {}).get("kind")} & {*only}}


def _measured(given: argparse.Namespace, rows: dict[tuple[str, str], Row]) -> set[str]:
    """Fill in and write the rows that are missing, and return the names of the networks."""
    chosen = networks(given.folder, given.only)
    for network in chosen:
        peers = PEERS if given.peers and "model" not in network.settings else ()
        wanted = {tool: version(tool) for tool in (QGRAPH, *peers)}
        missing = [
            tool
            for tool, made in wanted.items()
            if given.again or not _same(rows.get((network.name, tool)), network.digest, made)
        ]
        if missing:
            with tempfile.TemporaryDirectory() as folder:
                for row in measure(network, missing, Path(folder)):
                    rows[network.name, row["tool"]] = row
                    keep(given.results, list(rows.values()))
                    print(_line(row), file=sys.stderr, flush=True)
    return {network.name for network in chosen}


def _same(row: Row | None, digest: str, made: str) -> bool:
    return row is not None and (row["digest"], row["version"]) == (digest, made)


def _line(row: Row) -> str:
    if row["problem"]:
        return f"{row['network']}, {row['tool']}: {row['problem']}"
    worst = "no floats" if row["worst dB"] is None else f"{row['worst dB']:.1f} dB"
    return f"{row['network']}, {row['tool']}: {worst}, {row['size']:.2f}, {row['latency']:.2f}"


if __name__ == "__main__":
    main()
