"""Configuration files: one YAML file per process -> a frozen pydantic model, or an error a person can act on.

`load_config(path, Model)` reads, checks and returns; every error is a UserError whose `object` is `file:line: field`,
so an editor can jump there. What goes wrong silently with plain YAML is refused here: unknown fields, a field given
twice, a number where text is wanted, more than one document, a file that is no mapping.

Relative paths in a file count from the folder of that file, not from wherever the process happened to be started.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from core.errors import UserError
from core.ids import check_name
from core.log import Format

MAX_CONFIG_BYTES = 1 << 20  # larger is not a configuration but a mistake
Loc = tuple[int | str, ...]

_HOST_PORT = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>\d{1,5})")


class Config(BaseModel):
    """Base of all configurations and their parts: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class LogConfig(Config):
    """What every process says of its logs."""

    log_level: Annotated[str, AfterValidator(lambda text: _one_of(text, ("debug", "info", "warning", "error")))] = (
        "info"
    )
    log_format: Format = "auto"


def _one_of(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise PydanticCustomError("choice", "must be one of {choices}", {"choices": ", ".join(choices)})
    return text


def _node_name(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("name", "must be text")
    try:
        return check_name(value, "name")
    except ValueError as error:
        raise PydanticCustomError("name", "{reason}", {"reason": str(error)}) from error


def split_host_port(text: str) -> tuple[str, int]:
    """(host, port) of `host:port` or `[v6]:port`; ValueError tells the form."""
    match = _HOST_PORT.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"{text!r} is not an address: write HOST:PORT, such as 10.0.0.5:7400 or [fd00::5]:7400")
    return match["v6"] or match["host"], int(match["port"])


def _host_port(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("address", "must be text HOST:PORT, such as 10.0.0.5:7400")
    try:
        split_host_port(value)
    except ValueError as error:
        raise PydanticCustomError("address", "{reason}", {"reason": str(error)}) from error
    return value


def _from_file_folder(value: Path, info: ValidationInfo) -> Path:
    folder: Path | None = (info.context or {}).get("folder")
    return folder / value if folder is not None else value


Name = Annotated[str, BeforeValidator(_node_name)]
HostPort = Annotated[str, BeforeValidator(_host_port)]
FilePath = Annotated[Path, AfterValidator(_from_file_folder)]

M = TypeVar("M", bound=Config)


def require(holds: bool, field: str, otherwise: str) -> None:
    """For model validators: a relation between fields that must hold, blamed on one of them."""
    if not holds:
        raise PydanticCustomError("relation", "{otherwise}", {"field": field, "otherwise": otherwise})


def load_config(path: Path, model: type[M]) -> M:
    """The checked configuration of `path`; UserError names file, line and field."""
    tree, raw = _read(path)
    try:
        return model.model_validate(raw, context={"folder": path.absolute().parent})
    except ValidationError as error:
        raise _user_error(path, tree, error.errors(include_url=False)) from error


class _Loader(yaml.SafeLoader):
    """Closes as other things do. Making one may fail already: it looks at the first characters."""

    def close(self) -> None:
        self.dispose()


def _read(path: Path) -> tuple[yaml.Node | None, dict[Any, Any]]:
    """The file's YAML nodes, which know their lines, and its mapping."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", object=str(path), hint="Name the file with --config."
        ) from error
    if len(data) > MAX_CONFIG_BYTES:
        raise UserError(f"has {len(data)} bytes, more than {MAX_CONFIG_BYTES}", object=str(path))
    try:
        with contextlib.closing(_Loader(data)) as loader:
            tree = loader.get_single_node()
            _refuse_doubles(path, tree)
            raw = loader.construct_document(tree) if tree is not None else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not valid YAML: {_yaml_problem(error)}", object=str(path)) from error
    if not isinstance(raw, dict):
        raise UserError("must be a mapping, one `field: value` a line", object=str(path))
    return tree, raw


def _yaml_problem(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error)


def _refuse_doubles(path: Path, node: yaml.Node | None) -> None:
    """YAML lets the last of two equal fields win; a person who wrote both meant something else."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_doubles(path, item)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            raise UserError("is given twice; keep one of them", object=f"{path}:{key.start_mark.line + 1}: {name}")
        seen.add(name)
        _refuse_doubles(path, value)


def _user_error(path: Path, tree: yaml.Node | None, problems: list[ErrorDetails]) -> UserError:
    first, *others = problems
    loc = _loc(first)
    more = "".join(f"; {_dotted(_loc(other))}: {_sentence(other)}" for other in others[:4])
    return UserError(_sentence(first) + more, object=f"{path}:{_line(tree, loc)}: {_dotted(loc)}")


def _loc(problem: ErrorDetails) -> Loc:
    """Where the problem is; a broken relation names its field itself."""
    field = problem.get("ctx", {}).get("field") if problem["type"] == "relation" else None
    return (*problem["loc"], field) if isinstance(field, str) else problem["loc"]


def _dotted(loc: Loc) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "file"


def _sentence(problem: ErrorDetails) -> str:
    if problem["type"] == "extra_forbidden":
        return "is not a known field; check the spelling"
    if problem["type"] == "missing":
        return "is required"
    message = problem["msg"].removeprefix("Value error, ")
    shown = problem.get("input")
    if isinstance(shown, str | int | float) and problem["type"] not in {"name", "address", "relation"}:
        return f"{message[0].lower()}{message[1:]}, got {shown!r}"
    return message


def _line(node: yaml.Node | None, loc: Loc) -> int:
    """Line of the innermost part of `loc` that stands in the file; 1 when none does."""
    line = 1
    for part in loc:
        found: tuple[yaml.Node, yaml.Node] | None = None
        if isinstance(node, yaml.MappingNode):
            found = next((pair for pair in node.value if pair[0].value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            break
        line = found[0].start_mark.line + 1
        node = found[1]
    return line
