"""The README's guide: each of its edits is applied to a copy, and does what it says."""

import re
import shutil

import pytest
from conftest import ROOT, run_script

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = README.split("\n## Make it yours\n")[1].split("\n## ")[0]
EDIT = r"### (.+?)\n.*?```diff\n--- (.+?)\n(.+?)```.*?```\n\$ python (.+?)\n(.+?)```"
EDITS = re.findall(EDIT, GUIDE, re.DOTALL)


def test_guide_is_read():
    assert len(EDITS) == GUIDE.count("\n### ") == GUIDE.count("```diff") == 5


@pytest.mark.parametrize(
    "name, diff, command, shown",
    [edit[1:] for edit in EDITS],
    ids=[edit[0] for edit in EDITS],
)
def test_edit_does_what_it_says(tmp_path, name, diff, command, shown):
    for script in ROOT.glob("*.py"):
        shutil.copy(script, tmp_path)
    lines = diff.splitlines(keepends=True)
    before, after = (
        "".join(line[1:] for line in lines if line[0] in signs)
        for signs in (" -", " +")
    )
    edited = tmp_path / name
    text = edited.read_text(encoding="utf-8")
    assert text.count(before) == 1
    edited.write_text(text.replace(before, after), encoding="utf-8")

    script, *options = command.split()
    result = run_script(tmp_path, script, *options)
    assert result.returncode == 0, result.stderr
    printed = iter(result.stdout.splitlines())
    for line in shown.splitlines():
        assert line == "..." or line in printed  # the iterator keeps the order

    network = options if script == "model.py" else []
    training = ["train.py", "--dataset", "digits", "--dry-run", "--device", "cpu"]
    result = run_script(tmp_path, *training, *network)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stdout
