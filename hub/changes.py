"""The difference of two specs as sentences for people: `replicas: 1 -> 2`.

Pure. Specs are plain mappings as stored in etcd. Lists of named things (users, databases) are compared by name, other
lists as sets, so that a moved line is not reported as everything changed. Sizes are written as operators write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

SIZE_FIELDS = frozenset({"memory", "disk", "max_failover_lag", "lag_max_bytes"})
_UNITS = (("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10))

Spec = Mapping[str, object]


def describe_changes(old: Spec, new: Spec) -> tuple[str, ...]:
    """One sentence for each difference, in the order of the new spec's fields; empty when there is none."""
    return tuple(_of_mapping("", old, new))


def describe_new(spec: Spec, defaults: Spec) -> tuple[str, ...]:
    """One sentence `field: value` for each field of a new object that is not at its default."""
    return tuple(_of_new("", spec, defaults))


def size_text(value: int) -> str:
    """Bytes as Ki, Mi, Gi or Ti where that is exact to a tenth, such as 1.5Gi."""
    for unit, factor in _UNITS:
        tenths, rest = divmod(value * 10, factor)
        if tenths >= 10 and rest == 0:
            return f"{tenths / 10:g}{unit}"
    return str(value)


def _of_mapping(path: str, old: Spec, new: Spec) -> Iterator[str]:
    for name in [*new, *(name for name in old if name not in new)]:
        where = f"{path}.{name}" if path else name
        if name not in old:
            yield f"{where}: set to {_text(name, new[name])}"
        elif name not in new:
            yield f"{where}: removed, was {_text(name, old[name])}"
        else:
            yield from _of_value(where, name, old[name], new[name])


def _of_value(where: str, name: str, old: object, new: object) -> Iterator[str]:
    if old == new:
        return
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        yield from _of_mapping(where, old, new)
    elif _is_list(old) and _is_list(new):
        yield from _of_list(where, _as_list(old), _as_list(new))
    else:
        yield f"{where}: {_text(name, old)} -> {_text(name, new)}"


def _of_list(where: str, old: Sequence[object], new: Sequence[object]) -> Iterator[str]:
    before, after = _by_name(old), _by_name(new)
    for name in after:
        if name not in before:
            yield f"{where}: added {name}"
    for name in before:
        if name not in after:
            yield f"{where}: removed {name}"
    for name in after:
        if name in before:
            yield from _of_value(f"{where}.{name}", name, before[name], after[name])
    if before == after:
        yield f"{where}: order changed to {', '.join(after) or 'none'}"


def _of_new(path: str, spec: Spec, defaults: Spec) -> Iterator[str]:
    for name, value in spec.items():
        where = f"{path}.{name}" if path else name
        default = defaults.get(name)
        if value == default:
            continue
        if isinstance(value, Mapping):
            yield from _of_new(where, value, default if isinstance(default, Mapping) else {})
        elif _is_list(value):
            yield f"{where}: {', '.join(_by_name(_as_list(value))) or 'none'}"
        else:
            yield f"{where}: {_text(name, value)}"


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _as_list(value: object) -> Sequence[object]:
    assert isinstance(value, Sequence)
    return value


def _by_name(items: Sequence[object]) -> dict[str, object]:
    """Items by what people call them."""
    return {_called(item): item for item in items}


def _called(item: object) -> str:
    """By its name; a rule by whom it is for; anything else by its text."""
    if isinstance(item, Mapping) and "name" in item:
        return str(item["name"])
    if isinstance(item, Mapping) and "user" in item and "database" in item:
        return ",".join(f"{part}={item[part]}" for part in ("user", "database") if item[part] is not None) or "anybody"
    return str(item)


def _text(name: str, value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and name in SIZE_FIELDS:
        return size_text(value)
    if isinstance(value, Mapping):
        said = {key: part for key, part in value.items() if part not in (None, False, 0, "")}
        return "{" + ", ".join(f"{key}: {_text(key, part)}" for key, part in said.items()) + "}"
    if _is_list(value):
        return ", ".join(_by_name(_as_list(value))) or "none"
    if isinstance(value, str) and (not value or value != value.strip()):
        return repr(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
