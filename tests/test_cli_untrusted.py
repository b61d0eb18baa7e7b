"""Model YAMLs of strangers: the commands run nothing, fetch nothing, and answer soon."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from yolo_lightbackbones import plugin
from yolo_lightbackbones.cli import app, untrusted
from yolo_lightbackbones.cli.common import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL: dict[str, Any] = {
    "nc": 1,
    "backbone": [[-1, 1, "RepViT", ["m0_6"]], [0, 1, "Tap", ["P3"]]],
    "head": [[[1], 1, "Detect", ["nc"]]],
}
HEAD = "\nbackbone:\n  - [-1, 1, RepViT, [m0_6]]\n  - [0, 1, Tap, [P3]]\nhead:\n  - [[1], 1, Detect, [nc]]\n"


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin.register()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


def told(result: Result) -> str:
    """What a command says when it refuses: one line, soon, no traceback, nothing on stdout."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert "Traceback" not in result.stderr
    assert len(line) < 1500
    return line


def commands(model: str) -> list[list[str]]:
    return [
        ["info", model],
        ["convert", "weights.pth", "--model", model, "-o", "init.pt"],
        ["compare", model, "repvit_m0_6"],
    ]


# --- what would be run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    [
        "open('canary.txt', 'w') and torch.nn.SiLU()",
        "__import__('pathlib').Path('canary.txt').touch() or nn.ReLU()",
        "nn.SiLU(inplace=open('canary.txt', 'w') is None)",
        "nn.modules.module.__builtins__['open']('canary.txt', 'w')",
        "nn.SiLU().register_buffer('x', open('canary.txt', 'w'))",
    ],
)
def test_an_activation_is_not_run(activation: str) -> None:
    Path("my.yaml").write_text(yaml.safe_dump({**MODEL, "activation": activation}))
    for arguments in commands("my.yaml"):
        assert "my.yaml: activation is " in told(run(*arguments))
        assert not Path("canary.txt").exists()


@pytest.mark.parametrize(
    "activation",
    [
        "nn.SiLU()",
        "torch.nn.ReLU6()",
        "torch.nn.LeakyReLU(0.1)",
        "nn.LeakyReLU(negative_slope=0.1, inplace=True)",
        "nn.GELU('tanh')",
        "nn.Hardtanh(-1.0, 1.0)",
        " nn.Identity()",
        None,
        "",
    ],
)
def test_activations_of_torch_pass(activation: str | None) -> None:
    untrusted.check_activation(activation, "my.yaml")


@pytest.mark.parametrize(
    "activation",
    [
        "nn.SiLU",
        "SiLU()",
        "silu",
        "nn.Conv2d(1, 1, 1)",
        "nn.MultiheadAttention(8, 1)",
        "nn.functional.relu(x)",
        "nn.SiLU(nn.ReLU())",
        "nn.SiLU(*[1])",
        "nn.SiLU(**{})",
        "nn.SiLU(1 + 1)",
        "nn.SiLU(slope=1)",
        "nn.PReLU(1000000000000)",
        "nn.Threshold()",
        "os.system('id')",
        "lambda: nn.SiLU()",
        "nn.SiLU(); nn.ReLU()",
        "nn.SiLU()\nnn.ReLU()",
        "nn.Si\u017fLU()",
        "(" * 99,
        "x" * 10_000,
        ["nn.SiLU()"],
        {"nn.SiLU()": 1},
        True,
        3,
    ],
)
def test_any_other_activation_is_refused(activation: Any) -> None:
    with pytest.raises(UserError, match=r"my\.yaml: activation is .*such as nn\.SiLU\(\) or torch\.nn\.LeakyReLU"):
        untrusted.check_activation(activation, "my.yaml")


def test_an_activation_that_passes_is_the_models(tmp_path: Path) -> None:
    """Ultralytics still reads it; the check only looks."""
    from yolo_lightbackbones.cli import models

    rows = [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [8, 3, 2]]]
    model = {"nc": 1, "activation": "nn.LeakyReLU(0.3)", "backbone": rows, "head": [[[1], 1, "Detect", ["nc"]]]}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(model))
    with models.quiet_ultralytics():
        net = models.build(models.read_yaml("my.yaml", None), "my.yaml", 3)
    assert net.model[0].act.negative_slope == 0.3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 1, "torch_safe_load", ["evil.pt"]], "torch_safe_load is no layer"),
        ([-1, 1, "load_checkpoint", ["evil.pt"]], "load_checkpoint is no layer"),
        ([-1, 1, "check_requirements", ["evil"]], "check_requirements is no layer"),
        ([-1, 1, "check_file", ["https://example.org/x.yaml"]], "check_file is no layer"),
        ([-1, 1, "DetectionModel", ["activation.yaml"]], "DetectionModel is no layer"),
        ([-1, 1, "Ensemble", []], "Ensemble is no layer"),
        ([-1, 1, "LOGGER", []], "LOGGER is no layer"),
        ([-1, 1, "deepcopy", [1]], "deepcopy is no layer"),
        ([-1, 1, "__builtins__", []], "__builtins__ is no layer"),
        ([-1, 1, "nn.Parameter", []], "nn.Parameter is no layer"),
        ([-1, 1, "nn.DataParallel", []], "nn.DataParallel is no layer"),
        ([-1, 1, "torchvision.ops.nms", [1, 2, 3]], "torchvision.ops.nms is no layer"),
        ([-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2]], "TorchVision downloads weights"),
        ([-1, 1, "TorchVision", [21, "deeplabv3_resnet50", None]], "TorchVision downloads weights"),
    ],
)
def test_rows_name_layers_and_nothing_that_is_called(row: list[Any], message: str) -> None:
    Path("my.yaml").write_text(yaml.safe_dump({**MODEL, "head": [row, *MODEL["head"]]}))
    assert f"my.yaml, row 2 [-1, 1, {row[2]}, " in (line := told(run("info", "my.yaml")))
    assert message in line


@pytest.mark.parametrize(
    "module", ["Conv", "C2f", "Detect", "nn.Upsample", "torchvision.ops.SqueezeExcitation", "RepViT", "LGLBlock", "Tap"]
)
def test_layers_pass(module: str) -> None:
    untrusted.check_model({**MODEL, "backbone": [[-1, 1, module, []]]}, "my.yaml")


@pytest.mark.parametrize("model", ["https://example.org/x.yaml", "ul://user/project/x.yaml", "gs://bucket/x.yaml"])
def test_nothing_is_downloaded(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.utils import downloads

    def fetch(*_: Any, **__: Any) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr(downloads, "safe_download", fetch)
    assert "is an address, and nothing is downloaded" in told(run("info", model))


# --- what would not come back -----------------------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{k}: &{k} [{', '.join([f'*{chr(ord(k) - 1)}'] * 9)}]\n" for k in "bcdefg"
)
MERGED = "a: &a {k: 1}\n" + "".join(
    f"{k}: &{k} {{<<: [{', '.join([f'*{chr(ord(k) - 1)}'] * 9)}]}}\n" for k in "bcdefghi"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB + HEAD.replace("m0_6", "*g"), "with its aliases written out it has .* values; at most 100,000"),
        (MERGED + HEAD, "with its aliases written out it has .* values; at most 100,000"),
        ("a: &a [*a]" + HEAD, "it contains itself"),
        ("a: &a {b: *a}" + HEAD, "it contains itself"),
        (HEAD.replace("[m0_6]", "&r [m0_6, {init: *r}]"), "it contains itself"),
        ("a: " + "[" * 1000 + "]" * 1000 + HEAD, "nested deeper than 32 levels|maximum nesting depth"),
        ("a: " + "[" * 100_000 + HEAD, "nested deeper than 32 levels|maximum nesting depth"),
        ("a: " + "{b: " * 50 + "}" * 50 + HEAD, "nested deeper than 32 levels"),
        ("#" + "x" * 1_000_000 + HEAD, "has more than 1,000,000 bytes"),
        ("a: &a 1\nb: &a 2" + HEAD, "is not a YAML file: .*duplicate anchor"),
        ("a: !!timestamp x" + HEAD, "is not a YAML file"),
        ("a: 2026-99-99" + HEAD, "is not a YAML file: month must be"),
        ("a: !!bool x" + HEAD, "is not a YAML file"),
        ("a: !!python/object/apply:os.system [id]" + HEAD, "is not a YAML file: could not determine a constructor"),
        ("? [a]\n: 1" + HEAD, "is not a YAML file: .*unhashable key"),
        ("a: " + "9" * 5000 + HEAD, "is not a YAML file: .*4300|'a' is"),
        ("- 1\n", "is not a model YAML|not a valid YAML mapping"),
        ("just a text", "is not a model YAML|not a valid YAML mapping"),
        ("", "it has no backbone"),
        ("nc: 9223372036854775807" + HEAD, "'nc' is 9223372036854775807: .*at most 1,000,000"),
        (HEAD + "  - [-1, 9223372036854775807, nn.Identity, []]", "row 3 .*the number 9223372036854775807"),
        (HEAD + "  - [-1, 100000, nn.Identity, []]", "row 3 .*repeats is 100000; at most 200"),
        ("scales: {n: [1000, 1, 9]}" + HEAD + "  - [-1, 2, nn.Identity, []]", "row 3 .*repeats is 2 times a depth of"),
        (HEAD + "  - [-1, 1, nn.Identity, ['9999999999']]", "row 3 .*the number 9999999999"),
        (HEAD + f"  - [-1, 1, nn.Identity, ['{'-' * 300}1']]", "row 3 .*a text of 301 characters"),
        (
            HEAD + "  - [[1], 1, RTDETRDecoder, [nc, 256, 300, 4, 8, 50000]]",
            "row 3 .*decoder layers, is 50000; .*most 100",
        ),
        ("channels: 1000000" + HEAD, "channels is 1000000; it must be a whole number above 0 and at most 1024"),
    ],
)
def test_bombs(text: str, message: str) -> None:
    Path("my.yaml").write_text(text if "nc:" in text else f"nc: 1\n{text}" if text and ":" in text else text)
    start = time.process_time()
    line = told(run("info", "my.yaml"))
    assert time.process_time() - start < 3
    assert re.search(message, line), line
    assert "my.yaml" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reg_max: 1000000" + HEAD, "more than 1,000,000,000 parameters"),
        ("nc: 1000000" + HEAD, "more than 1,000,000,000 parameters|a feature map of 1,024,000,000 values"),
        (f"{HEAD}  - [1, 1, nn.Conv2d, [48, 1000000, 9]]\n  - [[1], 1, Detect, [nc]]", "more than 1,000,000,000 para"),
        (f"{HEAD}  - [1, 1, nn.Upsample, [null, 3000]]\n  - [[3], 1, Detect, [nc]]", "a feature map of .* Upsample"),
    ],
)
def test_models_beyond_any_memory(text: str, message: str) -> None:
    Path("my.yaml").write_text(text if "nc: " in text else f"nc: 1\n{text}")
    start = time.process_time()
    line = told(run("info", "my.yaml"))
    assert re.search(rf"my\.yaml describes a model with ({message})", line), line
    assert time.process_time() - start < 5


@pytest.mark.parametrize("content", [b"nc: 1\xff\xfe", b"\x00", b"nc: \x07"])
def test_bytes_that_are_no_text(content: bytes) -> None:
    Path("my.yaml").write_bytes(content)
    assert told(run("info", "my.yaml")).startswith("Error: my.yaml is not a")


def test_a_pipe_is_no_file() -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo("my.yaml")
    assert told(run("info", "my.yaml"))


@pytest.mark.parametrize("case", ["alias_bomb", "activation"])
def test_the_inputs_that_were_reported(case: str, repository: Path) -> None:
    file = repository.parent / "shared" / "cases" / f"{case}.yaml"
    if not file.is_file():
        pytest.skip("the reported inputs are not beside this checkout; the tests above have their like")
    for arguments in commands(str(file)):
        assert file.name in told(run(*arguments))
    assert not list(Path.cwd().iterdir())


# --- disks that are full ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["new -b repvit_m0_6 -o {}.yaml", "compare repvit_m0_6 edgevit_xxs --imgsz 32 --repeats 1 -o {}.png"],
)
def test_a_full_disk_names_the_file(command: str) -> None:
    """A limit on the size of files stands for the disk; the error is of the same kind."""
    pytest.importorskip("resource")
    pytest.importorskip("matplotlib")
    code = (
        "import resource, sys; from yolo_lightbackbones.cli import app, compare, new; import matplotlib.font_manager\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); app(sys.argv[1:])"
    )
    arguments = command.format("output").split()
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line == f"Error: {arguments[-1]} could not be written: {os.strerror(errno.EFBIG)}", result.stderr
    assert not list(Path.cwd().iterdir())
