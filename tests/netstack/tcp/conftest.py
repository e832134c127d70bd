"""A factory of timelines that end clean."""

import pytest

from tests.netstack.tcp.timeline import Timeline


@pytest.fixture
def timeline(request):
    """Make timelines; after a test that passed so far, each must end with nothing left over."""
    made = []

    def make(*args, **options):
        made.append(Timeline(*args, **options))
        return made[-1]

    failed_before = request.session.testsfailed
    yield make
    if request.session.testsfailed == failed_before:
        for t in made:
            t.finish()


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def family(request):
    """Both families."""
    return request.param
