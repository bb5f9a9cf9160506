"""A feature map as data: classes by name, settings, and tensors, with no code among them.

A fitted map is a tree of modules; which modules, and how many, may depend on the data that it was
fitted to. So neither its name nor its state_dict can rebuild it, and a pickle could run anything when it
is read. Here the tree itself is written down: for each module its class, its plain attributes, and the
names of its tensors. Only classes of bochner, and of packages that add feature maps to its catalogue,
are written or read.
"""

from __future__ import annotations

import base64
import math
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor, nn

from bochner.catalog import ENTRY_POINT_GROUP, spec
from bochner.feature_map import FeatureMap
from bochner.fitting import UnfittedMap
from bochner.request import Request

Json = Any
CONTAINERS = {f"torch.nn:{name}": getattr(nn, name) for name in ("ModuleList", "ModuleDict")}
_INTERNAL = set(nn.Module().__dict__)


def describe(feature_map: FeatureMap) -> tuple[Json, dict[str, Tensor]]:
    """A description that JSON can hold, and the tensors that it names; `rebuild` is the inverse.

    Raises:     ValueError for a map with a part that is neither a setting, a tensor nor a module of an
                allowed class.
    Example:
        >>> import bochner
        >>> phi = bochner.make("positive", dim=2, num_features=4)
        >>> description, tensors = describe(phi)
        >>> description["class"], sorted(tensors)
        ('bochner.random_features:RandomFeatures', ['directions.omega'])
        >>> x = torch.ones(1, 2)
        >>> bool(rebuild(description, tensors).estimate(x, x) == phi.estimate(x, x))
        True
    """
    writer = _Writer()
    return writer.module(feature_map, ""), writer.tensors


def rebuild(description: Json, tensors: dict[str, Tensor]) -> FeatureMap:
    """The feature map that was described.

    Raises:     ValueError for a class that is not allowed or does not exist, and for tensors that are
                missing.
    """
    built = _Reader(tensors).module(description, "")
    if not isinstance(built, FeatureMap):
        raise ValueError(f"the description is of a {type(built).__name__}; expected a FeatureMap.")
    return built


def _packages() -> set[str]:
    """Packages whose classes may be written and read."""
    points = entry_points(group=ENTRY_POINT_GROUP)
    return {"bochner", *(point.value.partition(":")[0].partition(".")[0] for point in points)}


def _name_of(kind: type) -> str:
    for name, container in CONTAINERS.items():
        if kind is container:
            return name
    package = kind.__module__.partition(".")[0]
    if package not in _packages() or "<" in kind.__qualname__:
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} cannot be saved; expected classes of bochner, or of a"
            f" package with an entry point in {ENTRY_POINT_GROUP!r}."
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def _class_of(name: str) -> type:
    if name in CONTAINERS:
        return CONTAINERS[name]
    module, _, path = name.partition(":")
    if module.partition(".")[0] not in _packages():
        raise ValueError(
            f"the file asks for the class {name!r}; expected one of {sorted(_packages())}."
        )
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the file asks for the class {name!r}, which this installation does not have ({error});"
            " load it with the version that saved it."
        ) from error
    if not isinstance(found, type):
        raise ValueError(f"the file asks for the class {name!r}, which is no class.")
    return found


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.seen: dict[int, str] = {}
        self.kept: list[nn.Module] = []  # alive, so that no id is used twice

    def module(self, module: nn.Module, path: str) -> Json:
        if id(module) in self.seen:
            return {"same": self.seen[id(module)]}
        self.seen[id(module)] = path
        self.kept.append(module)
        if isinstance(module, UnfittedMap):
            return {"unfitted": module.name, "request": self.value(module.request, path)}
        plain = {name: x for name, x in vars(module).items() if name not in _INTERNAL}
        return {
            "class": _name_of(type(module)),
            "attributes": {n: self.value(x, f"{path}{n}") for n, x in plain.items()},
            "parameters": {n: self._tensor(x, path + n) for n, x in module._parameters.items()},
            "buffers": {n: self._tensor(x, path + n) for n, x in module._buffers.items()},
            "transient": sorted(module._non_persistent_buffers_set),
            "modules": {
                n: None if m is None else self.module(m, f"{path}{n}.")
                for n, m in module._modules.items()
            },
            "training": module.training,
        }

    def _tensor(self, tensor: Tensor | None, name: str) -> Json:
        if tensor is None:
            return None
        # the order of dimensions in memory decides in which order products are summed: the last bit
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda i: -strides[i])
        # a copy: safetensors wants tensors that share no memory
        own = tensor.detach().cpu().permute(order).clone(memory_format=torch.contiguous_format)
        self.tensors[name] = own
        return {"trained": tensor.requires_grad, "order": order}

    def value(self, value: Any, path: str) -> Json:
        match value:
            case None | bool() | int() | str():
                return value
            case float():
                return value if math.isfinite(value) else {"float": str(value)}
            case tuple():
                return {"tuple": [self.value(x, f"{path}.{i}") for i, x in enumerate(value)]}
            case list():
                return {"list": [self.value(x, f"{path}.{i}") for i, x in enumerate(value)]}
            case dict() if all(isinstance(name, str) for name in value):
                return {"dict": {n: self.value(x, f"{path}.{n}") for n, x in value.items()}}
            case torch.dtype():
                return {"dtype": str(value).removeprefix("torch.")}
            case torch.Generator():
                state = bytes(value.get_state().tolist())
                return {"generator": base64.b64encode(state).decode()}
            case Tensor():
                return {"tensor": path} | self._tensor(value, path)
            case nn.Module():
                return {"module": self.module(value, f"{path}.")}
        if type(value).__module__.partition(".")[0] not in _packages() or not hasattr(
            value, "__dict__"
        ):
            raise ValueError(f"{path} is {value!r}; such a part of a feature map cannot be saved.")
        attributes = {n: self.value(x, f"{path}.{n}") for n, x in vars(value).items()}
        return {"object": _name_of(type(value)), "attributes": attributes}


class _Reader:
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.seen: dict[str, nn.Module] = {}

    def module(self, description: Json, path: str) -> nn.Module:
        if "same" in description:
            return self.seen[description["same"]]
        if "unfitted" in description:
            request = self.value(description["request"])
            if not isinstance(request, Request):
                raise ValueError(f"the request of {description['unfitted']!r} is none.")
            return spec(description["unfitted"]).build(request)
        kind = _class_of(description["class"])
        if not issubclass(kind, nn.Module):
            raise ValueError(f"{description['class']!r} is no module; the file is not ours.")
        module = kind.__new__(kind)
        nn.Module.__init__(module)
        self.seen[path] = module
        for name, entry in description["parameters"].items():
            tensor = self._tensor(entry, path + name)
            if tensor is not None:
                tensor = nn.Parameter(tensor, requires_grad=entry["trained"])
            module.register_parameter(name, tensor)
        for name, entry in description["buffers"].items():
            persistent = name not in description["transient"]
            module.register_buffer(name, self._tensor(entry, path + name), persistent=persistent)
        for name, entry in description["modules"].items():
            part = None if entry is None else self.module(entry, f"{path}{name}.")
            module._modules[name] = part  # add_module refuses the names that containers use
        for name, entry in description["attributes"].items():
            vars(module)[name] = self.value(entry)
        return module.train(description["training"])

    def _tensor(self, entry: Json, name: str) -> Tensor | None:
        if entry is None:
            return None
        if name not in self.tensors:
            raise ValueError(f"the tensor {name!r} is missing; the files are not of one saving.")
        order = entry["order"]
        return self.tensors[name].permute([order.index(i) for i in range(len(order))])

    def value(self, value: Json) -> Any:
        if not isinstance(value, dict):
            return value
        match value:
            case {"float": text}:
                return float(text)
            case {"tuple": parts}:
                return tuple(self.value(x) for x in parts)
            case {"list": parts}:
                return [self.value(x) for x in parts]
            case {"dict": parts}:
                return {name: self.value(x) for name, x in parts.items()}
            case {"dtype": name}:
                dtype = getattr(torch, name, None)
                if not isinstance(dtype, torch.dtype):
                    raise ValueError(f"{name!r} is no dtype.")
                return dtype
            case {"generator": state}:
                generator = torch.Generator()
                generator.set_state(torch.tensor(list(base64.b64decode(state)), dtype=torch.uint8))
                return generator
            case {"tensor": name}:
                return self._tensor(value, name)
            case {"module": description}:
                return self.module(description, "")
        kind = _class_of(value["object"])
        if issubclass(kind, nn.Module):
            raise ValueError(f"{value['object']!r} is a module; the file is not ours.")
        built = object.__new__(kind)
        for name, entry in value["attributes"].items():
            object.__setattr__(built, name, self.value(entry))
        return built
