"""The benchmark of real networks, on a folder with the packaged one."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from benchmarks import real
from benchmarks.real_steps import MOST_DB, Output
from benchmarks.streaming import stream

DEMO = Path(str(files("qgraph") / "demo_assets"))


@pytest.fixture
def folder(tmp_path):
    shutil.copy(DEMO / "digits.onnx", tmp_path / "net.onnx")
    for name, count in (("calibration", 32), ("test", 16)):
        with np.load(DEMO / f"digits_{name}.npz") as archive:
            np.savez(tmp_path / f"other.{name}.npz", **{key: archive[key][:count] for key in archive.files})
    (tmp_path / "real.toml").write_text(
        '[net]\ncalibration = "other.calibration.npz"\nevaluation = "other.test.npz"\noptions = ["--no-measure"]\n'
    )
    return tmp_path


def test_a_row_is_measured_kept_and_measured_again_for_other_settings(folder, monkeypatch, capsys):
    """Beside a network whose samples cannot be read, which ends no run."""
    results = folder / "rows.json"
    shutil.copy(folder / "net.onnx", folder / "bad.onnx")
    for short in ("calib", "eval"):
        np.savez(folder / f"bad.{short}.npz", nothing=np.zeros((4, 1, 3, 3), np.float32))
    real.main([str(folder), "--results", str(results)])
    bad, row = json.loads(results.read_text())["rows"]
    assert bad["problem"].startswith("the samples cannot be read: ")
    assert "bad" in capsys.readouterr().out
    for path in folder.glob("bad.*"):
        path.unlink()
    assert (row["network"], row["tool"], row["problem"]) == ("net", "qgraph", "")
    assert row["worst dB"] > 25
    assert row["size"] < 0.5
    assert row["CPU s"] > 0.1
    summary = {line["network"]: line for line in json.loads((folder / "rows_summary.json").read_text())["rows"]}
    line = summary["net"]
    assert line["qgraph"] == f"{row['worst dB']:.1f} dB, {row['size']:.2f}, {row['latency']:.2f}"
    assert line["onnxruntime static"] == "-"

    measured = []
    monkeypatch.setattr(real, "measure", lambda network, tools, _: measured.append(tools) or [])
    real.main([str(folder), "--results", str(results)])
    assert measured == []
    with (folder / "real.toml").open("a") as file:
        file.write('scores = ["logits"]\n')
    real.main([str(folder), "--results", str(results)])
    assert measured == [["qgraph"]]


def test_a_network_without_samples_is_named(tmp_path):
    shutil.copy(DEMO / "digits.onnx", tmp_path / "net.onnx")
    with pytest.raises(SystemExit, match=r"net\.calib\.npz"):
        real.networks(tmp_path, ["net"])


def test_a_process_that_fails_gives_its_last_line(tmp_path):
    found = real.step("once", tmp_path / "absent.onnx", tmp_path / "absent.npz")
    assert "absent" in found.problem
    assert found.peak > 2**20


def test_noise_and_classes_of_outputs_by_hand():
    output = Output(scores=False)
    output.take(np.array([[0.5, 0.5]]), np.array([[0.5, 0.6]]))
    assert output.db == pytest.approx(10 * np.log10(0.5 / 0.01))
    assert output.share == 0
    output.take(np.array([[2.0, 3.0]]), np.array([[2.0, 3.0]]))
    assert output.share is None
    output.take(np.array([[1.0]]), np.array([[np.nan]]))
    assert output.db == -MOST_DB


def test_a_stream_feeds_each_network_its_own_state(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]> net (float[1] x, float[1] s) => (float[1] y, float[1] n)
    <float[1] f = {%s}> { t = Mul(s, f) n = Add(t, x) y = Identity(n) }"""
    paths = [str(tmp_path / name) for name in ("float.onnx", "small.onnx", "samples.npz")]
    for path, factor in zip(paths, ("0.5", "0.25"), strict=False):
        onnx.save(onnx.parser.parse_model(text % factor), path)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    np.savez(paths[2], names=np.array(["x", "s"]), **{"0_0": one, "0_1": zero})
    found = stream(*paths, '{"s": "n"}', runs="2")  # 1, 1.5 beside 1, 1.25
    assert found["outputs"]["y"] == pytest.approx(10 * np.log10((1 + 1.5**2) / 0.25**2))
    assert found["states"]["n"] == found["outputs"]["y"]
    assert found["same decision"] == 100


def test_only_takes_a_kind(folder):
    with (folder / "real.toml").open("a") as file:
        file.write('kind = "digits"\n')
    assert [network.name for network in real.networks(folder, ["digits"])] == ["net"]


def test_settings_may_be_for_a_network_of_another_name(folder):
    with (folder / "real.toml").open("a") as file:
        file.write('[net_w4]\nmodel = "net"\nkind = "few bits"\noptions = ["--weights", "4"]\n')
    (found,) = real.networks(folder, ["few bits"])
    assert (found.name, found.model.name, found.calibration.name) == ("net_w4", "net.onnx", "other.calibration.npz")
    assert real.command(real.QGRAPH, found, Path("out.onnx"), Path("c.npz"))[-2:] == ["--weights", "4"]
    assert found.digest != real.networks(folder, ["net"])[0].digest


def test_settings_for_every_network_are_measured_where_they_are_asked_for(folder):
    names = [network.name for network in real.networks(folder)]
    assert names == ["net"]
    found = real.networks(folder, ["without data"])
    assert [network.name for network in found] == ["net_w4_alone", "net_w8_alone"]
    words = real.command(real.QGRAPH, found[0], Path("out.onnx"), Path("c.npz"))
    assert "--data" not in words
    assert words[-4:] == ["--weights", "4", "--activations", "none"]
    assert real.chosen_names(["net", "net_w4_alone"], ["without data"]) == {"net_w4_alone"}


def test_without_a_folder_kept_rows_are_printed(tmp_path, capsys):
    rows = [
        {"network": name, "tool": real.QGRAPH, **real._nothing(), "worst dB": db, "problem": ""}
        for name, db in (("silero", 43.5), ("orientation", 48.25))
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"rows": rows}))
    real.main(["--only", "recurrent", "--results", str(path)])
    printed = capsys.readouterr().out
    assert "silero" in printed
    assert "orientation" not in printed


def test_every_tool_has_a_step_of_its_own():
    from benchmarks import real_steps

    assert set(real.STEPS.values()) <= real_steps.STEPS.keys()
    assert real.command(
        real.BLOCKS,
        real.Network(name="n", model=Path("n.onnx"), calibration=Path("c"), evaluation=Path("e")),
        Path("out.onnx"),
        Path("c.npz"),
    )[-3:] == ["blocks", "n.onnx", "out.onnx"]


def test_the_summary_is_short_and_says_what_fails():
    row = {"tool": "qgraph", "problem": "", "worst dB": 31.26, "size": 0.26, "latency": 0.5, "CPU s": 4.0}
    rows = [{**row, "network": f"net{i}", "worst dB": 20.0 + i} for i in range(12)]
    rows += [{**row, "network": "net9", "tool": "onnxruntime static", "CPU s": 2.0}]
    rows += [{**row, "network": "net9", "tool": "onnxsim", "worst dB": None, "size": 1.0}]
    rows += [{**row, "network": "net9", "tool": "onnxruntime dynamic", "problem": "does not load", "CPU s": None}]
    rows += [{**row, "network": "minilm_w4_only"}]
    lines = real.summary(rows)
    assert len(lines) == 10
    assert [line["network"] for line in lines[:3]] == ["net9", "net0", "net1"]
    first = lines[0]
    assert first["onnxruntime static"] == "31.3 dB, 0.26, 0.50"
    assert (first["onnxruntime dynamic"], first["onnxsim"]) == ("fails", "exact, 1.00, 0.50")
    assert first["CPU s / static"] == 2.0
    assert "minilm_w4_only" not in {line["network"] for line in real.summary(rows[-1:])}
