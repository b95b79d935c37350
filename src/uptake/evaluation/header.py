"""What was run, written down once for a report and for the key of its journal."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import uptake
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.records import digest_of
from uptake.lm.pretrained import Pretrained
from uptake.methods.contract.method import MethodSpec
from uptake.report.results import Header
from uptake.settings import describe
from uptake.store.datastore import Datastore


def header_of(
    model: Pretrained, plan: Plan, inputs: Inputs, store: Datastore | None, notes: Sequence[str] = ()
) -> Header:
    """Return what stands over the rows of a plan."""
    searched = plan.searches and store is not None
    looking = (
        {
            "k": ", ".join(map(str, plan.ks)),
            **{f"leak_{name}": value for name, value in asdict(plan.leak).items()},
        }
        if searched or plan.protocol.needs_store(plan)
        else {}
    )
    return Header(
        seed=plan.seed,
        versions=_versions(),
        model=_facts(model),
        store={} if store is None else {k: v for k, v in store.info().items() if k not in ("path", "bytes")},
        protocol={
            "name": plan.protocol.name,
            "batch": plan.batch,
            **plan.protocol.describe(inputs),
            **{f"most_{name}": most for name, most in asdict(plan.budget).items() if most is not None},
            **looking,
        },
        settings={
            name: {**described(spec), "select": describe(spec.select), "segment": spec.segment}
            for name, spec in plan.methods.items()
        },
        notes=tuple(notes),
    )


def described(spec: MethodSpec) -> dict[str, Any]:
    """Return a method's settings, and what is in the files they name: a name stays when a file changes."""
    settings = describe(spec.method)
    found = sorted(set(_weights(settings)))
    return settings | (
        {"networks": {Path(name).name: digest_of(Path(name))[:16] for name in found}} if found else {}
    )


def _weights(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield the files that settings called `weights` or `statistics` name, at any depth."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _weights(value)
        elif name in ("weights", "statistics") and isinstance(value, str) and Path(value).is_file():
            yield value


def _facts(model: Pretrained) -> dict[str, str | int]:
    return {
        "name": Path(model.name).name if Path(model.name).exists() else model.name,
        "fingerprint": model.fingerprint,
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        **({"quantisation": model.quantisation} if model.quantisation else {}),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "uptake": uptake.__version__}
    for package in ("torch", "transformers", "peft", "tokenizers", "pylance", "faiss-cpu", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
