"""Methods by the names and settings people write: `ttt-nn`, `learning_rate=1e-4`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from uptake import methods
from uptake.methods.contract.method import MethodSpec
from uptake.settings import NoSuchSetting, apply, find


def method_specs(names: Sequence[str], settings: Sequence[str] = ()) -> dict[str, MethodSpec]:
    """Return the methods called `names`, with their settings.

    `name=value` sets all methods that have such a setting, themselves or else in their selection of
    passages; `method.name=value` one of them. Raises BadInput for a name or a setting that none of them has.
    """
    chosen = {name: methods.find(name) for name in names}
    for setting in settings:
        prefix, dot, rest = setting.partition(".")
        if dot and prefix in chosen:
            chosen[prefix] = _with(chosen[prefix], rest)
            continue
        having = [name for name, spec in chosen.items() if _has(spec, setting)]
        if not having:
            raise _unknown(chosen, setting)
        for name in having:
            chosen[name] = _with(chosen[name], setting)
    return chosen


def _unknown(chosen: Mapping[str, MethodSpec], setting: str) -> NoSuchSetting:
    """Return the error of a setting that no method has, with the nearest name that any of them knows."""
    errors = []
    for spec in chosen.values():
        try:
            _place(spec, setting)
        except NoSuchSetting as error:
            errors.append(error)
    return _nearest(errors)


def _nearest(errors: Iterable[NoSuchSetting]) -> NoSuchSetting:
    """Return the error that says most of what may have been meant: a method without settings says least."""
    return min(errors, key=lambda error: (error.miss, -len(error.names)))


def _place(spec: MethodSpec, setting: str) -> tuple[str, str]:
    """Return which part of the spec has the setting, and the setting as that part knows it, or NoSuchSetting.

    Parts are its method and its selection; `select.` before a name means the selection alone.
    """
    name = setting.partition("=")[0].strip().replace("-", "_")
    own = name.removeprefix("select.")
    errors = []
    for part in ("method", "select") if own == name else ("select",):
        try:
            find(getattr(spec, part), own)
            return part, setting.strip().removeprefix("select.")
        except NoSuchSetting as error:
            errors.append(error)
    raise _nearest(errors)


def _with(spec: MethodSpec, setting: str) -> MethodSpec:
    part, own = _place(spec, setting)
    return replace(spec, **{part: apply(getattr(spec, part), own)})


def _has(spec: MethodSpec, setting: str) -> bool:
    try:
        _place(spec, setting)
    except NoSuchSetting:
        return False
    return True
