"""What a plan is to a journal: everything that decides its rows, each part named by its content.

A path or a name stays when what lies there changes, so weights, stores, networks and texts are named by
digests. What does not change a row (workers, notes, where files lie) is left out.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from uptake.adaptation.delta import fingerprint
from uptake.adaptation.tensors import digest
from uptake.codec import plain
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.records import digest_of
from uptake.lm.pretrained import Pretrained
from uptake.report.results import Header
from uptake.store.datastore import Datastore

_UNNAMED = ("_name_or_path", "transformers_version")  # of a model's config: they change nothing it computes


def identity(
    lm: Pretrained, plan: Plan, inputs: Inputs, store: Datastore | None, header: Header
) -> dict[str, str]:
    """Return the parts of a plan by name: two runs give the same rows if all are equal."""
    searched = store if plan.searches else None
    views = sorted({view for spec in plan.methods.values() for view in spec.method.views})
    return {
        "seed": str(plan.seed),
        "model": named(model_identity(lm)),
        "store": ""
        if searched is None
        else named([searched.contents, *((view, searched.view_contents(view)) for view in views)]),
        "protocol": named([header.protocol, plan.showcases]),
        "methods": named({name: header.settings[name] for name in sorted(header.settings)}),
        "networks": named(
            {
                name: [*sorted(files_in(header.settings[name])), *_in_memory(spec)]
                for name, spec in plan.methods.items()
            }
        ),
        "versions": named(header.versions),
        **{name: named(text) for name, text in inputs.parts().items()},
    }


def key_of(parts: Mapping[str, str]) -> str:
    """Return the key of the journal of a plan of these parts."""
    return named(parts)


def model_identity(lm: Pretrained) -> list[Any]:
    """Return what tells a model's answers from another's: weights, tokenizer, configuration, precision."""
    config: Any = lm.module.config
    return [
        lm.weights_fingerprint,
        lm.tokenizer.fingerprint,
        {name: value for name, value in config.to_dict().items() if name not in _UNNAMED},
        str(lm.dtype),
        str(lm.device),
    ]


def files_in(settings: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, digest) of each file, or folder of a model, that settings name, at any depth."""
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from files_in(value)
    elif isinstance(settings, tuple | list):
        for value in settings:
            yield from files_in(value)
    elif isinstance(settings, str) and settings:
        with contextlib.suppress(OSError, ValueError):  # most texts are no path at all
            path = Path(settings)
            if path.is_file():
                yield settings, digest_of(path)
            elif (path / "config.json").is_file():
                found = sorted(file for file in path.iterdir() if file.is_file())
                yield settings, named([(file.name, digest_of(file)) for file in found])


def _in_memory(value: Any) -> Iterator[str]:
    """Yield a digest of each network and tensor that a method holds in memory, at any depth."""
    if isinstance(value, nn.Module):
        yield fingerprint(value)
    elif isinstance(value, Tensor):
        yield digest([("tensor", value)])
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            yield from _in_memory(getattr(value, part.name))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _in_memory(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _in_memory(each)


def named(value: object) -> str:
    """Return 32 hexadecimal digits that name plain data, dataclasses included."""
    text = json.dumps(plain(value), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=16).hexdigest()
