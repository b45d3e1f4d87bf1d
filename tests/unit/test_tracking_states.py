"""What programs hold on to: iteration states, configurations, trackers, under ROSE's names."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from rose_hpc import IterationState, LearnerConfig, SequentialReinforcementLearner, TaskConfig, TrackerBase
from rose_hpc.errors import UsageError
from rose_hpc.tracking import CriterionManifest, PipelineManifest, TaskManifest

STATE = IterationState(
    iteration=2,
    metric_name="MODEL_REWARD",
    metric_value=3.0,
    metric_threshold=5.0,
    metric_history=[1.0, 2.0, 3.0],
    state={"loss": 0.5, "labels": ["a"]},
)


def test_what_tasks_returned_are_attributes():
    """state.loss is what a task returned as "loss", also by get() and in to_dict()."""
    assert (STATE.loss, STATE.get("loss"), STATE.get("nothing", 7)) == (0.5, 0.5, 7)
    plain = STATE.to_dict()
    assert (plain["loss"], plain["metric_value"], plain["metric_history"]) == (0.5, 3.0, [1.0, 2.0, 3.0])


def test_a_misspelt_name_is_an_error():
    """A name that no task returned is an AttributeError that lists those that are there; it is never None."""
    with pytest.raises(AttributeError, match="no task returned 'los'; there is: loss, labels"):
        _ = STATE.los
    assert not hasattr(IterationState(iteration=0), "metric")


def test_states_can_be_copied_and_pickled():
    """A state can be kept for later, like any data, its attributes with it."""
    for twin in (copy.deepcopy(STATE), pickle.loads(pickle.dumps(STATE))):  # noqa: S301 - our own bytes
        assert twin == STATE
        assert twin.loss == 0.5


def test_a_configuration_is_found_by_task_and_iteration():
    """One for all iterations, or by iteration with -1 for all others; a task without one gets None."""
    always, third, others = (TaskConfig(args=(k,)) for k in range(3))
    config = LearnerConfig(environment=always, update={3: third, -1: others}, criterion={3: third})
    assert config.get_task_config("environment", 99) == always
    assert [config.get_task_config("update", k) for k in (0, 3, 4)] == [others, third, others]
    assert config.get_task_config("criterion", 0) is None
    assert LearnerConfig().get_task_config("update", 0) is None


def test_roses_short_forms_of_a_schedule():
    """Plain data by iteration, or a function of the iteration, whose last values hold from then on."""
    learner = SequentialReinforcementLearner(SimpleNamespace(executable_task=None), quiet=True)
    plain = learner.create_iteration_schedule("update", {0: {"kwargs": {"rate": 1.0}}, -1: {"args": (2,)}})
    assert plain == {0: TaskConfig(kwargs={"rate": 1.0}), -1: TaskConfig(args=(2,))}
    adaptive = learner.create_adaptive_schedule("update", lambda k: {"kwargs": {"rate": 0.5**k}})
    config = LearnerConfig(update=adaptive)
    rates = [config.get_task_config("update", k).kwargs["rate"] for k in (0, 3, 99, 100, 5000)]
    assert rates == [1.0, 0.125, 0.5**99, 0.5**99, 0.5**99]
    with pytest.raises(UsageError, match="no task is called 'training'; known: environment, update, criterion"):
        learner.create_iteration_schedule("training", {})


@pytest.mark.parametrize("name", ["evaluation", "model_config", "get_task_config"])
def test_a_task_that_is_none_has_no_configuration(name):
    """Asking for another task is an error that names those there are, not an empty answer."""
    with pytest.raises(UsageError, match=f"no task is called '{name}'; known: environment, update, criterion"):
        LearnerConfig().get_task_config(name, 0)


def test_an_unknown_key_is_refused():
    """A misspelt task or option in a configuration is an error when it is made, not an argument that never arrives."""
    with pytest.raises(ValidationError, match="updates"):
        LearnerConfig(updates=TaskConfig())
    with pytest.raises(ValidationError, match="kwarg"):
        TaskConfig(kwarg={"rate": 1})


def test_configurations_do_not_share_or_change():
    """A configuration on record cannot be changed afterwards, and defaults are not shared."""
    one, other = TaskConfig(), TaskConfig()
    one.kwargs["rate"] = 1
    assert other.kwargs == {}
    with pytest.raises(ValidationError, match="frozen"):
        one.args = (1,)


def test_a_configuration_survives_its_record():
    """What set_next_config wrote into the journal gives the same configuration when the run is resumed."""
    config = LearnerConfig(update={3: TaskConfig(args=(1, "a"), kwargs={"rate": 0.1}), -1: TaskConfig()})
    assert LearnerConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_tracker_overrides_what_it_needs():
    """The base answers every call of a run with nothing, so that a tracker has only the methods it wants."""

    class Rewards(TrackerBase):
        def __init__(self) -> None:
            self.values: list[float | None] = []

        def on_iteration(self, state: IterationState) -> None:
            self.values.append(state.metric_value)

    task = TaskManifest("update", "program", as_executable=True)
    criterion = CriterionManifest("check", "program", True, metric_name="MODEL_REWARD", threshold=5.0, operator=">")
    tracker = Rewards()
    tracker.on_start(PipelineManifest("ParallelExperience", {"update": task}, criterion))
    tracker.on_iteration(STATE)
    tracker.on_stop(STATE, "criterion_met")
    assert tracker.values == [3.0]
