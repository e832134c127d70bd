import pytest

from tests.drivers.pci.tree import Machine


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)
