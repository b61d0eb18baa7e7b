"""Checkpoints load for ever: files of the module paths that 0.1.0 has, and of those before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).parent / "fixtures"
FILES = sorted(str(path.relative_to(FIXTURES).with_suffix("")) for path in FIXTURES.rglob("*.pt"))


def test_there_are_checkpoints_of_every_family() -> None:
    before = {"before_0_1_0/" + name for name in ("blocks", "conv2former", "edgevit", "parcnet", "repvit")}
    assert before | {"before_0_1_0/fused_parcnet"} <= set(FILES)


@pytest.mark.parametrize("safe", ["0", "1"])
def test_a_fresh_process_loads_them_and_gets_the_same_outputs(safe: str, tmp_path: Path) -> None:
    """Each with the image that it was stored with; `ULTRALYTICS_SAFE_LOAD=1` unpickles known classes only."""
    code = """
        import runpy, sys, torch
        from ultralytics import YOLO

        image = runpy.run_path(sys.argv[1])["image"]()
        for path in sys.argv[2:]:
            model = YOLO(path + ".pt").model.float().eval()
            with torch.no_grad():
                torch.save(model(image)[0][0], path.rpartition("/")[2] + "_out.pt")
    """
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": safe}
    paths = [str(FIXTURES / name) for name in FILES]
    command = [sys.executable, "-c", textwrap.dedent(code), str(FIXTURES / "make.py"), *paths]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    for name in FILES:
        expected = torch.tensor(json.loads((FIXTURES / f"{name}.json").read_text()))
        output = torch.load(tmp_path / f"{Path(name).name}_out.pt")
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
