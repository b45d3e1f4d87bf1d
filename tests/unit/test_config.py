"""Configuration files: what is read, what is written back, and how a fault is told."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rose_hpc.config import Config, check_scripts, dump_config, fill, load_config, unnamed
from rose_hpc.errors import ConfigError

GOOD = """\
name = "cartpole"
seed = 0
[environments]
command = "{python} environment.py --epsilon {epsilon}"
timeout_s = 600
[environments.grid]
epsilon = [0.05, 0.1, 0.2]
[update]
command = "{python} update.py"
[check]
command = "{python} check.py"
threshold = 200.0
[loop]
max_iterations = 100
"""
LISTED = """\
environments.command = "./simulate {speed}"
[[environments.list]]
name = "slow"
parameters = { speed = 1 }
[[environments.list]]
name = "fast"
command = "./faster {speed}"
cores_per_rank = 4
shard = false
[environments.list.parameters]
speed = 2.5
[update]
command = "true"
[loop]
max_iterations = 1
"""


@pytest.fixture
def load(tmp_path):
    """Read a configuration from text, from a file named c.toml."""

    def load(text: str, **overrides) -> Config:
        path = tmp_path / "c.toml"
        path.write_text(text)
        return load_config(path, **overrides)

    return load


def test_contract_example_is_read(load, tmp_path):
    """The keys of the contract arrive in the model, whole numbers as floats where a float is meant."""
    config = load(GOOD)
    assert (config.name, config.seed, config.base) == ("cartpole", 0, tmp_path.resolve())
    assert config.environments.timeout_s == 600.0
    assert config.check is not None
    assert (config.check.metric, config.check.operator, config.check.threshold) == ("MODEL_REWARD", ">", 200.0)
    assert config.update.argv_with({}) == (sys.executable, "update.py")


def test_grid_varies_its_last_key_fastest(load):
    """A grid becomes env_1, env_2, ..., the last key varying fastest, each with its own parameters and argv."""
    environments = load(
        GOOD.replace("epsilon = [0.05, 0.1, 0.2]", 'epsilon = [0.1, 0.2]\nmap = ["a b", "c"]').replace(
            "{epsilon}", "{epsilon} {map}"
        )
    ).environments.resolve()
    assert [e.name for e in environments] == ["env_1", "env_2", "env_3", "env_4"]
    assert [(e.parameters["epsilon"], e.parameters["map"]) for e in environments] == [
        (0.1, "a b"),
        (0.1, "c"),
        (0.2, "a b"),
        (0.2, "c"),
    ]  # fmt: skip - a row of pairs
    assert environments[0].argv[1:] == ("environment.py", "--epsilon", "0.1", "a b")


def test_list_inherits_what_it_does_not_say(load):
    """A listed environment takes command, limits and resources from [environments] unless it has its own."""
    slow, fast = load(LISTED).environments.resolve()
    assert (slow.name, slow.argv, slow.cores_per_rank, slow.shard) == ("slow", ("./simulate", "1"), 1, True)
    assert (fast.name, fast.argv, fast.cores_per_rank, fast.shard) == ("fast", ("./faster", "2.5"), 4, False)


def test_one_environment_without_grid_or_list(load):
    """Neither grid nor list means one environment, env_1, without parameters."""
    config = load('environments.command = "a"\nupdate.command = "b"\nloop.max_iterations = 1\n')
    (only,) = config.environments.resolve()
    assert (only.name, only.parameters) == ("env_1", {})


@pytest.mark.parametrize(("metric", "operator"), [("mean_squared_error_mse", "<"), ("mine", ">")])
def test_operator_comes_from_the_metric(load, metric, operator):
    """Without an operator, ROSE's for its metrics and > for others is used, and written out."""
    config = load(GOOD.replace("threshold", f'metric = "{metric}"\nthreshold'))
    assert f'operator = "{operator}"' in dump_config(config)


def test_equal_sign_of_rose_means_equality(load):
    """ROSE's "=" is read as ==, also for a metric whose own operator is another."""
    config = load(GOOD.replace("threshold", 'operator = "="\nthreshold'))
    assert config.check is not None
    assert config.check.operator == "=="


def test_overrides_win_in_order(load):
    """--set reads values as TOML, falls back to strings, makes tables, and the named options win over it."""
    config = load(
        GOOD,
        sets=["loop.max_iterations=5", "slurm.partition=debug", "environments.grid.epsilon=[0.5]", "seed=3", "seed=4"],
        max_iterations=7,
    )
    assert (config.loop.max_iterations, config.slurm.partition, config.seed) == (7, "debug", 4)
    assert len(config.environments.resolve()) == 1


def test_frozen(load):
    """A configuration cannot be changed in place."""
    with pytest.raises(ValueError, match="frozen"):
        load(GOOD).loop.max_iterations = 3


def test_dump_records_the_base_folder(load, tmp_path):
    """A dumped configuration means the same wherever its file lies: the base folder is in it."""
    config = load(GOOD)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.toml").write_text(dump_config(config))
    assert load_config(elsewhere / "config.toml") == config


FAULTS = {
    "unknown key": (("timeout_s", "timeout"), "c.toml:5: environments.timeout: unknown key; did you mean 'timeout_s'?"),
    "unknown table": (("[update]", "[upate]"), "c.toml:8: upate: unknown key (and 1 more); did you mean 'update'?"),
    "key of another table": (
        ("max_iterations = 100", "max_iterations = 100\nthreshold = 4"),
        "c.toml:15: loop.threshold: unknown key; did you mean 'check.threshold'?",
    ),
    "duplicate key": (
        ("seed = 0", "seed = 0\nseed = 1"),
        "c.toml:3: seed: is there twice, first in line 2; remove one",
    ),
    "duplicate table": (("[loop]", "[update]"), "c.toml:13: update: is there twice, first in line 8; remove one"),
    "wrong type": (("threshold = 200.0", "threshold = 'x'"), "c.toml:12: check.threshold: must be a number, not 'x'"),
    "bool is no number": (("= 100", "= true"), "c.toml:14: loop.max_iterations: must be a whole number, not true"),
    "fraction": (("= 100", "= 1.5"), "c.toml:14: loop.max_iterations: must be a whole number, not 1.5"),
    "zero": (("= 100", "= 0"), "c.toml:14: loop.max_iterations: must be at least 1, not 0"),
    "negative time": (("600", "-1"), "c.toml:5: environments.timeout_s: must be greater than 0, not -1"),
    "not finite": (("200.0", "nan"), "c.toml:12: check.threshold: must be a finite number, not nan"),
    "date": (
        ("seed = 0", "seed = 2026-01-01"),
        "c.toml:2: seed: must be a whole number, not datetime.date(2026, 1, 1)",
    ),
    "empty list": (("[0.05, 0.1, 0.2]", "[]"), "c.toml:7: environments.grid.epsilon: is empty; give at least one"),
    "empty grid": (("epsilon = [0.05, 0.1, 0.2]", ""), "c.toml:6: environments.grid: is empty; give at least one"),
    "grid of scalars": (("[0.05, 0.1, 0.2]", "0.1"), "c.toml:7: environments.grid.epsilon: must be a list, not 0.1"),
    "missing threshold": (
        ("threshold = 200.0\n", ""),
        "c.toml:10: check.threshold: is missing; add threshold = ... to [check]",
    ),
    "missing update": (('[update]\ncommand = "{python} update.py"\n', ""), "c.toml: update: is missing; add [update]"),
    "missing command": (
        ('command = "{python} environment.py --epsilon {epsilon}"\n', ""),
        'c.toml:3: environments: has no command; add command = "..." to [environments]',
    ),
    "no end": (
        (GOOD[GOOD.index("[check]") :], ""),
        "c.toml: has neither [check] nor loop.max_iterations, so it would never end; add one of them",
    ),
    "empty command": (
        ('"{python} update.py"', '" "'),
        'c.toml:9: update.command: the command is empty; write one, e.g. "{python} environment.py"',
    ),
    "open quote": (
        ("{python} update.py", "it's"),
        'c.toml:9: update.command: command "it\'s" cannot be split: no closing quotation',
    ),
    "unknown placeholder": (
        ("{epsilon}", "{epsilo}"),
        "c.toml:4: environments.command: unknown placeholder {epsilo}; did you mean 'epsilon'?",
    ),
    "parameter in update": (
        ("update.py", "{epsilon}"),
        "c.toml:9: update.command: unknown placeholder {epsilon}; known here: python",
    ),
    "operator": (
        ("threshold = 200.0", "threshold = 200.0\noperator = '=>'"),
        "c.toml:13: check.operator: must be '>', '>=', '<', '<=' or '==', not '=>'",
    ),
    "name": (
        ('"cartpole"', '"a/b"'),
        "c.toml:1: name: must be 1 to 64 of A-Z a-z 0-9 _ . - (and not '.' or '..'), not 'a/b'",
    ),
    "dots": (
        ('"cartpole"', '".."'),
        "c.toml:1: name: must be 1 to 64 of A-Z a-z 0-9 _ . - (and not '.' or '..'), not '..'",
    ),
    "reserved parameter": (
        ("epsilon = ", "python = "),
        "c.toml:6: environments.grid: parameter 'python' must be a word (letters, digits, _ -) other than 'python'",
    ),
    "huge grid": (
        ("epsilon = [0.05, 0.1, 0.2]", "\n".join(f"{key} = {list(range(100))}" for key in ("epsilon", "b", "c"))),
        "c.toml:6: environments.grid: has more than 100000 combinations",
    ),
    "several": (
        ("= 100", "= 0\n[retention]\npolicies = 'none'\nbanks = 0"),
        "c.toml:14: loop.max_iterations: must be at least 1, not 0 (and 2 more)",
    ),
    "either or": (
        ("= 100", "= 1\n[retention]\npolicies = 'none'"),
        "c.toml:16: retention.policies: must be 'all' or a whole number, not 'none'",
    ),
    "slurm option": (
        ("= 100", "= 1\n[slurm]\nextra = ['-x']"),
        'c.toml:16: slurm.extra[0]: must start with "--", e.g. "--comment=mine", not \'-x\'',
    ),
    "control character": (
        ("= 100", '= 1\n[slurm]\naccount = "a\\nb"'),
        "c.toml:16: slurm.account: must be one line of visible text, not 'a\\nb'",
    ),
}


@pytest.mark.parametrize(("change", "line"), FAULTS.values(), ids=FAULTS)
def test_fault_is_one_line(load, tmp_path, change, line):
    """Every fault is one line with file, line, key, what is wrong, and what to do where that can be known."""
    assert change[0] in GOOD
    with pytest.raises(ConfigError) as caught:
        load(GOOD.replace(*change))
    assert str(caught.value) == f"{tmp_path}/{line}"


LIST_FAULTS = {
    "case": (
        ('"fast"', '"SLOW"'),
        "6: environments.list[1].name: 'SLOW' is taken by 'slow'; names differ by more than case",
    ),
    "own command": (
        ("./faster {speed}", "{spee}"),
        "7: environments.list[1].command: unknown placeholder {spee}; did",
    ),
    "shared command": (
        ("simulate {speed}", "{spee}"),
        "1: environments.command: unknown placeholder {spee}; did you mean",
    ),
    "no command": (
        ('environments.command = "./simulate {speed}"', ""),
        "2: environments.list[0]: environment 'slow' has no",
    ),
    "nested table": (
        ("speed = 2.5", "speed = inf"),
        "11: environments.list[1].parameters.speed: must be a finite number",
    ),
    "inline table": (
        ("speed = 1 ", "speed = nan "),
        "4: environments.list[0].parameters.speed: must be a finite number",
    ),
    "both": (
        ("[update]", "[environments.grid]\nspeed = [1]\n[update]"),
        "2: environments.list: stands beside a grid",
    ),
}


@pytest.mark.parametrize(("change", "line"), LIST_FAULTS.values(), ids=LIST_FAULTS)
def test_fault_in_a_list_names_its_entry(load, tmp_path, change, line):
    """A fault inside [[environments.list]] is told with the entry's index and the line where it stands."""
    assert change[0] in LISTED
    with pytest.raises(ConfigError) as caught:
        load(LISTED.replace(*change))
    assert str(caught.value).startswith(f"{tmp_path}/c.toml:{line}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb = {python} x\n", "2: not TOML: "),
        ("a = 1\nb = x\n", "2: not TOML: invalid value in 'b = x'; text needs quotes"),
        ("a = [1,\n", "2: not TOML: "),
    ],
)
def test_syntax_error_names_its_line(load, text, line):
    """A file that is not TOML is refused with the line, and with that line's text."""
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert f"c.toml:{line}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            {"sets": ["loop.max_iteration=5"]},
            "--set loop.max_iteration=5: loop.max_iteration: unknown key; did",
        ),
        ({"sets": ["name.x=5"]}, "--set name.x=5: 'name' is not a table"),
        ({"sets": ["loop"]}, "--set loop: not of the form key=value"),
        ({"seed": -1}, "--seed -1: seed: must be at least 0, not -1"),
        ({"max_iterations": 0}, "--max-iterations 0: loop.max_iterations: must be at least 1, not 0"),
    ],
)
def test_fault_of_an_override_names_the_option(load, override, message):
    """What the command line got wrong is told as the command line's, not as the file's."""
    with pytest.raises(ConfigError) as caught:
        load(GOOD, **override)
    assert str(caught.value).startswith(message)


def test_files_that_cannot_be_read(tmp_path):
    """A missing file, a folder and a file that is not UTF-8 are one line each, with the next step."""
    (tmp_path / "latin.toml").write_bytes(b'a = 1\nname = "caf\xe9"\n')
    for name, message in [("no.toml", "rose-hpc init"), ("", "is a folder"), ("latin.toml", "latin.toml:2: not UTF-8")]:
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / name)


def test_missing_script_is_named_with_a_suggestion(load, tmp_path):
    """A script that is not there is told with the line of its command and the file that may be meant."""
    config = load(GOOD)
    for name in ("environment.py", "updates.py", "check.py"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError) as caught:
        check_scripts(config, tmp_path / "c.toml")
    assert str(caught.value) == (
        f"{tmp_path}/c.toml:9: update.command: no script 'update.py' in {config.base}; did you mean 'updates.py'?"
    )
    (tmp_path / "updates.py").rename(tmp_path / "update.py")
    check_scripts(config, tmp_path / "c.toml")


@pytest.mark.parametrize("options", ["-u", "-S -E", "-W error", "-X dev -Wignore::DeprecationWarning"])
def test_a_missing_script_is_found_behind_options(load, options):
    """An interpreter's own options do not hide the script; a module, or code, is none."""
    with pytest.raises(ConfigError, match=r"environments\.command: no script 'environment\.py'"):
        check_scripts(load(GOOD.replace("{python} environment.py", f"{{python}} {options} environment.py")))
    for nothing in ("-c pass", "-m pass", "-", "-Sc pass"):
        other = GOOD.replace("{python} environment.py", f"{{python}} {options} {nothing} gone.py {{epsilon}}")
        with pytest.raises(ConfigError, match=r"update\.command: no script"):
            check_scripts(load(other))


def test_a_missing_folder_is_named(load, tmp_path):
    """Where tasks would run must be there, also for functions, whose module may be installed elsewhere."""
    with pytest.raises(ConfigError, match=f"base: there is no folder {tmp_path}/away; it is where tasks run"):
        check_scripts(load('base = "away"\n' + GOOD))


def test_missing_program_is_named(load, tmp_path):
    """Programs are looked for on PATH, or in the file's folder when written with a slash, and must be executable."""
    config = load(LISTED)
    for name in ("simulate", "faster"):
        (tmp_path / name).touch(mode=0o755)
    check_scripts(config)
    (tmp_path / "faster").chmod(0o644)
    refused = r"environments.list\[1\].command: program './faster' is not executable; chmod \+x .*/faster"
    with pytest.raises(ConfigError, match=refused):
        check_scripts(config)
    with pytest.raises(ConfigError, match=r"update\.command: program 'no-such-program' not found"):
        check_scripts(load(LISTED.replace('"true"', '"no-such-program"').replace("./faster", "true")))


def test_fill_never_makes_two_arguments_of_a_value():
    """A value stays inside its argument, whatever it holds, and no shell reads it."""
    assert fill("run --x={a} '{b} c' {{d}}", {"a": "1 2; rm *", "b": "$HOME"}) == (
        "run",
        "--x=1 2; rm *",
        "$HOME c",
        "{d}",
    )


def test_fill_writes_values_as_json_would():
    """Numbers are written by repr, booleans in lower case, lists and tables as JSON."""
    values = {"f": 1e-7, "i": 3, "t": True, "l": [1, "x"]}
    assert fill("{f} {i} {t} {l}", values) == ("1e-07", "3", "true", '[1, "x"]')


@given(values=st.lists(st.text(), min_size=1, max_size=4))
def test_fill_keeps_the_number_of_arguments(values):
    """Filling changes no argument's place: one placeholder, one argument, for any text."""
    command = " ".join(f"{{p{index}}}" for index in range(len(values)))
    assert fill(command, {f"p{index}": value for index, value in enumerate(values)}) == tuple(values)


@pytest.mark.parametrize("command", ["a {", "a }", "a {b", "a {b{c}}"])
def test_fill_refuses_lonely_braces(command):
    """A brace that is neither doubled nor part of a placeholder is refused, not passed on."""
    with pytest.raises(ConfigError, match="lonely"):
        fill(command, {"c": 1})


SWEEP = (
    GOOD.replace("update.py", "update.py {rate}")
    + """[sweep.grid]
rate = [0.1, 0.2]
size = ["s", "l"]
"""
)


def test_a_sweep_has_a_learner_for_every_combination(load):
    """The last key varies fastest; repeats follow each other; a list has names; all of it is written out and read."""
    config = load(SWEEP, sets=["sweep.repeat=2"])
    given = [(each.parameters["rate"], each.parameters["size"]) for each in config.learners]
    assert given == [(r, s) for r in (0.1, 0.2) for s in ("s", "l") for _ in range(2)]
    assert [each.label(number) for number, each in enumerate(config.learners)] == list("01234567")
    assert config.update.argv_with(config.learners[7].parameters)[-1] == "0.2"
    named = (
        SWEEP.partition("[sweep.grid]")[0]
        + """[[sweep.list]]
    name = "slow"
    parameters = { rate = 1e-7 }
    [[sweep.list]]
    parameters = { rate = 1.0, more = [1] }
    """
    )
    assert [each.label(number) for number, each in enumerate(load(named).learners)] == ["slow", "1"]
    repeated = load(named, sets=["sweep.repeat=2"]).learners
    assert [each.label(number) for number, each in enumerate(repeated)] == ["slow.0", "slow.1", "2", "3"]
    assert [each.parameters for each in load(GOOD).learners] == [{}]


def test_parameters_that_nothing_names(load, tmp_path):
    """A swept parameter without placeholder or keyword may be a slip: `plan` names it; whoever takes all takes it."""
    assert unnamed(load(SWEEP)) == ["size"]
    assert unnamed(load(SWEEP.replace("{rate}", "{rate} {size}"))) == []
    functions = re.sub(r'command = "{python} (update|check).py.*"', r'function = "tasks:\1"', SWEEP)
    source = "def update(*values, rate): pass\ndef check(value): pass\n"
    (tmp_path / "tasks.py").write_text(source)
    assert unnamed(load(functions)) == ["size"]
    (tmp_path / "tasks.py").write_text(source.replace("(value)", "(value, **others)"))
    assert unnamed(load(functions)) == []
    (tmp_path / "tasks.py").write_text("from elsewhere import *\n")
    assert unnamed(load(functions)) == [], "only running can tell"


SWEEP_FAULTS = {
    "placeholder": (("{rate}", "{rat}"), "update.command: unknown placeholder {rat}; did you mean 'rate'?"),
    "clash": (("rate = [", "epsilon = [1]\nrate = ["), "sweep: 'epsilon' is a parameter of the environments too;"),
    "both": (("[sweep.grid]", "[[sweep.list]]\n[sweep.grid]"), "sweep.list: stands beside a grid; keep one of them"),
    "empty": (("rate = [0.1, 0.2]", "rate = []"), "sweep.grid.rate: is empty; give at least one"),
    "many": (("[sweep.grid]", "[sweep]\nrepeat = 300\n[sweep.grid]"), "sweep.grid: has 1200 learners, more than 1000"),
    "names": (
        ('[sweep.grid]\nrate = [0.1, 0.2]\nsize = ["s", "l"]', "[[sweep.list]]\nname = '1'\n[[sweep.list]]"),
        "sweep.list: has several learners that are called '1'",
    ),
    "unknown": (("[sweep.grid]", "[sweep]\nrepeats = 2\n[sweep.grid]"), "repeats: unknown key; did you mean 'repeat'?"),
}


@pytest.mark.parametrize(("change", "message"), SWEEP_FAULTS.values(), ids=SWEEP_FAULTS)
def test_faults_of_a_sweep(load, change, message):
    """Each in one line that names the key."""
    assert change[0] in SWEEP
    with pytest.raises(ConfigError) as caught:
        load(SWEEP.replace(*change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
