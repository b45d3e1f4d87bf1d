"""``rose-hpc init``: the project it writes can be run, and nothing of the user's is overwritten."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from rose_hpc.cli.init import command, project_name, write_project
from rose_hpc.config import check_scripts, load_config
from rose_hpc.errors import UsageError
from rose_hpc.resources import resource_path


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's modules, imported as its scripts import each other."""
    write_project(tmp_path / "project")
    monkeypatch.syspath_prepend(tmp_path / "project")
    names = ("simulator", "update", "environment", "check")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        del sys.modules[name]


def test_init_writes_a_project_whose_configuration_is_valid(tmp_path):
    """Every file of the template is written, the configuration loads, names the folder, and its scripts are there."""
    directory = tmp_path / "it's a test"
    result = CliRunner().invoke(command, [str(directory)])
    assert result.exit_code == 0
    assert {path.name for path in directory.iterdir()} == {
        path.name for path in resource_path("templates/project").iterdir() if path.is_file()
    }
    config = load_config(directory / "config.toml")
    check_scripts(config, directory / "config.toml")
    assert config.name == "it-s-a-test"
    assert [environment.parameters for environment in config.environments.resolve()] == [
        {"spread": 0.5},
        {"spread": 1.0},
        {"spread": 2.0},
    ]  # fmt: skip - one row
    assert "@NAME@" not in (directory / "README.md").read_text()


def test_init_says_what_to_type_next(tmp_path):
    """The last line is the command that runs the project, quoted for a shell."""
    directory = tmp_path / "a b"
    result = CliRunner().invoke(command, [str(directory)])
    assert result.output.splitlines()[-1] == f"next: rose-hpc run '{directory}/config.toml'"


def test_init_overwrites_nothing(tmp_path):
    """Where a file of the same name is, nothing is written, and the error names it."""
    (tmp_path / "update.py").write_text("mine")
    with pytest.raises(UsageError, match=r"already has update\.py; name a new folder"):
        write_project(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["update.py"]
    assert (tmp_path / "update.py").read_text() == "mine"


def test_init_into_a_file_is_refused(tmp_path):
    """A path that is a file, or lies below one, is one line that says so."""
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match="name a folder to write in"):
            write_project(directory)


@pytest.mark.parametrize(
    ("folder", "name"), [("my-run", "my-run"), ("...", "project"), ("ä b!", "b"), ("x" * 80, "x" * 64), ("a.b", "a.b")]
)
def test_project_names_fit_a_configuration(tmp_path, folder, name):
    """Whatever the folder is called, the configuration's name is one that is allowed, and near it."""
    assert project_name(tmp_path / folder) == name


@pytest.mark.parametrize("seed", range(20))
def test_project_converges_for_any_seed(project, tmp_path, seed):
    """The toy problem passes its own threshold within ten iterations, whatever the seed."""
    config = load_config(tmp_path / "project" / "config.toml")
    simulate, improve = project["simulator"].simulate, project["update"].improve
    spreads = [environment.parameters["spread"] for environment in config.environments.resolve()]
    rng = np.random.default_rng(seed)
    mean, width = np.zeros(2), np.full(2, 5.0)
    for _ in range(10):
        trials = project["environment"].TRIALS
        actions = np.array([rng.normal(mean, spread * width) for spread in spreads for _ in range(trials)])
        mean, width = improve(actions, np.array([simulate(gains, rng) for gains in actions]))
        if np.mean([simulate(mean, rng) for _ in range(project["check"].TRIALS)]) > config.check.threshold:
            return
    pytest.fail(f"not converged: {mean}")
