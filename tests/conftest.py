"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks this small are faster on one thread, and many times faster where other programs hold the cores."""
    torch.set_num_threads(1)
