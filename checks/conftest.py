"""What holds for every test: no network, the same random numbers each time, no threads that spin."""

import os
import random
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

NO_NETWORK = Path(__file__).with_name("no_network")
IN_A_POOL = "PYTEST_XDIST_WORKER" in os.environ

# Each worker process of pytest-xdist runs this file for itself, so each has a log of its own.
_log = tempfile.NamedTemporaryFile(prefix="course-network-", suffix=".log")  # noqa: SIM115  # lives as we do
NETWORK_LOG = Path(_log.name)

os.environ |= {
    "COURSE_NETWORK_LOG": str(NETWORK_LOG),
    "COURSE_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "PIP_NO_INDEX": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(NO_NETWORK), os.environ.get("PYTHONPATH")])),
    # Programs that are not Python are sent to a port where nobody listens.
    **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1"),
    "OMP_WAIT_POLICY": "PASSIVE",
}
os.environ.setdefault("OMP_NUM_THREADS", "1" if IN_A_POOL else str(os.cpu_count()))
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.pop("PARTS", None)

# This process is running already: what its children do at start-up, it does here.
runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed whatever generators of the whole process are loaded by now."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Take back what a test, or the code that it calls, did to the environment's variables."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    """Fail the test in whose time some process tried to leave this machine."""
    before = NETWORK_LOG.stat().st_size
    yield
    with NETWORK_LOG.open(encoding="utf-8") as log:
        log.seek(before)
        attempts = log.read()
    assert not attempts, f"network access in a test:\n{attempts}"
