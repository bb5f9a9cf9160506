"""The command line as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from bochner.cli.commands import bochner
from bochner.data import load_qkv, save_qkv
from tests.maps import BIASED


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bochner, list(arguments))


@pytest.fixture
def shifted(tmp_path: Path) -> Path:
    """Heads whose keys have a mean: what data-aware maps are for."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (0.5 * torch.randn(2, 64, 8, generator=g) for _ in range(3))
    path = tmp_path / "heads.npz"
    save_qkv(path, 3 * q, k + 1.0, v)
    return path


def test_list_names_every_map_and_projection() -> None:
    result = run("list")
    assert result.exit_code == 0
    for name in ("positive", "data-aware", "dark", "simplex", "antithetic-orthogonal"):
        assert name in result.output


def test_list_json_is_json() -> None:
    found = json.loads(run("list", "--json").stdout)
    assert found["trigonometric"]["positive"] is False
    assert found["gerf"]["needs_data"] is True
    assert {name for name, facts in found.items() if not facts["unbiased"]} == set(BIASED)


def test_list_marks_what_is_biased_and_what_needs_data() -> None:
    rows = {
        (cells := [cell.strip() for cell in line.split("│")])[1]: cells[2]
        for line in CliRunner(env={"COLUMNS": "160"}).invoke(bochner, ["list"]).output.splitlines()
        if line.startswith("│")
    }
    assert rows["calibrated"] == "signed, biased, needs data"
    assert rows["data-aware-mixture"] == "positive, needs data"
    assert rows["dark"] == "positive, needs data, trained kernel"
    assert rows["positive"] == "positive"


def test_compare_prints_each_map_beside_averaging(shifted: Path) -> None:
    result = run(
        "compare", str(shifted), "--maps", "positive@iid,data-aware", "--num-features", "16,32"
    )
    assert result.exit_code == 0, result.output
    assert "positive@iid" in result.output
    assert "data-aware" in result.output
    assert "averaging the values" in result.output.replace("\n", " ")


def test_compare_json_on_standard_output_alone(shifted: Path) -> None:
    result = run(
        "compare",
        str(shifted),
        "--maps",
        "positive",
        "--num-features",
        "16",
        "--seeds",
        "3",
        "--json",
        "-",
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    row = found["rows"][0]
    assert row["output_error"]["redraws"] == 3
    assert row["output_error"]["low"] <= row["output_error"]["value"] <= row["output_error"]["high"]
    assert found["averaging_the_values"] > 0
    assert found["environment"]["torch"] == torch.__version__


def test_compare_is_reproducible(shifted: Path) -> None:
    arguments = (
        "compare",
        str(shifted),
        "--maps",
        "data-aware",
        "--num-features",
        "16",
        "--json",
        "-",
    )
    first, second = (json.loads(run(*arguments).stdout)["rows"] for _ in range(2))
    assert first == second
    other = json.loads(run(*arguments, "--seed", "1").stdout)["rows"]
    assert other != first


def test_compare_writes_json_and_picture(shifted: Path, tmp_path: Path) -> None:
    picture, results = tmp_path / "new" / "errors.png", tmp_path / "new" / "errors.json"
    result = run(
        *("compare", str(shifted), "--maps", "positive,gerf", "--num-features", "16,32"),
        *("--json", str(results), "--plot", str(picture), "--all-metrics"),
    )
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = json.loads(results.read_text())["rows"]
    assert {(r["map"], r["num_features"]) for r in rows} == {
        (name, m) for name in ("positive", "gerf") for m in (16, 32)
    }
    assert all(r["predicted_output_error"] is not None for r in rows)
    assert sorted(p.name for p in picture.parent.iterdir()) == ["errors.json", "errors.png"]


def test_compare_skips_what_does_not_fit_and_says_why(shifted: Path) -> None:
    result = run("compare", str(shifted), "--maps", "positive,trigonometric", "--num-features", "1")
    assert result.exit_code == 0
    assert "must be a multiple of 2" in result.output.replace("\n", " ")


def test_recommend_chooses_and_gives_reasons(shifted: Path) -> None:
    result = run(
        "recommend", str(shifted), "--num-features", "128", "--maps", "positive,data-aware"
    )
    assert result.exit_code == 0, result.output
    assert "choice: data-aware" in result.output
    assert "lowest attention output error" in result.output.replace("\n", " ")


def test_recommend_exits_1_where_nothing_beats_averaging(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    q, k, v = (1.5 * torch.randn(2, 64, 32, generator=g) for _ in range(3))
    path = tmp_path / "hard.safetensors"
    save_qkv(path, q, k, v)
    result = run("recommend", str(path), "--num-features", "16", "--maps", "positive,gerf")
    assert result.exit_code == 1
    assert "Nothing beats averaging the values" in result.output.replace("\n", " ")


def test_biased_maps_are_marked_and_can_be_left_out(shifted: Path, tmp_path: Path) -> None:
    names = ("--maps", "calibrated,data-aware", "--seeds", "2")
    both = run("compare", str(shifted), *names, "--num-features", "16", "--all-metrics")
    assert both.exit_code == 0, both.output
    assert "calibrated (biased)" in both.output
    assert "no theory" in both.output
    one = run("compare", str(shifted), *names, "--num-features", "16", "--unbiased")
    assert one.exit_code == 0, one.output
    assert "calibrated (biased)" not in one.output
    assert "skipped calibrated, num_features=16: it is biased" in " ".join(one.output.split())
    flat = tmp_path / "flat.npz"  # attention that 16 landmark features describe
    q, k, v = load_qkv(shifted)
    save_qkv(flat, 0.3 * q, 0.3 * k, v + k)
    chosen = run("recommend", str(flat), *names, "--num-features", "16")
    assert "choice: calibrated" in chosen.output
    assert "is not bounded on other data" in " ".join(chosen.output.split())
    unbiased = run("recommend", str(flat), *names, "--num-features", "16", "--unbiased")
    assert "data-aware" in unbiased.output
    assert "choice: calibrated" not in unbiased.output
    assert "calibrated (biased)" not in unbiased.output
    assert "skipped calibrated" in unbiased.output


def test_an_interrupt_ends_a_command_with_130(
    monkeypatch: pytest.MonkeyPatch, shifted: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bochner.commands["compare"], "callback", interrupted)
    result = run("compare", str(shifted))
    assert result.exit_code == 130
    assert "interrupted" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "absent.npz"], "absent.npz"),
        (["compare"], "either FILE or --model"),
        (["compare", "HEADS", "--maps", "postive"], "did you mean 'positive'"),
        (["compare", "HEADS", "--maps", "positive@orthogonl"], "did you mean 'orthogonal'"),
        (["compare", "HEADS", "--num-features", "4,x"], "expected integers"),
        (["compare", "HEADS", "--num-features", "0"], "at least 1"),
        (["compare", "HEADS", "--seeds", "0"], "num_redraws=0"),
        (["check", "nothing"], "unknown feature map 'nothing'"),
    ],
)
def test_bad_usage_is_one_clear_line_and_exit_code_2(
    arguments: list[str], message: str, shifted: Path
) -> None:
    result = run(*(str(shifted) if a == "HEADS" else a for a in arguments))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_check_passes_on_a_biased_map() -> None:
    result = run("check", "calibrated")
    assert result.exit_code == 0, result.output
    assert result.output.count("ok calibrated") == 2


def test_check_prints_the_report_of_each_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    import bochner.testing

    seen = []

    def pass_it(spec: object, *, kernel: bochner.kernels.Kernel) -> str:
        seen.append((spec.name, kernel))  # type: ignore[attr-defined]
        return "all of it"

    monkeypatch.setattr(bochner.testing, "check_feature_map", pass_it)
    result = run("check", "gerf")
    assert result.exit_code == 0
    assert seen == [("gerf", bochner.Softmax()), ("gerf", bochner.Gaussian())]
    assert "all of it" in result.output


def test_check_exits_1_if_a_map_breaks_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    import bochner.testing

    def reject(spec: object, *, kernel: bochner.kernels.Kernel) -> None:
        raise bochner.testing.ContractError("unbiased", "the estimate is off")

    monkeypatch.setattr(bochner.testing, "check_feature_map", reject)
    result = run("check", "gerf")
    assert result.exit_code == 1
    assert "FAILED gerf" in result.output


def test_recommend_on_the_pretrained_model() -> None:
    result = run(
        *("recommend", "--model", "minilm", "--num-features", "64", "--json", "-"),
        *("--maps", "positive,data-aware"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["choice"] == "data-aware"
    assert found["data"]["heads"] == 72
    assert "72 heads" in found["source"]
