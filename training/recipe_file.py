"""Recipes on disk: `config.yaml` in a run directory, and what may change while a run goes on."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from pipelines.errors import DataError
from pipelines.files import write_atomically
from training.config import ConfigError, Recipe
from training.records import read_record

T = TypeVar("T")


def save_recipe(recipe: Recipe, file: Path) -> None:
    """Write a recipe as YAML, atomically."""
    write_atomically(file, to_yaml(recipe))


def to_yaml(recipe: Recipe) -> str:
    """The text of `config.yaml`."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


def portable(recipe: Recipe) -> Recipe:
    """The recipe without folders of one machine: data is known by its fingerprint."""
    teacher = recipe.schedule.teacher and Path(recipe.schedule.teacher.name)
    data = dataclasses.replace(recipe.data, path=Path(recipe.data.path.name), root=None)
    return dataclasses.replace(recipe, data=data, schedule=dataclasses.replace(recipe.schedule, teacher=teacher))


def load_recipe(file: Path) -> Recipe:
    """Read a recipe back.

    Raises:
        DataError: the file is missing or is not a recipe.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; {file.parent} is not a run directory of training.train")
    try:
        return from_dict(Recipe, yaml.safe_load(file.read_text()))
    except (yaml.YAMLError, TypeError, ValueError, ConfigError, DataError) as error:
        raise DataError(f"{file}: not a recipe ({' '.join(str(error).split())})") from None


def recorded_recipe(file: Path) -> Recipe:
    """The recipe of the run that a record of training.evaluate tells of.

    Raises:
        DataError: there is no such record, it is of something else, or its recipe cannot be read.
    """
    record = read_record(file)
    if record["kind"] != "sweep":
        raise DataError(f"{file}: a record of {record['kind']}, which has no recipe; name a sweep's")
    try:
        return from_dict(Recipe, record["recipe"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise DataError(f"{file}: its recipe cannot be read ({' '.join(str(error).split())})") from None


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values for YAML and JSON."""
    return dataclasses.asdict(
        recipe,
        dict_factory=lambda rows: {k: str(v) if isinstance(v, Path) else v for k, v in rows},
    )


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """The inverse of `to_dict`; unknown keys are errors."""
    hints = get_type_hints(kind)
    unknown = set(values) - set(hints) if isinstance(values, dict) else {str(values)}
    if unknown:
        raise ValueError(f"{kind.__name__} knows no {unknown.pop()!r}")
    return kind(**{key: _revive(hints[key], value) for key, value in values.items()})


# May change while a run goes on: where the data lies (its contents are checked) and what is written down.
HARMLESS = {
    "name",
    "data.path",
    "data.root",
    "data.loader",
    "data.threads",
    "data.prefetch",
    "data.hardware_load",
    "data.policy",
    "data.max_bad",
    "schedule.log_steps",
    "schedule.picture_sweeps",
    "schedule.profile",
    "schedule.keep",
    "schedule.patience",
}


def first_difference(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> str | None:
    """The first setting in which two recipes differ and results may too, as `data.size: 64 → 84`, or None."""
    for key in a:
        if f"{prefix}{key}" in HARMLESS:
            continue
        if isinstance(a[key], dict):
            found = first_difference(a[key], b.get(key, {}), f"{prefix}{key}.")
            if found:
                return found
        elif a[key] != b.get(key):
            return f"{prefix}{key}: {a[key]} → {b.get(key)}"
    return None


def settings_that_matter(recipe: dict[str, Any]) -> dict[str, Any]:
    """All settings of a recipe that results depend on, flat, by names such as `optim.lr`."""
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        flat |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in flat.items() if name not in HARMLESS}


def _revive(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)
    if value is not None and hint in (Path, Path | None):
        return Path(value)
    return value
