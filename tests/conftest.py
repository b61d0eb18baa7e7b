"""Shared set-up: Ultralytics must neither install packages nor keep its settings in the user's home while tests run."""

from __future__ import annotations

import gc
import os
import random
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import Installation, Server, forking_server
from places import EDGE, REPOSITORY, SHARED

sys.path.insert(0, str(EDGE))  # a package of its own, which need not be installed for its tests
os.environ["YOLO_AUTOINSTALL"] = "false"
# Hundreds of processes import the package: the first compiles it for all, whatever the environment says of byte code.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="yolo_lightbackbones_settings_")

pytest.register_assert_rewrite(
    "coco_folder", "coco_numbers", "contract", "edge_exports"
)  # their assertions tell what they saw, too


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tell when groups of tests would not stay together, and collect garbage less often.

    The collector stays away from torch's and Ultralytics' own objects; a sixth of the time goes there.
    """
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if session.config.getoption("loadgroup", False) and any("@" not in item.nodeid for item in grouped):
        warnings.warn(
            "pytest-xdist does not mark the groups of tests with this pytest: every process makes what a group is to "
            "share, which takes twice the time. pyproject.toml names versions that work together.",
            stacklevel=1,
        )
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which draw as well
def pytest_runtest_setup() -> None:
    """The same random numbers in every run, whichever tests a process has had before."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def repository() -> Path:
    """The checkout the tests run from."""
    return REPOSITORY


@pytest.fixture
def bccd() -> Path:
    """Data YAML of the blood cell images (github.com/Shenggan/BCCD_Dataset), where they lie beside the checkout."""
    data = SHARED / "data" / "bccd" / "bccd.yaml"
    if not data.is_file():
        pytest.skip("the BCCD images are not beside this checkout; test_yolo_command.py runs the same on digits")
    return data


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tiny arithmetic: threads that wait for each other on a busy machine cost more than they do."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def here() -> Installation:
    """The package as it is installed where the tests run: `pip install -e` after `make test`."""
    scripts = Path(sysconfig.get_path("scripts"))
    return Installation(Path(sys.executable), scripts, scripts / "yolo", dict(os.environ))


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """From an installation to the address of the process that forks its commands; each is started once."""
    known: dict[Path, str] = {}
    with ExitStack() as servers:

        def find(installation: Installation) -> str:
            if installation.python not in known:
                folder = tmp_path_factory.mktemp("server")
                known[installation.python] = servers.enter_context(forking_server(installation, folder))
            return known[installation.python]

        yield find
