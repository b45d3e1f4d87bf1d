"""Site profiles: what a cluster wants of every job, in a file of its own, with ``[slurm]`` and ``[pilot]``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from rose_hpc.config import assign, read_toml, where_of
from rose_hpc.config_faults import describe
from rose_hpc.config_models import Pilot, Slurm
from rose_hpc.config_types import Model
from rose_hpc.errors import ConfigError, UsageError
from rose_hpc.resources import resource_path


class Site(Model):
    """What a cluster wants of every job; paths are absolute once it is loaded."""

    slurm: Slurm = Slurm()
    """Slurm's settings."""
    pilot: Pilot = Pilot()
    """RADICAL-Pilot's settings."""


def site_path(name: Path) -> Path:
    """The profile at ``name``, or the shipped one of that name."""
    if name.exists() or name.suffix or len(name.parts) > 1:
        return name
    try:
        return resource_path(f"configs/sites/{name}.toml")
    except UsageError:
        shipped = ", ".join(sorted(path.stem for path in resource_path("configs/sites").glob("*.toml")))
        raise UsageError(f"there is no site profile {str(name)!r}", hint=f"shipped are {shipped}") from None


def load_site(path: Path | None, sets: Sequence[str] = ()) -> Site:
    """Read a profile and apply ``--set key=value``; without a file, the defaults.

    Raises:
        ConfigError: one line with file, line, key, what is wrong and a suggestion.
    """
    where = Path("--set") if path is None else path
    raw, lines = read_toml(path) if path is not None else ({}, _no_lines())
    overridden = {assign(raw, assignment): f"--set {assignment}" for assignment in sets}
    if foreign := sorted(raw.keys() - Site.model_fields.keys()):
        named = where_of(where, lines, (foreign[0],), overridden)
        raise ConfigError(f"{named}: unknown key", hint="a site profile has [slurm] and [pilot] only")
    try:
        site = Site.model_validate(raw)
    except ValidationError as error:
        key, message, hint = describe(error, raw, lines)
        raise ConfigError(f"{where_of(where, lines, key, overridden)}: {message}", hint=hint) from None
    return _absolute(site, (path or Path()).absolute().parent if path else Path.cwd())


def dump_site(site: Site) -> str:
    """The profile as TOML; :func:`load_site` reads an equal one back."""
    return tomli_w.dumps(site.model_dump(mode="json", exclude_none=True))


def under_config(site: Path, config: Path) -> list[str]:
    """What the profile adds to a configuration, as ``--set`` takes it: the keys that the configuration leaves open."""
    chosen = load_site(site)
    try:
        raw = tomllib.loads(config.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError):
        return []  # whoever loads it says what is wrong with it
    sets = []
    for table, settings in (("slurm", chosen.slurm), ("pilot", chosen.pilot)):
        own = raw.get(table, {})
        for key, value in settings.model_dump(mode="json", exclude_unset=True).items():
            if not isinstance(own, dict) or key not in own:
                sets.append(f"{table}.{tomli_w.dumps({key: value}).strip()}")
    return sets


def _absolute(site: Site, base: Path) -> Site:
    slurm = site.slurm
    paths: dict[str, Any] = {}
    for key in ("setup", "venv", "conda"):
        value = getattr(slurm, key)
        if value is not None and (key != "conda" or "/" in value):
            paths[key] = str((base / Path(value).expanduser()).absolute())
    return site.model_copy(update={"slurm": slurm.model_copy(update=paths)}) if paths else site


def _no_lines() -> Any:
    from rose_hpc.toml_lines import TomlLines

    return TomlLines()
