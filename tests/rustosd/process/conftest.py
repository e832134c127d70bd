"""What tests of supervisors leave to those that come after them in the same process: nothing."""

from collections.abc import Iterator

import pytest

from rustosd.process import syscalls as nr

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True)
def orphans_are_inits_again() -> Iterator[None]:
    """A launch makes this process the one that orphans come to."""
    yield
    nr.prctl(PR_SET_CHILD_SUBREAPER, 0)
