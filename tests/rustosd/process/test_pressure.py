"""How limits follow the pressure on the host's memory."""

import pytest

from rustosd.process.pressure import Pressure


@pytest.fixture
def pressure(monkeypatch: pytest.MonkeyPatch) -> Pressure:
    monkeypatch.setattr("rustosd.process.pressure._PRESSURE", "/nonexistent")
    return Pressure()


def test_without_pressure_a_limit_is_what_it_is(pressure: Pressure) -> None:
    assert pressure.lowered(1000) == 1000


def test_a_limit_is_lowered_by_steps_down_to_a_quarter(pressure: Pressure) -> None:
    shares = []
    for _ in range(12):
        pressure.felt(now=100.0)
        shares.append(pressure.share(now=100.0))
    assert shares[:2] == [pytest.approx(0.8), pytest.approx(0.64)]
    assert shares[-1] == 0.25 and sorted(shares, reverse=True) == shares


def test_it_recovers_with_time(pressure: Pressure) -> None:
    pressure.felt(now=100.0)
    assert pressure.share(now=102.0) == pytest.approx(0.9)
    assert pressure.share(now=105.0) == 1.0
