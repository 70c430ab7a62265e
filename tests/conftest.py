"""Settings for all tests: Hypothesis profiles, and what the comparisons with the oracle amounted to.

CMM_HYPOTHESIS_PROFILE=small draws few and small layers, for runs under sanitizers.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    max_examples=5,  # of each of several hundred parametrised tests
    deadline=None,  # the first call of a level may load a BLAS
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("small", settings.get_profile("default"), max_examples=1)
settings.load_profile(os.environ.get("CMM_HYPOTHESIS_PROFILE", "default"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    from reference import TALLY  # conftest.py may be imported where NumPy is not needed

    if TALLY.pairs:
        aside = f"{TALLY.aside} ({TALLY.aside / TALLY.pairs:.2%})"
        terminalreporter.write_line(
            f"oracle: {TALLY.pairs} paths compared; {aside} set aside, with a decision inside its rounding bound; "
            f"{TALLY.parted} of those parted from the oracle's and were checked along their own. Largest error of a "
            f"logit {TALLY.worst_logit:.1%}, of an output {TALLY.worst_output:.1%} of its bound."
        )
