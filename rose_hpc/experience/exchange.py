"""To and from Minari's datasets: HDF5 with a group for each episode, https://minari.farama.org.

A Minari episode of T steps has T + 1 observations: the last is the one that follows the last step. Both directions are
written from the format's description, so that neither needs Minari.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from rose_hpc.errors import ExperienceError, FormatError, SchemaError, UsageError
from rose_hpc.experience.bank import ExperienceBank
from rose_hpc.experience.format import check_dataset, read_info
from rose_hpc.experience.hdf5 import reading
from rose_hpc.experience.schema import FLAGS, STANDARD, ShardInfo
from rose_hpc.experience.shard import ShardWriter
from rose_hpc.experience.unfailing import writing_new
from rose_hpc.refusals import named

log = logging.getLogger(__name__)

#: the version of Minari whose format this is
MINARI_VERSION = "0.5.4"
MAIN_FILE, METADATA = "main_data.hdf5", "metadata.json"
_NEXT = "next_observations"
_NAME = re.compile(r"[A-Za-z0-9_.-]+?(-v\d+)?")

Episode = dict[str, Any]


# -- to Minari ---------------------------------------------------------------------------------------------------------


def export_minari(
    paths: Sequence[str | Path], output: str | Path, *, attributes: Mapping[str, Any] | None = None
) -> int:
    """Write the episodes of banks or shards as a Minari dataset.

    ``output`` becomes a folder that ``MinariDataset(output / "data")`` opens, and ``minari.load_dataset(output.name)``
    where ``MINARI_DATASETS_PATH`` is its parent. An episode that its shard cut off ends truncated. Columns that Minari
    has no place for become ``infos``.

    Args:
        paths: of the files, in order.
        output: the folder to make.
        attributes: of the dataset, as ``algorithm_name`` or ``description``.

    Returns:
        How many episodes were written.

    Raises:
        UsageError: when the folder is there, or has a name that no dataset has.
        ExperienceError: columns missing that Minari needs, or no access.
    """
    output = Path(output)
    with named(ExperienceError, f"cannot write {output}"):
        exists = output.exists()
    if not _NAME.fullmatch(output.name) or exists:
        reason = "is there already" if exists else "has characters that no dataset's name has"
        raise UsageError(f"{output} {reason}", hint="name another --output")
    scratch = output.with_name(f".{output.name}.{secrets.token_hex(4)}.tmp")
    with ExperienceBank.open(paths) as bank:
        _check_columns(bank)
        try:
            with named(ExperienceError, f"cannot write {output}"):
                (scratch / "data").mkdir(parents=True)
                steps, count = _write_episodes(bank, scratch / "data" / MAIN_FILE)
                facts = {"dataset_id": output.name, "total_episodes": count, "total_steps": steps, **(attributes or {})}
                facts["dataset_size"] = round((scratch / "data" / MAIN_FILE).stat().st_size / 1e6, 1)
                (scratch / "data" / METADATA).write_text(json.dumps(facts | _metadata(bank)))
                scratch.rename(output)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return count


def _check_columns(bank: ExperienceBank) -> None:
    missing = [name for name in ("observations", "actions", "rewards", _NEXT) if name not in bank]
    if missing:
        hint = "an episode in Minari has them, and the observation after its last step"
        raise SchemaError(f"{bank.parts[0].path} has no column {', '.join(map(repr, missing))}", hint=hint)


def _metadata(bank: ExperienceBank) -> dict[str, Any]:
    spaces = {"observation_space": _space(bank, "observations"), "action_space": _space(bank, "actions")}
    return {
        **{name: json.dumps(space) for name, space in spaces.items()},
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "minari_version": MINARI_VERSION,
    }


def _space(bank: ExperienceBank, name: str) -> dict[str, Any]:
    """Gymnasium's space, as Minari writes it: Discrete for one integer from 0 on, else all that the dtype can hold."""
    column = bank[name]
    dtype, shape = _exported(column.dtype), list(column.shape[1:])
    stats = bank.stats(name)
    if not shape and np.dtype(dtype).kind in "iu" and len(bank) and float(stats.min) >= 0:
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": int(stats.max) + 1}
    info: Any = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    low, high = (int(info.min), int(info.max)) if info else (-np.inf, np.inf)
    bounds = {"low": np.full(shape, low).tolist(), "high": np.full(shape, high).tolist()}
    return {"type": "Box", "dtype": str(np.dtype(dtype)), "shape": shape, **bounds}


def _exported(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == np.bool_ else dtype.newbyteorder("=")


def _write_episodes(bank: ExperienceBank, path: Path) -> tuple[int, int]:
    episodes = bank.episodes
    further = [name for name in bank.columns if name not in STANDARD]
    with writing_new(path) as file:
        spans = zip(episodes.starts.tolist(), episodes.stops.tolist(), episodes.ended.tolist(), strict=True)
        for number, (start, stop, ended) in enumerate(spans):
            group = file.create_group(f"episode_{number}")
            group.attrs.update({"id": number, "total_steps": stop - start})
            for name, array in _episode(bank, start, stop, ended).items():
                group.create_dataset(name, data=array)
            observations, following = bank["observations"][start + 1 : stop], bank[_NEXT][start : stop - 1]
            infos = {name: bank[name][start:stop] for name in further}
            if not np.array_equal(observations, following, equal_nan=observations.dtype.kind == "f"):
                infos[_NEXT] = bank[_NEXT][start:stop]  # steps that do not begin where the one before ended
            for name, array in infos.items():
                group.create_dataset(f"infos/{name}", data=array)
    return int(episodes.lengths.sum()), len(episodes)


def _episode(bank: ExperienceBank, start: int, stop: int, ended: bool) -> Episode:
    rows = {name: np.asarray(bank[name][start:stop]) for name in ("observations", "actions", "rewards")}
    rows["observations"] = np.concatenate([rows["observations"], bank[_NEXT][stop - 1 : stop]])
    for name in ("observations", "actions"):
        rows[name] = rows[name].astype(_exported(rows[name].dtype))
    for name in FLAGS:
        rows[name] = np.array(bank[name][start:stop] if name in bank else np.zeros(stop - start, bool))
    rows["truncations"][-1] |= not ended
    return rows


# -- from Minari -------------------------------------------------------------------------------------------------------


def find_minari(path: Path) -> Path | None:
    """The data folder of a Minari dataset at ``path``; None when it is none."""
    for folder in (path / "data", path):
        if (folder / MAIN_FILE).is_file() and (folder / METADATA).is_file():
            return folder
    return None


def import_minari(folder: Path, output: Path, attributes: Mapping[str, Any] | None = None) -> ShardInfo:
    """Make a shard of a Minari dataset whose observations and actions are arrays.

    Args:
        folder: with its ``main_data.hdf5`` and ``metadata.json``.
        output: the shard.
        attributes: as for :class:`rose_hpc.ShardWriter`.

    Raises:
        FormatError: links, data in other files, or images stored as JPEG.
        SchemaError: observations or actions that are dicts, tuples or text.
        DamagedError: a file that HDF5 cannot read.
    """
    path = folder / MAIN_FILE
    _check_metadata(folder / METADATA)
    writer = ShardWriter(output, attributes=attributes)
    with reading(path) as file, writer:
        numbers = sorted(int(name[8:]) for name in file if re.fullmatch(r"episode_\d+", name))
        if not numbers:
            raise FormatError(f"{path} has no episodes", hint="is it a Minari dataset?")
        for number in numbers:
            writer.extend(**_steps(_own(file, f"episode_{number}", path), path))
    return read_info(output)


def _check_metadata(path: Path) -> None:
    """Refuse what cannot be read as arrays of numbers.

    Raises:
        FormatError: naming it.
    """
    try:
        facts = json.loads(path.read_text())
        spaces = {name: json.loads(facts.get(f"{name}_space") or "{}") for name in ("observation", "action")}
        for name, space in spaces.items():
            shape = space.get("shape", ())
            image = space.get("dtype") == "uint8" and len(shape) in (2, 3) and min(shape[:2]) >= 32
            if image and facts.get("jpeg_encoding", True):
                raise FormatError(f"{path}: {name}s are JPEG images", hint="write them with jpeg_encoding=False")
        if facts.get("data_format", "hdf5") != "hdf5":
            raise FormatError(f"{path}: the data are {facts['data_format']}, not HDF5", hint="convert it with Minari")
    except (ValueError, TypeError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} is not a Minari dataset's description", hint=str(error)) from error


def _steps(group: h5py.Group, path: Path) -> Episode:
    where = f"{path}: {group.name[1:]}"
    found = {name: _array(group, name, path) for name in ("observations", "actions", "rewards", *FLAGS)}
    steps = len(found["rewards"])
    if len(found["observations"]) != steps + 1:
        raise SchemaError(
            f"{where} has {len(found['observations'])} observations for {steps} steps",
            hint="an episode has one more than steps",
        )
    observations = found.pop("observations")
    rows = {"observations": observations[:-1], _NEXT: observations[1:], **found}
    if "infos" in group:
        infos = _own(group, "infos", path)
        for name in infos:
            if (array := _info(infos, name, steps, path)) is not None and (name == _NEXT or name not in rows):
                rows[name] = array
    return rows


def _own(group: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A group that is really in the file."""
    if group.get(name, getclass=True, getlink=True) is not h5py.HardLink:
        raise FormatError(f"{path}: '{name}' is a link", hint="store the data itself")
    found = group[name]
    if not isinstance(found, h5py.Group):
        raise SchemaError(f"{path}: '{name}' is not a group", hint="is it a Minari dataset?")
    return found


def _array(group: h5py.Group, name: str, path: Path) -> NDArray[Any]:
    """A dataset's content, once it is known to be numbers in this file."""
    where = f"{path}: {group.name[1:]}/{name}"
    if name not in group:
        raise SchemaError(f"{where} is not there", hint="is it a Minari dataset?")
    if group.get(name, getclass=True, getlink=True) is not h5py.HardLink:
        raise FormatError(f"{where} is a link", hint="store the data itself")
    if group.get(name, getclass=True) is not h5py.Dataset:
        raise SchemaError(f"{where} is a dict or a tuple", hint="only spaces that are one array can be a column")
    check_dataset(h5py.h5d.open(group.id, name.encode()), name, path)
    return np.asarray(group[name][()])


def _info(infos: h5py.Group, name: str, steps: int, path: Path) -> NDArray[Any] | None:
    """Further numbers, one for each step; None for anything else."""
    try:
        array = _array(infos, name, path)
    except ExperienceError as error:
        log.warning("left out: %s", error)
        return None
    if len(array) not in (steps, steps + 1):
        log.warning("left out: %s: infos/%s has %d rows for %d steps", path, name, len(array), steps)
        return None
    return array[len(array) - steps :]  # the first of one more came with the reset
