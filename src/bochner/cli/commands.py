"""bochner list | check | compare | recommend | demo | reproduce.

Exit codes: 0 done; 1 the answer is no (a check failed, nothing beats averaging the values);
2 bad usage or input; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

import bochner as library
from bochner.cli.console import Interruptible, expect_answers, output, stderr, tracked
from bochner.cli.sources import Source, read_source
from bochner.diagnostics import choose
from bochner.diagnostics import compare as compare_maps
from bochner.diagnostics.compare import all_names, split_name
from bochner.kernels import Gaussian, Softmax
from bochner.projections import PROJECTIONS
from bochner.report.results import (
    comparison_dict,
    environment,
    recommendation_dict,
    summary_dict,
    to_json,
    write_text,
)
from bochner.report.table import details_table, rich_table

NO = 1


def _numbers(context: click.Context, option: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r}; expected integers and commas, for example 64,256."
        ) from None
    if min(numbers) < 1:
        raise click.BadParameter(f"{text!r}; every number of features must be at least 1.")
    return numbers


def _data_options(command):  # type: ignore[no-untyped-def]
    for option in (
        click.argument("file", required=False, type=click.Path(path_type=Path)),
        click.option("--model", type=click.Choice(["minilm"]), help="A pretrained model instead."),
        click.option("--seeds", default=4, show_default=True, help="Redraws of all directions."),
        click.option("--seed", default=0, show_default=True, help="Seed of the generator."),
        click.option("--json", "json_file", help="Write results as JSON; - for standard output."),
    ):
        command = option(command)
    return command


_unbiased_option = click.option(
    "--unbiased", "unbiased_only", is_flag=True, help="Leave biased maps (see `bochner list`) out."
)


@click.group(cls=Interruptible)
@click.version_option(library.__version__, prog_name="bochner")
def bochner() -> None:
    """Random features for softmax and Gaussian kernels, with an error you can trust.

    Exit codes: 0 done; 1 the answer is no (a map breaks its contract, nothing beats averaging the
    values); 2 bad usage or input; 130 interrupted.
    """


@bochner.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON on standard output.")
def list_maps(as_json: bool) -> None:
    """List the feature maps of the catalogue and the projections."""
    specs = library.specs()
    if as_json:
        click.echo(to_json({name: _facts(entry) for name, entry in specs.items()}))
        return
    table = Table(title="feature maps", title_justify="left")
    for column in ("name", "features", "what it is"):
        table.add_column(column, no_wrap=column == "name")
    for name, entry in specs.items():
        table.add_row(name, _traits(entry), entry.summary)
    output().print(table)
    output().print("projections:", ", ".join(PROJECTIONS), highlight=False)


def _facts(entry: library.FeatureMapSpec) -> dict[str, Any]:
    fields = ("summary", "reference", "needs_data", "changes_kernel", "positive", "unbiased")
    facts = {name: getattr(entry, name) for name in (*fields, "columns", "random", "projected")}
    return {**facts, "kernels": [repr(kernel) for kernel in entry.kernels]}


def _traits(entry: library.FeatureMapSpec) -> str:
    words = {
        "positive" if entry.positive else "signed": True,
        "biased": not entry.unbiased,
        "needs data": entry.needs_data,
        "trained kernel": entry.changes_kernel,
        **{kernel.name: type(kernel) not in (Softmax, Gaussian) for kernel in entry.kernels},
    }
    return ", ".join(word for word, holds in words.items() if holds)


@bochner.command()
@click.argument("names", nargs=-1)
@expect_answers
def check(names: tuple[str, ...]) -> None:
    """Check that feature maps keep the contract: unbiased, positive, errors as declared.

    A map that is fitted and draws nothing is biased, and is held to beating the best constant instead.
    """
    from bochner.testing import ContractError, check_feature_map

    chosen = [library.spec(name) for name in names] or list(library.specs().values())
    failed = 0
    for entry in tracked(chosen, "checking"):
        for kernel in entry.kernels:
            try:
                report = check_feature_map(entry, kernel=kernel)
            except ContractError as error:
                failed += 1
                output().print(f"[red]FAILED[/red] {entry.name} ({kernel!r}): {error}")
            else:
                output().print(
                    f"[green]ok[/green] {entry.name} ({kernel!r})\n{report}", highlight=False
                )
    if failed:
        raise click.exceptions.Exit(NO)


@bochner.command()
@_data_options
@click.option("--maps", help="Comma-separated names; name@projection overrides. Default: all.")
@click.option(
    "--num-features", default="64,256", show_default=True, callback=_numbers, help="Budgets m."
)
@click.option("--projection", help="For every map that names none: " + ", ".join(PROJECTIONS))
@_unbiased_option
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Write a picture.")
@click.option(
    "--all-metrics", is_flag=True, help="Every metric of every row, and the closed-form prediction."
)
@expect_answers
def compare(
    file: Path | None,
    model: str | None,
    maps: str | None,
    num_features: list[int],
    projection: str | None,
    unbiased_only: bool,
    seeds: int,
    seed: int,
    json_file: str | None,
    plot_file: Path | None,
    all_metrics: bool,
) -> None:
    """Compare feature maps on FILE (.npz or .safetensors with q, k, v [heads, length, dim], already
    divided by the temperature) or on a model's own queries and keys."""
    labels = _labels(maps, projection)
    source = read_source(file, model)
    table = compare_maps(
        source.data,
        labels,
        num_features,
        num_redraws=seeds,
        predict_queries=2 if all_metrics else 0,
        unbiased_only=unbiased_only,
        generator=torch.Generator().manual_seed(seed),
        progress=lambda steps, total: iter(tracked(steps, "comparing", total)),
    )
    console = output(json_file)
    title = f"attention output error on {source.label}"
    console.print(rich_table(table, title))
    if all_metrics:
        console.print(details_table(table))
    _say_skipped(table.skipped)
    _write(json_file, source, comparison_dict(table))
    if plot_file is not None:
        from bochner.report.plot import save_picture

        save_picture(plot_file, table, title)
        stderr().print(f"picture: {plot_file}", highlight=False, soft_wrap=True)


@bochner.command()
@_data_options
@click.option("--num-features", default=64, show_default=True, help="Budget m.")
@click.option("--maps", help="Comma-separated names; default: all that keep the kernel.")
@_unbiased_option
@expect_answers
def recommend(
    file: Path | None,
    model: str | None,
    num_features: int,
    maps: str | None,
    unbiased_only: bool,
    seeds: int,
    seed: int,
    json_file: str | None,
) -> None:
    """Recommend a feature map for the data, with reasons; exit code 1 if nothing beats averaging.

    The lowest measured error wins, also that of a biased map; --unbiased leaves those out.
    """
    labels = _labels(maps, None)
    source = read_source(file, model)
    table = compare_maps(
        source.data,
        labels,
        [num_features],
        num_redraws=seeds,
        unbiased_only=unbiased_only,
        generator=torch.Generator().manual_seed(seed),
        progress=lambda steps, total: iter(tracked(steps, "measuring", total)),
    )
    result = choose(table, source.data, num_features)
    output(json_file).print(str(result), highlight=False)
    _say_skipped(result.skipped)
    _write(json_file, source, recommendation_dict(result))
    if result.choice is None:
        raise click.exceptions.Exit(NO)


@bochner.command()
@click.option("--out", default="bochner-demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--num-features", default="32,64,128,256", show_default=True, callback=_numbers)
@click.option("--seeds", default=4, show_default=True, help="Redraws of all directions.")
@click.option("--quick", is_flag=True, help="A tenth of the work, for a first look.")
@expect_answers
def demo(out: Path, num_features: list[int], seeds: int, quick: bool) -> None:
    """The main job on a real pretrained model: errors, the choice, and the model made linear."""
    from bochner.cli.demo import run_demo

    run_demo(out, num_features, seeds, quick=quick)


@bochner.command("reproduce")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--list", "only_list", is_flag=True, help="Names and titles; run nothing.")
@click.option("--quick", is_flag=True, help="The small version of each, for a first look.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to DIR/NAME, not into the checkout."
)
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(min=1), help="Processes."
)
@click.option("--fresh", is_flag=True, help="Forget finished cells and trained checkpoints.")
@click.option(
    "--experiments", type=click.Path(path_type=Path), help="The folder of experiments to use."
)
def reproduce(
    names: tuple[str, ...],
    only_list: bool,
    quick: bool,
    out: Path | None,
    workers: int,
    fresh: bool,
    experiments: Path | None,
) -> None:
    """Run the experiments NAME, or all of them, and write results, pictures and tables of claims.

    Interrupted, the same command goes on where it stopped. Results are written beside the experiment;
    those of --quick below build/reproduce/.
    """
    from bochner.cli.reproduce import list_experiments, run_experiments
    from bochner.data import MissingDataError
    from bochner.reproduce import (
        ExperimentError,
        Settings,
        discover,
        experiments_folder,
        select,
    )

    try:
        found = select(discover(experiments_folder(experiments)), names)
        if only_list:
            list_experiments(found)
        else:
            run_experiments(found, out, Settings(quick=quick, workers=workers, fresh=fresh))
    except (ExperimentError, MissingDataError) as error:
        # any other error, also a ValueError, is a bug of the experiment and keeps its traceback
        raise click.UsageError("\n".join([str(error), *getattr(error, "__notes__", [])])) from error


def _say_skipped(skipped: dict[str, str]) -> None:
    for label, why in skipped.items():
        stderr().print(f"[yellow]skipped[/yellow] {label}: {why}", highlight=False)


def _labels(maps: str | None, projection: str | None) -> list[str]:
    labels = all_names() if maps is None else [part.strip() for part in maps.split(",")]
    if projection is not None:
        labels = [label if "@" in label else f"{label}@{projection}" for label in labels]
    for label in labels:
        split_name(label)
    return labels


def _write(json_file: str | None, source: Source, result: dict[str, Any]) -> None:
    if json_file is None:
        return
    text = to_json(
        {
            "environment": environment(),
            "source": source.label,
            "data": summary_dict(source.summary()),
            **result,
        }
    )
    if json_file == "-":
        click.echo(text)
    else:
        write_text(Path(json_file), text + "\n")
        stderr().print(f"results: {json_file}", highlight=False, soft_wrap=True)
