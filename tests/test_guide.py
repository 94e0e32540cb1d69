"""The guide: each of its edits is applied to a copy, and does what it says."""

import re
import shutil
from typing import NamedTuple

import pytest
from conftest import ROOT, run_script

MOST_LINES = 15  # that an edit may change
CHANGE_TRAINING = ("train.py", "engine.py", "dataset.py")  # resuming stays exact


class Edit(NamedTuple):
    """An edit as the guide shows it."""

    name: str
    file: str
    diff: str
    command: str
    shown: str  # what the command prints, "..." standing for what is left out


EDIT = re.compile(
    r"\n### ([^\n]+)\n"  # a title, and text up to the next one
    r"(?:(?!\n#).)*?```diff\n--- ([^\n]+)\n(.+?)```"
    r"\n+```\n\$ python ([^\n]+)\n(.+?)```",
    re.DOTALL,
)


def read_edits(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    return text, [Edit(*match) for match in EDIT.findall(text)]


GUIDE, EDITS = read_edits("docs/customize.md")
README, SHORT = read_edits("README.md")

# Runs the command, then trains two epochs, is stopped in the second, goes on, evaluates
# and compares. Where asked to, it last trains without a stop, to the same weights.
DRIVER = """
import importlib, sys
import torch
import compare, evaluate, train

script, options, network, again = (argument.split() for argument in sys.argv[1:])
status = importlib.import_module(script[0]).main(options)
print("status", status or 0, flush=True)

train_one_epoch = train.train_one_epoch

def stop_in_the_second(training, loader, epoch, *rest):
    if epoch == 2:
        raise KeyboardInterrupt
    return train_one_epoch(training, loader, epoch, *rest)

digits = ["--dataset", "digits", "--epochs", "2", "--device", "cpu", *network]
train.train_one_epoch = stop_in_the_second
assert train.main([*digits, "--name", "edit"]) == 130
train.train_one_epoch = train_one_epoch
assert train.main(["--resume", "results/edit/last.pt"]) == 0
assert not evaluate.main(["--ckpt", "results/edit/best.pt"])
assert not compare.main(["results/edit"])

print("again", flush=True)
if not again:
    sys.exit()
assert train.main([*digits, "--name", "whole"]) == 0
resumed, whole = (torch.load(f"results/{name}/last.pt") for name in ("edit", "whole"))
for name, weight in whole["weights"].items():
    assert weight.equal(resumed["weights"][name]), f"resuming changes {name}"
"""


def hunks(diff):
    """The texts that a diff takes out and puts in, in pairs."""
    for hunk in diff.split("@@\n"):
        before, after = [], []
        for line in hunk.splitlines(keepends=True):
            text = "\n" if line == "\n" else line[1:]  # an empty line is kept as it is
            if line[0] != "+":
                before.append(text)
            if line[0] != "-":
                after.append(text)
        yield "".join(before), "".join(after)


def apply(edit, folder):
    """Edit a file of a copy of the project."""
    path = folder / edit.file
    text = path.read_text(encoding="utf-8")
    for before, after in hunks(edit.diff):
        assert text.count(before) == 1, (
            f"'{edit.name}' no longer fits {edit.file}, which does not hold these lines "
            f"once:\n{before}Did you edit the default table or recipe? Then this is no "
            "fault of yours: the guide shows edits of the original"
        )
        text = text.replace(before, after)
    path.write_text(text, encoding="utf-8")


def check_shown(edit, printed):
    """All lines that the guide shows are printed, in their order."""
    lines = iter(printed.splitlines())
    for line in edit.shown.splitlines():
        if line == "...":
            continue
        pattern = ".+".join(map(re.escape, line.split("...")))
        assert any(re.fullmatch(pattern, found) for found in lines), (
            f"'{edit.name}': the guide shows this line of {edit.command}\n{line}\n"
            "which is not printed there. Did you edit the default table or recipe? Then "
            "this is no fault of yours: the guide shows figures of the original. All that "
            f"is printed:\n{printed}"
        )


def test_guide_has_ten_short_edits():
    assert len(EDITS) == GUIDE.count("\n### ") == GUIDE.count("```diff") == 10
    for edit in EDITS:
        assert (ROOT / edit.file).exists(), edit.name
        assert "\n--- " not in edit.diff, edit.name
        changed = [line for line in edit.diff.splitlines() if line[:1] in ("+", "-")]
        assert 1 <= len(changed) <= MOST_LINES, edit.name


def test_readme_shows_two_edits_of_the_guide():
    assert len(SHORT) == README.count("```diff") == 2
    assert "(docs/customize.md)" in README
    for edit in SHORT:
        assert edit in EDITS, f"README.md shows '{edit.name}' otherwise than the guide"


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS, ids=[edit.name for edit in EDITS])
def test_edit_does_what_it_says(tmp_path, edit):
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    apply(edit, tmp_path)

    script, options = re.fullmatch(r"(\w+)\.py ?(.*)", edit.command).groups()
    network = options if script == "model" else ""
    again = "again" if edit.file in CHANGE_TRAINING else ""
    result = run_script(tmp_path, "-c", DRIVER, script, options, network, again)
    printed, _, rest = result.stdout.partition("status ")
    assert rest, f"{edit.command}: {result.stderr}"
    check_shown(edit, printed)
    assert rest[0] == ("1" if "FAIL" in printed else "0")

    assert result.returncode == 0, f"{rest}\n{result.stderr}"
    assert result.stderr == ""
    trained, _, _ = rest.partition("\nagain\n")
    epochs = re.findall(r"^epoch (\d/\d) .*", trained, re.MULTILINE)
    assert epochs == ["1/2", "2/2"]
    assert re.search(
        r"^Test loss .* on the 360 images of digits$", trained, re.MULTILINE
    )
    assert re.search(r"^edit .* 2/2 ", trained, re.MULTILINE)
