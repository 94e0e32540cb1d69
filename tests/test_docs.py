"""What the texts promise: their links lead somewhere, and their commands are understood."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw_class, run_script
from PIL import Image

sys.path.insert(0, str(ROOT / "tools"))
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
SCRIPTS = {path.stem for path in [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")]}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)


def name_of(path):
    """A path as the texts name it."""
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=TEXTS, ids=name_of)
def text(request):
    """One of the texts, as its path."""
    return request.param


def anchors_of(page):
    """The anchors of the headings of a text, as GitHub makes them."""
    anchors = []
    for heading in re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8")):
        words = re.sub(r"[^\w\s-]", "", heading.lower())
        anchors.append(words.replace(" ", "-"))
    return anchors


def test_links_lead_to_a_file_or_a_heading(text):
    prose = re.sub(r"(?s)```.*?```", "", text.read_text(encoding="utf-8"))
    for target in LINK.findall(prose):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        page = text.parent / path if path else text
        assert page.exists(), f"{name_of(text)}: {target}"
        assert not anchor or anchor in anchors_of(page), f"{name_of(text)}: {target}"


def test_files_of_the_project_that_are_named_exist(text):
    for code in CODE.findall(text.read_text(encoding="utf-8")):
        if re.fullmatch(r"\w+\.py", code):
            assert code.removesuffix(".py") in SCRIPTS, f"{name_of(text)}: {code}"
        elif re.fullmatch(r"(docs|tools|tests|pretrained)/[\w./]*", code):
            assert (ROOT / code).exists(), f"{name_of(text)}: {code}"


def commands_of(path):
    """The commands of a text, as lists of words."""
    content = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"(?m)^(?:    |\$ |!)?((?:python|make|torchrun) .+)", content)
    for code in CODE.findall(content):
        if re.match(r"(python|make|torchrun) ", code):
            lines.append(code)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def options_of():
    """Gives what the --help of a script shows, by the script's path."""
    shown = {}

    def options_of(script):
        if script == "tools/published.py":  # which takes those of train.py
            script = "train.py"
        if script not in shown:
            name = Path(script).stem
            output = io.StringIO()
            with contextlib.redirect_stdout(output), pytest.raises(SystemExit):
                importlib.import_module(name).main(["--help"])
            shown[script] = set(re.findall(r"(?<!\w)--?\w[\w-]*", output.getvalue()))
        return shown[script]

    return options_of


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_recipes_of_the_makefile_are_understood(options_of):
    """Those of hours as well, whose options would else be found wrong after a stage."""
    targets = ["quick", "record", "variants", "demo", "bench", "check", "evaluate"]
    # Without what a make that runs these tests hands on.
    environment = {k: v for k, v in os.environ.items() if "MAKE" not in k}
    made = subprocess.run(
        ["make", "-n", "-o", ".venv/ready", *targets, "ARGS="],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    recipes = [shlex.split(r) for r in made.stdout.replace("\\\n", " ").splitlines()]
    assert len(recipes) > len(targets)
    for _, script, *options in recipes:
        for option in options:
            if option.startswith("-"):
                assert option in options_of(script), f"{script}: {option}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize("target", ["record", "variants"])
def test_recipes_whose_trainings_need_each_other_take_no_names(target):
    environment = {k: v for k, v in os.environ.items() if "MAKE" not in k}
    command = ["make", "-n", "-o", ".venv/ready", target]
    for options, status in (
        ("--seeds 2", 2),
        ("-b 64 --name=mine", 2),
        ("--data-dir images", 0),
    ):
        made = subprocess.run(
            [*command, f"ARGS={options}"],
            check=False,
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert made.returncode == status
        assert ("leave out" in made.stderr) == bool(status)


@pytest.mark.parametrize(
    ("version", "fits"),
    [((3, 10, 9), False), ((3, 11, 0), True), ((3, 14, 2), True), ((3, 15, 0), False)],
)
def test_make_takes_the_pythons_that_the_packages_are_for(monkeypatch, version, fits):
    checks = re.findall(r'python -c "(.+?)"', MAKEFILE.replace("\\\n\t", ""))
    checks += re.findall(r'\(PYTHON\) -c "(.+?)"', MAKEFILE.replace("\\\n\t", ""))
    checks = [check for check in checks if "version_info" in check]
    assert len(checks) == 2
    monkeypatch.setattr(sys, "version_info", version)
    for check in checks:
        with pytest.raises(SystemExit) as end:
            exec(check)  # noqa: S102 - of the Makefile
        assert (not end.value.code) == fits


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_make_without_a_unix_shell_says_so():
    environment = {k: v for k, v in os.environ.items() if "MAKE" not in k}
    made = subprocess.run(
        ["make", "-n", "OS=Windows_NT", "SHELL=sh.exe", "train"],
        check=False,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 2
    assert "Git Bash" in made.stderr


def test_commands_are_those_of_the_scripts(text, options_of):
    for words in commands_of(text):
        command = f"{name_of(text)}: {' '.join(words)}"
        script = "train.py"
        if words[0] == "make":
            assert words[1].strip(".,:") in TARGETS, command
            # All targets that are given options here pass them on to train.py.
            options = " ".join(words[2:]).removeprefix("ARGS=").split()
        else:
            while not words[0].endswith(".py"):  # torchrun's own options
                words.pop(0)
            script, *options = words
            assert (ROOT / script).exists(), command
        for option in options:
            if option.startswith("-"):
                name, _, _ = option.partition("=")
                assert name in options_of(script), f"{command}: {name}"


@pytest.mark.slow
def test_cells_of_the_notebook_run(tmp_path):
    """In one process, as a notebook runs them; what they end with is looked at."""
    text = (ROOT / "docs" / "notebook.md").read_text(encoding="utf-8")
    cells = re.findall(r"(?s)```python\n(.+?)```", text)
    assert len(cells) == 5
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    before = "import matplotlib; matplotlib.use('agg')\n"
    after = "\nprint(len(names), probabilities.shape)\n"
    result = run_script(tmp_path, "-c", before + "\n".join(cells) + after)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("5 torch.Size([5, 10])\n")
    assert (tmp_path / "drive" / "cifar" / "last.pt").exists()
    assert (tmp_path / "results" / "compare.png").exists()


# Runs the commands of a table one after another, each as if it were typed; of a training
# one batch of scikit-learn's digits.
TABLE_DRIVER = """
import importlib, json, sys
import engine, train

engine.STEPS = 20
digits = ["--dataset", "digits", "-b", "64"]
for folder in (["--name", "a"], ["--name", "b"], []):
    assert train.main([*digits, *folder, "--epochs", "1"]) == 0
for script, *options in json.loads(sys.argv[1]):
    if script in ("train.py", "dataset.py"):
        options += digits[:2]
    if script == "train.py":
        train.Files(train.parse_arguments(options)[0], train.ALONE)  # may they be written?
        options += [*digits[2:], "--dry-run"]
    print(script, *options, flush=True)
    status = importlib.import_module(script.removesuffix(".py")).main(options)
    assert not status, f"status {status}"
"""


@pytest.mark.slow
def test_commands_for_assignments_run(tmp_path):
    """Those of the table in docs/customize.md, which has as many rows as it says."""
    text = (ROOT / "docs" / "customize.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## What assignments ask for")
    section, _, _ = section.partition("\n## ")
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 27
    assert "Twenty-seven" in section
    commands = []
    for code in CODE.findall("\n".join(rows)):
        words = code.replace("5000", "100").split()  # of 1,437 images
        if words[0] == "python" and ("--export" not in words or has_onnx()):
            commands.append(words[1:])
    assert len(commands) > 25
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    result = run_script(tmp_path, "-c", TABLE_DRIVER, json.dumps(commands))
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr}"


@pytest.mark.slow
def test_the_random_crop_of_the_table_crops(tmp_path):
    """Nearly all images: one crop of 81 is where the image was, and its mirror is another."""
    text = (ROOT / "docs" / "customize.md").read_text(encoding="utf-8")
    (steps,) = re.findall(r"`(steps = \[A\.PadIfNeeded.+?\])`", text)
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    code = (tmp_path / "dataset.py").read_text(encoding="utf-8")
    assert code.count("steps = [flip, moves, cut]") == 1
    code = code.replace("steps = [flip, moves, cut]", steps)
    (tmp_path / "dataset.py").write_text(code, encoding="utf-8")
    script = (
        "import torch; from dataset import AugmentedImages, augmentation\n"
        "images = torch.randint(256, (1000, 32, 32, 3), dtype=torch.uint8)\n"
        "steps = augmentation((0.5, 0.5, 0.5), False, 0, 0)\n"
        "data = AugmentedImages(images, torch.arange(1000), steps, 0)\n"
        "changed = (data.augment(1, range(1000)) != images.numpy()).any((1, 2, 3))\n"
        "print(changed.mean())\n"
    )
    result = run_script(tmp_path, "-c", script)
    assert float(result.stdout) > 0.95, result.stderr


def has_onnx():
    """Whether the packages are installed that evaluate.py --export wants."""
    names = ("onnx", "onnxscript", "onnxruntime")
    return all(importlib.util.find_spec(name) for name in names)


EXECUTED = re.compile(r"<!-- executed by the tests -->\n+```\n(.+?)```", re.DOTALL)


@pytest.mark.slow
def test_commands_for_own_images_run(tmp_path):
    """Exactly as the README has them, beside a copy of the scripts."""
    (block,) = EXECUTED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    generator = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 10)):
        for label, name in enumerate(["cat", "dog"]):
            folder = tmp_path / "my-images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(draw_class(label, generator))
                image.resize((60, 45)).save(folder / f"{number}.jpg")
    image.save(tmp_path / "cat.jpg")
    shutil.copytree(tmp_path / "my-images" / "test" / "dog", tmp_path / "folder")
    commands = re.findall(r"^python (.+)$", block, re.MULTILINE)
    assert commands
    for command in commands:
        result = run_script(tmp_path, *shlex.split(command, comments=True))
        assert result.returncode == 0, f"{command}: {result.stderr}"
    assert re.search(r"^cat\.jpg .+%", result.stdout, re.MULTILINE)
