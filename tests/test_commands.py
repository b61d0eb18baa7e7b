"""Every command that the README, the documentation, the heads of YAMLs and the examples print is run, or says why not.

**Run in full**, by bash, each command in a process of its own, in the order of the page, in a folder outside the
checkout that holds stand-ins for what the page says that the reader brings (HAS): the fenced `sh` blocks of README.md,
docs/, cfg/README.md, examples/, CONTRIBUTING.md, and the heads of recipes of the families that no page has a recipe of
(WHOLE). Printed words stay as they are; `commands.APPENDED` is added behind them, which makes a training one epoch of
64 px pictures.

**Run up to the start of the training**: the heads of all model YAMLs, recipes and data sets. Each command is forked off
a process that has imported what the `yolo` script imports before it reads its arguments; names are resolved, the data
is looked up, the model is built, the first epoch is not begun. Docstrings of examples/ are run in the same way.

**Checked, not run**: `pip` and `make`, commands within sentences, and blocks that say beside them why no test runs
them ("No test runs this: ..."). Their targets, extras, scripts, options and arguments have to exist.

The pages run on this checkout as it is installed here; those of WHEEL_PAGES, whose commands the README has as well, on
an installed wheel. `COMMANDS_FROM=wheel` runs all of them on the wheel.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import commands
import pytest
import standins
import yaml
from commands import REPOSITORY, Block, Ended, Installation, Job, Server
from families import AT_SCALE_N, CLASSES
from installing import build_wheel, new_environment, pip

from yolo_lightbackbones.configs.timm_series import SERIES

pytestmark = pytest.mark.slow

MARKDOWN = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    REPOSITORY / "cfg" / "README.md",
    *sorted((REPOSITORY / "examples").rglob("*.md")),
    REPOSITORY / "edge" / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
]
YAMLS = [*sorted((REPOSITORY / "cfg").rglob("*.yaml")), *sorted((REPOSITORY / "examples").glob("*.yaml"))]
SCRIPTS = [
    path
    for folder in ("edge", "examples", "benchmarks", "tools")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
BLOCKS = {page.relative_to(REPOSITORY).as_posix(): commands.blocks(page) for page in [*MARKDOWN, *YAMLS, *SCRIPTS]}

HAS: dict[str, tuple[str, ...]] = {
    "README.md": (
        *("coco.yaml", "coco", "data.yaml", "FILE.yaml", "FOLDER", "repvit_m0_9_distill_450e.pth", "best.pt"),
        *("picture.jpg", "videos/clip.mp4", "examples", "street.jpg", "folder/clip.mp4", "clip.mp4"),
    ),
    "docs/add-a-backbone.md": ("examples",),
    "docs/accuracy.md": ("bccd.yaml",),
    "docs/blocks.md": (),
    "docs/coco.md": ("coco",),
    "docs/command.md": (),
    "docs/index.md": (),
    "docs/migration.md": ("backbone.pth", "my_repvit.yaml", "data.yaml"),
    "docs/taps.md": ("init.pt", "data.yaml", "best.pt", "picture.jpg", "examples"),
    "docs/weights.md": ("repvit_m0_9_distill_450e.pth", "coco.yaml"),
    "cfg/README.md": ("FOLDER",),
    "examples/README.md": ("examples", "street.jpg", "best.pt", "init.pt", "data.yaml"),
    "edge/README.md": ("best.pt", "street.jpg"),
    "CONTRIBUTING.md": (),
}
"""Page -> what the reader has before its first command. Everything else must come from commands further up."""

FOLLOWED_BY = {"README.md": ("edge/src/lightbackbones_edge/command.py",)}
"""Page -> scripts whose docstrings' commands come after its own, in its folder: they take what it exports."""

LEAVES = {
    "README.md": ("first/weights/best.onnx", "compare.png", "own.pt", "val/predictions.json", "results/picture.jpg"),
    "docs/coco.md": ("coco/coco.yaml", "val/predictions.json"),
    "docs/command.md": ("my.yaml",),
    "docs/taps.md": ("taps.jpg",),
    "docs/weights.md": ("init.pt",),
    "examples/README.md": ("best.onnx",),
}
"""Page -> what must be there after its last command."""

NEEDS = {
    "README.md": ("sklearn", "onnx", "onnxruntime", "openvino", "nncf", "ncnn", "pnnx"),
    "examples/README.md": ("onnx", "onnxruntime"),
    "edge/README.md": ("onnx", "onnxruntime"),
}
"""Page -> packages that its `pip install` lines bring."""

WHEEL_PAGES = {"docs/coco.md", "docs/weights.md"}
WHOLE = ("conv2former_few_images_pretrained.yaml", "parcnet_pretrained.yaml")


# --- nothing is left out ----------------------------------------------------------------------------------------------


def test_every_page_with_commands_is_run_or_says_why_not() -> None:
    run = {page for page, found in BLOCKS.items() if page.endswith(".md") and any(not b.reason for b in found)}
    assert run == set(HAS)
    silent = [str(b) for found in BLOCKS.values() for b in found if not b.reason and only_installs(b)]
    assert not silent, "nothing of them is run, and nothing beside them says so"


def test_the_commands_are_found() -> None:
    """Fewer than these means that a pattern has stopped matching; a page may say more."""
    lines = Counter(Path(page).suffix for page, found in BLOCKS.items() for block in found for _ in block.commands)
    assert lines[".md"] >= 60, lines
    assert lines[".yaml"] == 125 + 10 + 19 + 8 + 3 + 1, (
        "models, classifiers' second lines, recipes, theirs, data, example"
    )
    assert lines[".py"] >= 20, lines
    unnamed = {
        page for page, found in BLOCKS.items() if page.startswith("cfg/") and page.endswith(".yaml") and not found
    }
    assert not unnamed, "a YAML whose head does not say how it is used"


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_stand_in_blocks_that_are_run(page: Path) -> None:
    assert commands.hidden(page) == []


def test_reasons_are_in_words_beside_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "REPOSITORY", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\nNo test runs these: they take\nhours.\n\n```sh\nmake a    # b\n```\n\nMore.\n\n"
        "```sh\n# a comment\nyolo train\n```\n\n    yolo val\n\n```\nyolo export\n```\n"
    )
    first, second = commands.blocks(page)
    assert first == Block("page.md", 7, ("make a    # b",), "they take hours")
    assert second == Block("page.md", 13, ("yolo train",), None)
    assert commands.hidden(page) == ["yolo val", "yolo export"]


def only_installs(block: Block) -> bool:
    return all(commands.words(line)[0] in commands.INSTALLERS for line in block.commands)


# --- what is not run names what there is ------------------------------------------------------------------------------


def unrun() -> list[tuple[str, str]]:
    found = [(page.name, mention) for page in MARKDOWN for mention in commands.mentions(page)]
    for block in (block for blocks in BLOCKS.values() for block in blocks):
        installs = [line for line in block.commands if commands.words(line)[0] in commands.INSTALLERS]
        found += [(str(block), line) for line in (block.commands if block.reason else installs)]
    return found


def test_what_is_not_run_names_what_there_is() -> None:
    assert len(unrun()) > 60
    problems = [f"{place}: {line}: {problem}" for place, line in unrun() if (problem := commands.problem(line))]
    assert problems == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ('pip install "yolo-lightbackbones[litert]"', "on no index"),
        ('pip install ".[edge]"', "pyproject.toml has no extra edge"),
        ('pip install "./edge[tensorrt]"', "edge/pyproject.toml has no extra tensorrt"),
        ("pip install lightbackbones-edge", "on no index; in a clone it is `./edge`"),
        ("lightbackbones-edge best.onnx street.jpg --confidence 0.4", "no option --confidence"),
        ("make everything", "no target everything"),
        ("make test VENVS=.venv-2", "no target VENVS=.venv-2"),
        ("python examples/demos.py", "no examples/demos.py"),
        ("python benchmarks/exports.py --trains", "no option --trains"),
        ("lightbackbones converts", "no command converts"),
        ("lightbackbones convert x --modle y", "no option --modle"),
        ("yolo trian model=x", "no mode or task trian"),
        ("yolo train modle=x", "no argument modle"),
    ],
)
def test_a_command_with_a_fault_is_told(command: str, message: str) -> None:
    assert message in (commands.problem(command) or "")


# --- pages, in full ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def from_wheel(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An environment of its own, with the wheel in it and the checkout on no path."""
    folder = tmp_path_factory.mktemp("wheel")
    python = new_environment(folder / "environment")
    wheels = [str(build_wheel(folder / part, REPOSITORY / part)) for part in (".", "edge")]
    pip("--python", str(python), "install", "--no-deps", "--no-index", *wheels, cwd=folder)
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return Installation(python, python.parent, Path(sysconfig.get_path("scripts"), "yolo"), variables)


Environment = Callable[[Installation], dict[str, str]]


@pytest.fixture
def environment(tmp_path: Path, server_of: Server) -> Environment:
    """Makes the environment of processes that use an installation, with settings and data sets of this test."""
    pytest.importorskip("sklearn", reason="digits.yaml is drawn from scikit-learn's scans")

    def of(installation: Installation) -> dict[str, str]:
        settings = standins.write_settings(
            tmp_path / "settings", tmp_path / "datasets", tmp_path / "elsewhere" / "runs"
        )
        shims = installation.write_commands(tmp_path / "bin", server_of(installation))
        # Ultralytics writes elsewhere where it finds that it is being tested
        tested = ("PYTEST", "GITHUB_")
        inherited = {key: value for key, value in installation.variables.items() if not key.startswith(tested)}
        return {
            **inherited,
            "PATH": os.pathsep.join([str(shims), os.environ["PATH"]]),
            "YOLO_CONFIG_DIR": str(settings),
            "YOLO_AUTOINSTALL": "false",
            "YOLO_OFFLINE": "true",
            **commands.QUIET,
        }

    return of


def chosen(page: str, request: pytest.FixtureRequest) -> Installation:
    everything = os.environ.get("COMMANDS_FROM") == "wheel"
    found: Installation = request.getfixturevalue("from_wheel" if everything or page in WHEEL_PAGES else "here")
    return found


@pytest.mark.parametrize("page", HAS)
def test_the_commands_of_a_page_run(
    page: str, environment: Environment, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package, reason=f"{page} runs what it is for")
    installation = chosen(page, request)
    variables = environment(installation)
    folder = standins.make(tmp_path / "anywhere", HAS[page])
    for block in [block for name in (page, *FOLLOWED_BY.get(page, ())) for block in BLOCKS[name]]:
        if block.reason is None:
            commands.run(block, folder, with_the_example(block.commands, variables, tmp_path / "site"))
    for name in LEAVES.get(page, ()):
        assert (folder / name).stat().st_size > 0, name


def with_the_example(lines: Iterable[str], environment: dict[str, str], site: Path) -> dict[str, str]:
    """The environment of commands that train PlainNet: with a package that announces it, as the page tells to make."""
    if not any("yolo train model=examples/custom_backbone.yaml" in line for line in lines):
        return environment
    install_the_example(site)
    path = [str(site), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(path)}


def install_the_example(site: Path) -> None:
    """What `pip install` makes of a package with examples/custom_backbone.py and the entry point of the page."""
    page = (REPOSITORY / "docs" / "add-a-backbone.md").read_text(encoding="utf-8")
    entry_point = re.search(r"^\[project.entry-points.(\w+)\]\n(\w+) = \"(\S+)\"$", page, re.MULTILINE)
    assert entry_point
    information = site / "plainnet-1.0.dist-info"
    information.mkdir(parents=True)
    (site / "custom_backbone.py").write_text((REPOSITORY / "examples" / "custom_backbone.py").read_text())
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plainnet\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{entry_point[1]}]\n{entry_point[2]} = {entry_point[3]}\n")


def test_what_runs_on_a_wheel_runs_on_the_checkout_as_well() -> None:
    printed = {line for block in BLOCKS["README.md"] for line in block.commands}
    for page in WHEEL_PAGES:
        assert {line for block in BLOCKS[page] if not block.reason for line in block.commands} <= printed, page


@pytest.mark.parametrize("recipe", WHOLE)
def test_the_commands_of_a_recipe_run(
    recipe: str, environment: Environment, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (block,) = BLOCKS[f"cfg/recipes/{recipe}"]
    folder = standins.make(tmp_path / "anywhere", ("coco.yaml", "FILE.yaml"))
    standins.write_weights(folder / "WEIGHTS", AT_SCALE_N[recipe.partition("_")[0]])
    commands.run(block, folder, environment(chosen(block.page, request)))
    assert (folder / "init.pt").is_file()


# --- heads of YAMLs and docstrings, a fork each -----------------------------------------------------------------------

HEADS_HAVE = {
    "datasets": ("coco",),
    "models": ("coco.yaml", "coco-pose.yaml", "DOTAv1.yaml", "FILE.yaml", "imagenet"),
}


def group_of(path: Path) -> str:
    """Heads that are run by one test, in about the same time as others."""
    if path.parent.name != "cfg":
        return path.parent.name
    return "classifiers" if "-cls" in path.name else path.name[:6]


ONCE = ("yolov9", "yolo12", "yolo26-p2", "yolo26-p6")
"""Models whose heads of files differ by the family's name alone; one family is enough."""
ELSEWHERE = ("yolov10", "yolo26-sem", "yolo26-depth", "rtdetr", "yolov8-world", "yoloe-")
"""Models that `tests/test_heads.py` trains by the same command."""


def is_run(path: Path) -> bool:
    if path.parent.name == "examples" or path.name.startswith(ELSEWHERE):
        return False
    if any(block.reason for block in BLOCKS[path.relative_to(REPOSITORY).as_posix()]):
        return False
    return not path.name.startswith(ONCE) or path.name.endswith("_edgevit.yaml")


HEADS = {path: group_of(path) for path in YAMLS if is_run(path)}
DOCSTRINGS = {
    "examples/custom_backbone.py": (),
    "examples/torchvision_detectors.py": (),
    "examples/smp_segmenters.py": (),
    "examples/frozen_finetuning.py": ("repvit_m0_9_distill_450e.pth", "data.yaml", "best.pt"),
    "examples/tap_features.py": ("street.jpg", "best.pt", "repvit_m0_9_distill_450e.pth"),
}
"""Script whose docstring's commands are run -> what the reader has, beside the clone's examples/."""


@pytest.mark.parametrize("group", sorted({*HEADS.values()}))
def test_the_commands_in_the_heads_of_yamls_run_up_to_training(
    group: str, environment: Environment, server_of: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    brought = standins.make(tmp_path / "brought", HEADS_HAVE.get(group, HEADS_HAVE["models"]))
    jobs = []
    for path in [path for path, of in HEADS.items() if of == group]:
        (block,) = BLOCKS[path.relative_to(REPOSITORY).as_posix()]
        folder = tmp_path / path.stem
        folder.mkdir()
        for item in brought.iterdir():
            (folder / item.name).symlink_to(item)
        own = jobs_of(block, folder)
        jobs += own
        for job in own:
            if job.words[:2] == ("lightbackbones", "convert") and not (weights := folder / job.words[2]).exists():
                write_what_is_converted(weights, job.words, brought)
    installation = chosen(f"heads of {group}", request)
    through = installation.through(server_of(installation))
    for job, ended in run_all(jobs, tmp_path, through, environment(installation)):
        if job.words[0] == "yolo":
            assert_as_the_head_says(job, ended)


def jobs_of(block: Block, folder: Path) -> list[Job]:
    jobs = []
    for line in block.commands:
        words = commands.words(line)
        if words[0] not in commands.INSTALLERS:
            words = [word.replace("$PWD", str(folder)) for word in words]
            jobs.append(Job(str(folder), (*words, *commands.appended(words))))
    return jobs


def run_all(jobs: list[Job], folder: Path, through: list[str], environment: dict[str, str]) -> list[tuple[Job, Ended]]:
    folder.mkdir(exist_ok=True)
    results = list(zip(jobs, commands.run_forked(jobs, folder / "jobs", through, environment), strict=True))
    for job, ended in results:
        assert ended.code == 0, f"in {job.folder}: {' '.join(job.words)}\n{ended.output[-3000:]}"
    return results


def family_in(words: tuple[str, ...]) -> str | None:
    return next((family for family in CLASSES if any(family in word for word in words)), None)


def write_what_is_converted(weights: Path, words: tuple[str, ...], shared: Path) -> None:
    """Weights of the backbone, or the classifier that the command before, which is not run, would have trained."""
    from ultralytics import YOLO

    family = family_in(words)
    assert family
    made = shared / f"{family}.{weights.name}"
    if not made.exists():
        if weights.suffix:
            YOLO(f"{family}-cls.yaml").save(made)
        else:
            standins.write_weights(made, AT_SCALE_N[family])
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.symlink_to(made)


def assert_as_the_head_says(job: Job, ended: Ended) -> None:
    """The model is of the family in its name, the task the one that was asked for, the recipe's values are in force."""
    family = family_in(tuple(word for word in job.words if word.startswith("model=")))
    is_timm = any(f"_{series}.yaml" in word for series in SERIES for word in job.words)
    assert ended.started["layers"][0] == ("Timm" if is_timm else CLASSES[family] if family else "Conv"), job.words
    task = next((word for word in job.words if word in {"segment", "pose", "obb", "classify"}), "detect")
    assert ended.started["task"] == task
    for word in job.words:
        if word.startswith("cfg="):
            recipe = yaml.safe_load((REPOSITORY / "cfg" / "recipes" / word.removeprefix("cfg=")).read_text())
            said = {key: recipe[key] for key in ("optimizer", "lr0", "lrf", "momentum", "weight_decay")}
            assert said.items() <= ended.started["arguments"].items()


@pytest.mark.parametrize("script", DOCSTRINGS)
def test_the_commands_in_the_docstrings_of_examples_run(
    script: str, environment: Environment, server_of: Server, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    installation = chosen(script, request)
    variables = environment(installation)
    folder = standins.make(tmp_path / "anywhere", ("examples", *DOCSTRINGS[script]))
    (block,) = BLOCKS[script]
    assert block.reason is None
    for program in dict.fromkeys(commands.words(line)[0] for line in block.commands):
        lines = tuple(line for line in block.commands if commands.words(line)[0] == program)
        jobs = jobs_of(replace(block, commands=lines), folder)
        own = with_the_example(lines, variables, tmp_path / "site")
        run_all(jobs, tmp_path / program, installation.through(server_of(installation)), own)


def test_every_script_says_whether_its_commands_are_run() -> None:
    run = {page for page, found in BLOCKS.items() if page.endswith(".py") and any(not b.reason for b in found)}
    assert run == {*DOCSTRINGS, *(page for pages in FOLLOWED_BY.values() for page in pages)}


# --- without the plugin -----------------------------------------------------------------------------------------------


def test_the_questions_name_the_error_of_a_bundled_name_without_the_plugin(
    environment: Environment, here: Installation, tmp_path: Path
) -> None:
    variables = {**environment(here), "YOLO_LIGHTBACKBONES_AUTOLOAD": "0"}
    block = Block("a shell", 1, ("yolo train model=yolov5n_edgevit.yaml data=digits.yaml",))
    with pytest.raises(AssertionError) as failed:
        commands.run(block, tmp_path, variables)
    last = str(failed.value).strip().splitlines()[-1]
    assert last == "FileNotFoundError: 'yolov5_edgevit.yaml' does not exist"
    assert f"## `{last}`" in (REPOSITORY / "docs" / "faq.md").read_text(encoding="utf-8")
