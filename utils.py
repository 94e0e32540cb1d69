"""What the scripts share: the size of images, one-line errors, whole files, options."""

import argparse
import contextlib
import csv
import errno
import glob
import io
import json
import math
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unicodedata import category

from tqdm import tqdm

PROJECT = Path(__file__).parent
SIDE = 32  # pixels: height and width of all images, and what networks are made for
NEEDED = 20_000_000  # bytes of disk for a training's files, twice their usual size


class UserError(Exception):
    """Something the user can put right: what is wrong, and what to do about it."""


class OwnError(UserError):
    """A `UserError` that one of several processes meets alone, so that it prints it."""


def run(main):
    """Run a script's `main` and exit with its status; 2 and one line on a `UserError`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    for name in ("stdout", "stderr"):  # which may be closed, as by `2>&-`
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # The name of a file may hold what the terminal's encoding lacks: print it escaped. And
    # what is written into a file can be read there line by line, while it goes on.
    if hasattr(sys.stdout, "reconfigure"):  # that of a notebook, or of IDLE, has none
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        status = main()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # of `... | head`; the flush at exit must not fail as well
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, PermissionError) as error:
        if isinstance(error, PermissionError):  # of Path.exists and others, before 3.14
            if error.filename is None:
                raise
            error = OwnError(f"no permission for {error.filename}")
        message = f"{Path(sys.argv[0]).name}: error: {error}"
        complain(message, in_any_process=isinstance(error, OwnError))
        sys.exit(2)
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(130)


@contextlib.contextmanager
def uninterrupted():
    """Let Ctrl-C and SIGTERM wait until the block is done, so that its files agree."""
    waiting, handlers = [], {}
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            handlers[kind] = signal.signal(kind, lambda kind, _: waiting.append(kind))
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)
    for kind in waiting:
        signal.raise_signal(kind)


def complain(message, in_any_process=False):
    """Print one line on stderr; of the processes torchrun started, one per node does."""
    if in_any_process or is_first_on_its_node():
        print(printable(" ".join(message.split())), file=sys.stderr)


def is_first_on_its_node():
    """Whether no other of the processes that torchrun started here speaks for this one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def printable(text):
    """A text, such as the name of a file, with what does not print on a line escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode()
        for one in str(text)
    )


def line_of(error):
    """Where in the project's own code an error comes from, as "file.py, line 12"."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = Path(frame.filename)
        is_installed = "site-packages" in file.parts  # into .venv, which is in PROJECT
        if PROJECT in file.parents and not is_installed:
            return f"{file.name}, line {frame.lineno}"
    return "in a library"


def check_regular_file(path):
    """Raise UserError for what is there but no regular file, without opening it.

    To open a named pipe would wait for another process to write, maybe for ever.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # reading it says what is wrong
    if stat.S_ISDIR(mode):
        raise UserError(f"{path} is a folder")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is a pipe or device, not a file")


def progress(items, name, **settings):
    """A bar on stderr, on a terminal alone, in one of the processes that torchrun started."""
    is_off = None if is_first_on_its_node() else True  # None: where it is no terminal
    return tqdm(items, name, leave=False, disable=is_off, **settings)


class DefaultsInWords(argparse.ArgumentDefaultsHelpFormatter):
    """Adds "(default: ...)" to an option's help where there is a default to show.

    Where that is None the help itself says what happens without the option.
    """

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, with the defaults in --help and an error in one line."""

    def __init__(self, **settings):
        super().__init__(formatter_class=DefaultsInWords, **settings)

    def error(self, message):
        complain(f"{self.prog}: error: {message} (--help shows the options)")
        self.exit(2)


def number(kind, low, high=math.inf, below=math.inf):
    """An argparse type: a finite int or float from `low` to `high`, and under `below`."""
    if below < math.inf:
        span = f"{low} or more, and below {below}"
    elif high < math.inf:
        span = f"{low} to {high}"
    else:
        span = f"{low} or more"

    def parse(text):
        value = kind(text)
        if not (low <= value <= high and value < below):
            raise argparse.ArgumentTypeError(f"{text} is not {span}")
        return value

    parse.__name__ = kind.__name__  # how argparse calls it where `kind` fails
    return parse


def write_file(path, data):
    """Write bytes so that the file is at any moment the old or the new one, whole.

    They are on the disk before they take the old one's place. Each process has a temporary
    file of its own; what a kill leaves of one, `check_writable` removes.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}")


def replace(source, path):
    """Put one file in the place of another.

    On Windows a program that reads the other one, such as a virus scanner, hinders it: then
    it is tried for some seconds.
    """
    tries = 20 if sys.platform == "win32" else 1
    for left in reversed(range(tries)):
        try:
            return os.replace(source, path)
        except PermissionError:
            if left == 0:
                raise
            time.sleep(0.25)


def check_writable(*paths):
    """Raise UserError now for a file that could not be written when it is due.

    What a kill may have left of an earlier write is removed; what another process is
    writing is not.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder")
        parents = path.absolute().parents
        folder = next((parent for parent in parents if parent.exists()), None)
        if folder is None:  # a drive of Windows
            raise UserError(
                f"cannot write {path}: there is no {path.absolute().anchor}"
            )
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
            if shutil.disk_usage(folder).free < NEEDED:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            remove_leftovers(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}")


def matching(path):
    """The paths of a pattern such as *.jpg, which Windows leaves as it is; else the path."""
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    return [Path(name) for name in sorted(glob.glob(str(path)))]


def times(sizes):
    """Such as 3x3."""
    return "x".join(map(str, sizes))


def in_short(sides):
    """Of height and width: one number where they are equal, "?" where they are None."""
    if sides is None:
        return "?"
    return times(sides if sides[0] != sides[1] else sides[:1])


def remove_leftovers(path):
    """Remove the temporary files of a path whose processes have ended."""
    for left in path.parent.glob(glob.escape(path.name) + ".*.tmp"):
        pid = left.name.removeprefix(f"{path.name}.").removesuffix(".tmp")
        if pid.isascii() and pid.isdigit() and not is_running(int(pid)):
            left.unlink(missing_ok=True)


def is_running(pid):
    """Whether there is a process of this number; on Windows, where asking would end it, yes."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; too large a number
        return True
    return True


def write_csv(path, rows):
    """Write a list of dictionaries as a table; what a row lacks is left empty."""
    names = {name: None for row in rows for name in row}  # each once, in order
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    # The name of a file need not be text.
    write_file(path, text.getvalue().encode(errors="backslashreplace"))


def write_json(path, content):
    """Write plain types as an indented JSON file, as `write_file` does."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


def is_text(value):
    """Whether a value is a string that prints: no control characters, no stray bytes."""
    return isinstance(value, str) and {"Cc", "Cs"}.isdisjoint(map(category, value))
