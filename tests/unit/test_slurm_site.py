"""Site profiles: read, refused in one line, and laid under a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from rose_hpc.config import load_config
from rose_hpc.config_models import Config
from rose_hpc.errors import ConfigError, UsageError
from rose_hpc.resources import resource_path
from rose_hpc.slurm.setup import setup_files
from rose_hpc.slurm.site import dump_site, load_site, site_path, under_config

SHIPPED = sorted(resource_path("configs/sites").glob("*.toml"))
CONFIG = """
[environments]
command = "{python} e.py"
[environments.grid]
x = [1]
[update]
command = "{python} u.py"
[loop]
max_iterations = 1
[slurm]
nodes = 3
"""


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profiles_load(path):
    """Every shipped profile is one, is found by its name, and says its source and whether it was tried there."""
    assert load_site(site_path(Path(path.stem))).slurm.nodes >= 1
    text = path.read_text()
    assert path.stem == "generic" or ("NOT TRIED THERE" in text and "https://" in text)


def test_there_are_three():
    """A generic profile and those of two machines are shipped."""
    assert {"generic"} < {path.stem for path in SHIPPED}
    assert len(SHIPPED) >= 3


def test_commented_keys_of_the_generic_profile_exist(tmp_path):
    """What the generic profile shows in comments can be uncommented."""
    text = resource_path("configs/sites/generic.toml").read_text()
    lines = [line.removeprefix("# ") if line.startswith("# ") and " = " in line else line for line in text.splitlines()]
    (tmp_path / "all.toml").write_text("\n".join(lines))
    site = load_site(tmp_path / "all.toml")
    assert len(site.slurm.model_fields_set) > 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[slurm]\nnode = 3\n", r"s\.toml:2: slurm\.node: unknown key; did you mean 'nodes'\?"),
        ('[slurm]\nwalltime_min = "an hour"\n', r"s\.toml:2: slurm\.walltime_min: must be a number"),
        ("[loop]\nmax_iterations = 3\n", r"s\.toml:1: loop: unknown key; a site profile has \[slurm\] and \[pilot\]"),
        ("[slurm\n", r"s\.toml:1: not TOML"),
    ],
)
def test_faults_are_one_line(tmp_path, text, message):
    """A fault in a profile is told with file, line, key and what to write."""
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as fault:
        load_site(tmp_path / "s.toml")
    assert "\n" not in str(fault.value)


def test_an_unknown_name_lists_the_shipped_ones():
    """A name that is neither a file nor shipped is refused with those that are."""
    with pytest.raises(UsageError, match=r"no site profile 'frontir'; shipped are .*generic"):
        site_path(Path("frontir"))


def test_the_command_line_changes_a_profile():
    """--set reaches a profile's keys; without a file the defaults are changed."""
    assert load_site(None, ["slurm.nodes=4"]).slurm.nodes == 4
    with pytest.raises(ConfigError, match=r"--set slurm\.nodes=x"):
        load_site(None, ["slurm.nodes=x"])


def test_a_dumped_profile_is_the_same(tmp_path):
    """What a run keeps of its profile is read back equal, with paths that no longer depend on where it lay."""
    (tmp_path / "s.toml").write_text('[slurm]\nsetup = "setup.sh"\nmodules = ["a", "b"]\nmail_type = ["END"]\n')
    site = load_site(tmp_path / "s.toml")
    assert site.slurm.setup == str(tmp_path / "setup.sh")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/s.toml").write_text(dump_site(site))
    assert load_site(tmp_path / "other/s.toml") == site


def test_a_configuration_wins_over_the_profile(tmp_path):
    """A profile fills what [slurm] leaves open, and changes nothing that stands there."""
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "s.toml").write_text(
        '[slurm]\nnodes = 1\npartition = "a \\"b\\""\nmodules = ["x", "y"]\nwalltime_min = 5\n'
    )
    config: Config = load_config(tmp_path / "c.toml", sets=under_config(tmp_path / "s.toml", tmp_path / "c.toml"))
    slurm = config.slurm
    assert (slurm.nodes, slurm.partition, slurm.modules, slurm.walltime_min) == (3, 'a "b"', ("x", "y"), 5)


def test_setup_is_data(tmp_path):
    """What a job needs first becomes files of plain lines; a venv or conda brings its own interpreter."""
    (tmp_path / "v/bin").mkdir(parents=True)
    (tmp_path / "v/bin/activate").touch()
    (tmp_path / "setup.sh").touch()
    base = load_site(None).slurm
    assert setup_files(base, tmp_path).keys() == {"python"}
    slurm = base.model_copy(update={"venv": "v", "modules": ("a", "b"), "setup": "setup.sh"})
    assert setup_files(slurm, tmp_path) == {
        **{"script": (str(tmp_path / "setup.sh"),), "modules": ("a", "b"), "venv": (str(tmp_path / "v"),)},
    }
    assert setup_files(base.model_copy(update={"conda": "env"}), tmp_path) == {"conda": ("env",)}
    with pytest.raises(UsageError, match=r"slurm\.venv: there is no .*w/bin/activate"):
        setup_files(base.model_copy(update={"venv": "w"}), tmp_path)
