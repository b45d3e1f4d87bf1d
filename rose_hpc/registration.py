"""Registering tasks: the decorators that fill a :class:`~rose_hpc.workflow.Workflow`."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any, SupportsFloat, TypeVar, overload

from rose_hpc.errors import UsageError
from rose_hpc.metrics import OPERATORS, operator_for
from rose_hpc.patience import Patience
from rose_hpc.tracking import CriterionManifest, PipelineManifest, TaskManifest
from rose_hpc.workflow import Criterion, Environment, Resources, Work, Workflow, check_name

F = TypeVar("F", bound=Callable[..., Any])
#: options of a decorator that are no resources
_LIMITS = ("timeout_s", "max_rss_gb", "retries", "retry_backoff_s")


@dataclass(frozen=True)
class Registered:
    """A decorated function, and what the decorator was given."""

    func: Callable[..., Any]
    as_executable: bool
    decor_kwargs: dict[str, Any]
    log_params: dict[str, Any]

    def work(self) -> Work:
        options = dict(self.decor_kwargs)
        limits = {key: options.pop(key) for key in _LIMITS if key in options}
        try:
            resources = Resources(**options)
        except TypeError:
            known = {*_LIMITS, *Resources.__dataclass_fields__}
            unknown = ", ".join(sorted(options.keys() - known))
            raise UsageError(
                f"{self.func.__name__}: unknown option {unknown}", hint=f"known: {', '.join(sorted(known))}"
            ) from None
        if self.as_executable:
            if not inspect.iscoroutinefunction(self.func):
                raise UsageError(
                    f"{self.func.__name__} must be async", hint="write `async def`, returning the command line"
                )
            return Work(make_command=self.func, resources=resources, **limits)
        return Work(function=self.func, resources=resources, **limits)

    def manifest(self) -> TaskManifest:
        return TaskManifest(
            self.func.__name__, self.func.__module__, self.as_executable, dict(self.decor_kwargs), dict(self.log_params)
        )


def register(func: F, options: dict[str, Any]) -> tuple[F, Registered]:
    options = dict(options)
    as_executable, log_params = options.pop("as_executable", True), options.pop("log_params", {})
    registered = Registered(func, as_executable, options, log_params)
    registered.work()  # a wrong option is named where it stands
    return func, registered


def whole(what: str, value: Any, least: int, below: float = math.inf) -> int:
    """An argument of a program that is a whole number.

    Raises:
        UsageError: it is none, or not one that is allowed.
    """
    limits = f"from {least}" + (f" to below {below:,}" if below < math.inf else " on")
    try:
        number = index(value)
    except TypeError:
        raise UsageError(f"{what} is {value!r}", hint=f"give a whole number {limits}") from None
    if not least <= number < below:
        raise UsageError(f"{what} is {number}", hint=f"give a whole number {limits}")
    return number


class Registering:
    """What a learner consists of, as its decorators were given it."""

    def __init__(self) -> None:
        self._environments: dict[str, Registered] = {}
        self._update: Registered | None = None
        self._criterion: tuple[Registered, str, float, str] | None = None

    def _environment(self, name: str, options: dict[str, Any]) -> Callable[[F], F]:
        check_name(name)

        def decorate(func: F) -> F:
            if name.casefold() in {known.casefold() for known in self._environments}:
                raise UsageError(f"there is an environment {name!r} already", hint="give each a name of its own")
            func, self._environments[name] = register(func, options)
            return func

        return decorate

    @overload
    def update_task(self, func: F, /) -> F: ...
    @overload
    def update_task(self, **options: Any) -> Callable[[F], F]: ...
    def update_task(self, func: Any = None, **options: Any) -> Any:
        """Register the update, bare or called: ``@pe.update_task`` or ``@pe.update_task(as_executable=False, ...)``.

        A function gets the environments' values in the order they were registered.
        """

        def decorate(func: F) -> F:
            func, self._update = register(func, options)
            return func

        return decorate if func is None else decorate(func)

    def as_stop_criterion(
        self, metric_name: str, threshold: float, operator: str = "", as_executable: bool = True, **options: Any
    ) -> Callable[[F], F]:
        """Register the check. Its number is compared as ``operator`` says (by default the metric's own).

        A command prints its number as the last line of its output; a function gets the update's value and returns a
        number, or a dict with ``metric_value``.
        """
        operator = operator or operator_for(metric_name)
        if operator not in OPERATORS:
            raise UsageError(f"unknown operator {operator!r}", hint=f"use one of {' '.join(OPERATORS)}")
        if not isinstance(threshold, SupportsFloat) or math.isnan(threshold):
            raise UsageError(f"threshold is {threshold!r}", hint="give a number")

        def decorate(func: F) -> F:
            func, registered = register(func, {"as_executable": as_executable, **options})
            self._criterion = (registered, metric_name, float(threshold), operator)
            return func

        return decorate

    def _manifest(self) -> PipelineManifest:
        tasks = {f"environment.{name}": entry.manifest() for name, entry in self._environments.items()}
        if self._update is not None:
            tasks["update"] = self._update.manifest()
        criterion = None
        if self._criterion is not None:
            entry, metric, threshold, operator = self._criterion
            m = entry.manifest()
            criterion = CriterionManifest(
                m.func_name, m.func_module, m.as_executable, m.decor_kwargs, m.log_params, metric, threshold, operator
            )
        return PipelineManifest(type(self).__name__, tasks, criterion)

    def _workflow(self, max_iter: int, window: int, patience: Patience) -> Workflow:
        if self._update is None:
            raise UsageError("no update is registered", hint="decorate one with @learner.update_task")
        environments = tuple(
            Environment(name, entry.work(), shard=True if entry.as_executable else None)
            for name, entry in self._environments.items()
        )
        criterion = None
        if self._criterion is not None:
            entry, metric, threshold, operator = self._criterion
            criterion = Criterion(entry.work(), metric, operator, threshold)
        name = "".join(c if c.isalnum() or c in "_.-" else "_" for c in Path(sys.argv[0]).stem)[:48] or "program"
        return Workflow(
            name=name,
            cwd=Path.cwd(),
            environments=environments,
            update=self._update.work(),
            criterion=criterion,
            max_iterations=whole("max_iter", max_iter, 0) or None,
            window=window,
            patience=patience,
        )
