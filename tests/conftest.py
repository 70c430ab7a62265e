"""Settings for all tests: which of them run, Hypothesis profiles, what the comparisons with the oracle amounted to.

CMM_TESTS=full runs every test. Without it the quick part runs, which touches every promise: tests marked `full` are
left out, and of the parametrised tests of a function marked `sample(n)` all but one in n. A line before the first
test and one after the last say how many. A test named by its node id always runs, and so do those that `-m full`
selects.

CMM_HYPOTHESIS_PROFILE=small draws few and small layers, for runs under sanitizers.

Under pytest-xdist (-n) each process selects the same tests, and what it counted goes to the one that prints.
"""

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTS = os.environ.get("CMM_TESTS") or "quick"
FULL = TESTS == "full"
GOLDEN = (5**0.5 - 1) / 2
LEFT = pytest.StashKey[int]()
"""How many tests were left out."""
QUICK_TAKES, FULL_TAKES = "about 3 minutes", "about 15 minutes"

settings.register_profile(
    "default",
    max_examples=5,  # of each of several hundred parametrised tests
    deadline=None,  # the first call of a level may load a BLAS
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("small", settings.get_profile("default"), max_examples=1)
settings.load_profile(os.environ.get("CMM_HYPOTHESIS_PROFILE", "default"))


def pytest_configure() -> None:
    if TESTS not in ("quick", "full"):
        raise pytest.UsageError(f"CMM_TESTS is {TESTS!r}; it should be 'quick', the default, or 'full'")


def mark_samples(items: list[pytest.Item]) -> None:
    """Mark what samples leave out as full.

    Number k of a function's tests is in the sample where the fractional part of k times the golden ratio is below
    1 / n. Such numbers are spread evenly over every arithmetic progression, so over the values of every parameter.
    """
    seen: Counter[str] = Counter()
    for item in items:
        if marker := item.get_closest_marker("sample"):
            function = item.nodeid.partition("[")[0]
            if seen[function] * GOLDEN % 1 >= 1 / marker.args[0]:
                item.add_marker("full")
            seen[function] += 1


def is_named(item: pytest.Item, config: pytest.Config) -> bool:
    """Return whether the command line has the test's node id, or that of the function or class it belongs to."""
    own = f"{item.path}::{item.nodeid.partition('::')[2]}"
    for argument in config.args:
        file, _, name = argument.partition("::")
        named = f"{(config.invocation_params.dir / file).resolve()}::{name}"
        if name and (own == named or own.startswith((f"{named}[", f"{named}::"))):
            return True
    return False


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around -k and -m, so that what is counted is what those select
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    mark_samples(items)
    yield
    if FULL or "full" in config.option.markexpr:
        return
    left = [item for item in items if item.get_closest_marker("full") and not is_named(item, config)]
    if left:
        config.stash[LEFT] = len(left)
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def what_is_left(config: pytest.Config) -> str:
    """Return a sentence about the tests that do not run, "" where there are none."""
    left = config.stash.get(LEFT, 0)
    return f"{left} {'test is' if left == 1 else 'tests are'} left to CMM_TESTS=full" if left else ""


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    if config.args_source == pytest.Config.ArgsSource.ARGS or config.option.keyword or config.option.markexpr:
        return [left] if (left := what_is_left(config)) else []
    if FULL:
        return [f"all tests, {FULL_TAKES} on two cores"]
    return [f"the quick part, {QUICK_TAKES} on two cores; {what_is_left(config)}, which takes {FULL_TAKES}"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return what -n auto means: a process per core, but each has all tests in memory."""
    return min(len(os.sched_getaffinity(0)), 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process one run of files, for much of what they build is a fixture of a file."""
    if config.option.dist != "load":  # the default
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_report_header(config: pytest.Config) -> list[str]:
    if not config.getoption("numprocesses", None) or config.args_source == pytest.Config.ArgsSource.ARGS:
        return []
    return [f"all tests, {FULL_TAKES} on two cores" if FULL else f"the quick part, {QUICK_TAKES} on two cores"]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        from reference import TALLY

        output |= {"left": session.config.stash.get(LEFT, 0), "tally": vars(TALLY)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    from reference import TALLY, Report

    if "tally" in (output := getattr(node, "workeroutput", {})):  # not where it crashed
        node.config.stash[LEFT] = output["left"]
        TALLY.include(Report(**output["tally"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    from reference import TALLY  # conftest.py may be imported where NumPy is not needed

    if left := what_is_left(config):
        terminalreporter.write_line(f"quick tests: {left}")
    if TALLY.pairs:
        aside = f"{TALLY.aside} ({TALLY.aside / TALLY.pairs:.2%})"
        terminalreporter.write_line(
            f"oracle: {TALLY.pairs} paths compared; {aside} set aside, with a decision inside its rounding bound; "
            f"{TALLY.parted} of those parted from the oracle's and were checked along their own. Largest error of a "
            f"logit {TALLY.worst_logit:.1%}, of an output {TALLY.worst_output:.1%} of its bound."
        )
