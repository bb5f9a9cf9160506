"""A converted model on disk: the model as transformers saves it, and what bochner added, beside it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

import bochner
from bochner.attention import ExactWindow
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.transformers.convert import converted_layers, linearize
from bochner.transformers.interface import LINEAR_EAGER, check_model
from bochner.transformers.layer import PART, LinearLayer
from bochner.transformers.places import attention_places
from bochner.transformers.structure import describe, rebuild

FORMAT = 1
SETTINGS = "bochner.json"
TENSORS = "bochner.safetensors"
SAMPLE = 512
"""Elements of each tensor that the fingerprint of a model looks at."""


def save_pretrained(model: PreTrainedModel, directory: str | Path) -> None:
    """Write a converted model; `from_pretrained` reads it, with the same output bit for bit.

    Files:      the model as `model.save_pretrained` writes it (transformers alone loads it, with its
                exact attention), bochner.safetensors with the tensors of the feature maps, and
                bochner.json with the rest. The last is written last, under another name and renamed: a
                directory that has it is complete.
    Raises:     ValueError if no layer of `model` is converted, or a map has parts that cannot be saved.
    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)
        >>> model = linearize(GPT2LMHeadModel(config).eval(), "positive", 16, window=4)
        >>> directory = mkdtemp()
        >>> save_pretrained(model, directory)
        >>> again = from_pretrained(directory)
        >>> tokens = torch.arange(20)[None]
        >>> bool((again(tokens).logits == model(tokens).logits).all())
        True
    """
    check_model(model)
    layers = converted_layers(model)
    if not layers:
        raise ValueError(
            f"model is a {type(model).__name__} without converted layers; expected one after"
            " linearize(model). A model that is not converted saves itself: model.save_pretrained."
        )
    settings, tensors = _written(model, layers)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).unlink(missing_ok=True)
    model.save_pretrained(folder, state_dict=_own_state(model))
    content = safetensors.torch.save(tensors)
    settings["sha256"] = hashlib.sha256(content).hexdigest()
    _write(folder / TENSORS, content)
    _write(folder / SETTINGS, json.dumps(settings, indent=1).encode())


def from_pretrained(
    directory: str | Path, model_class: Any = None, **options: Any
) -> PreTrainedModel:
    """Read what `save_pretrained` wrote.

    Arguments:  model_class: what loads the model (its own class, or an Auto class that leads to it);
                None: the class that was saved, from transformers. options: for its `from_pretrained`,
                such as dtype. No code is read from the files, and no pickles.
    Raises:     FileNotFoundError if a file is missing; ValueError for another format or class, tensors
                of another saving, a model with other attention modules or other weights, and feature
                maps that this version computes otherwise.
    """
    folder = Path(directory)
    settings, tensors = _read(folder)
    if model_class is None:
        model_class = getattr(transformers, settings["class"], None)
        if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
            raise ValueError(
                f"the model was a {settings['class']}, which is no class of transformers"
                f" {transformers.__version__}; pass model_class=."
            )
    defaults = {"attn_implementation": settings["implementation"], "use_safetensors": True}
    model = model_class.from_pretrained(folder, **defaults | options)
    _check_same_model(model, settings)
    layers = settings["layers"]
    maps = [_map(index, entry, tensors) for index, entry in layers.items()]
    linearize(model, maps, layers=[int(index) for index in layers])
    for index, layer in converted_layers(model).items():
        entry = layers[str(index)]
        layer.exact = None if entry["exact"] is None else ExactWindow(**entry["exact"])
        layer.without_dropout = entry["without_dropout"]
        layer.keep_exact(entry["exact_heads"])
    return model


def _written(
    model: PreTrainedModel, layers: dict[int, LinearLayer]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of all layers."""
    tensors: dict[str, Tensor] = {}
    entries = {}
    for index, layer in layers.items():
        try:
            description, own = describe(layer.feature_map)
        except ValueError as error:
            error.add_note(f"in the feature map of attention layer {index} ({layer.place})")
            raise
        probe = _probe(layer.feature_map)
        own |= {} if probe is None else {"probe": probe}
        tensors |= {f"{index}.{name}": tensor for name, tensor in own.items()}
        entries[str(index)] = {
            "exact": None if layer.exact is None else vars(layer.exact),
            "exact_heads": list(layer.kept_heads()),
            "without_dropout": layer.without_dropout,
            "map": description,
        }
    first: Any = attention_places(model)[next(iter(layers))].module
    eager = first.config._attn_implementation == LINEAR_EAGER
    settings = {
        "format": FORMAT,
        "bochner": bochner.__version__,
        "transformers": transformers.__version__,
        "class": type(model).__name__,
        "implementation": "eager" if eager else "sdpa",
        "modules": [place.name for place in attention_places(model)],
        "dtype": str(model.dtype),
        "fingerprint": _fingerprint(model),
        "layers": entries,
    }
    return settings, tensors


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} has no {name}; expected a directory that"
                " bochner.transformers.save_pretrained wrote to its end."
            )
    settings = json.loads((folder / SETTINGS).read_text())
    if settings.get("format") != FORMAT:
        raise ValueError(
            f"{folder / SETTINGS} has format {settings.get('format')!r}, written by bochner"
            f" {settings.get('bochner')}; bochner {bochner.__version__} reads format {FORMAT}. Load it"
            " with that version."
        )
    content = (folder / TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != settings["sha256"]:
        raise ValueError(
            f"{folder / TENSORS} is not the file that was written with {SETTINGS}; save the model again."
        )
    return settings, safetensors.torch.load(content)


def _map(index: str, entry: dict[str, Any], tensors: dict[str, Tensor]) -> FeatureMap:
    """The map of one layer, after a check that it computes what it computed when it was saved."""
    start = f"{index}."
    own = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
    expected = own.pop("probe", None)
    built = rebuild(entry["map"], own)
    found = _probe(built)
    if expected is not None and (
        found is None or not torch.allclose(found, expected, rtol=1e-3, atol=1e-4)
    ):
        raise ValueError(
            f"the feature map of attention layer {index} gives other values than when it was saved:"
            f" bochner {bochner.__version__} computes it in another way. Load it with the version that"
            " saved it."
        )
    return built


def _probe(feature_map: FeatureMap) -> Tensor | None:
    """log|estimate| of a few fixed pairs, with its sign; None for a map that has seen no data."""
    if isinstance(feature_map, UnfittedMap):
        return None
    g = torch.Generator().manual_seed(0)
    shape = (2, *feature_map.batch_shape, 4, feature_map.dim)
    x, y = torch.randn(shape, generator=g, dtype=torch.float64).unbind(0)
    device = next((t.device for t in feature_map.state_dict().values()), x.device)
    with torch.no_grad():
        log_abs, sign = feature_map.log_estimate(x.to(device), y.to(device))
    return torch.stack([log_abs.clamp_min(-700.0), sign]).cpu()


def _own_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's state without what conversion added."""
    part = f"{PART}."
    return {name: x for name, x in model.state_dict().items() if part not in name}


@torch.no_grad()
def _fingerprint(model: PreTrainedModel) -> str:
    """A hash of names, shapes and some values of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_state(model).items()):
        flat = tensor.flatten()
        sample = flat[:: max(1, len(flat) // SAMPLE)].double().cpu()
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _check_same_model(model: PreTrainedModel, settings: dict[str, Any]) -> None:
    if type(model).__name__ != settings["class"]:
        raise ValueError(
            f"model_class gave a {type(model).__name__}, saved was a {settings['class']}; pass that"
            " class, or an Auto class that leads to it."
        )
    modules = [place.name for place in attention_places(model)]
    if modules != settings["modules"]:
        raise ValueError(
            f"the model has the attention modules {modules}, saved were those of {settings['modules']};"
            f" load it with transformers {settings['transformers']}."
        )
    same_dtype = str(model.dtype) == settings["dtype"]
    if same_dtype and _fingerprint(model) != settings["fingerprint"]:
        raise ValueError(
            "the weights of the model are not those that the feature maps were saved with; save the"
            " converted model again."
        )


def _write(path: Path, content: bytes) -> None:
    """All of the file or nothing."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
