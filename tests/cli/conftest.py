"""No test of the command line leans on what another one left in Hydra's global state."""

import configurations
import pytest


@pytest.fixture(autouse=True)
def command_line():
    with configurations.command_line():
        yield
