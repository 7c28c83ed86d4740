"""Every command that a document, a comment or a message prints exists and takes the options that it is given."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_vocabulary import commands, options

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "configs", "launcher", "fmad_dist", "data_tools")
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
TEXTS = [path for path in FILES if path.suffix in (".md", ".py", ".yaml", ".sbatch")]
TEXTS += [ROOT / "README.md", ROOT / "Makefile"]
PLACEHOLDERS = {"NAME", "X", "<words>", "<command>", "...", "{arguments[0]}"}


def printed(text: str) -> Iterator[list[str]]:
    """The words after `fmad` of every command, also of those under `accelerate launch`."""
    text = re.sub(r"\\+\n", " ", text)
    lines = "".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)) or text
    for where, pattern in (text, r"`(?:\$ )?fmad ([^`]+)`"), (lines, r"(?:^(?:#\s+)?|\$\(|/)fmad ([^)\n]+)"):
        for found in re.finditer(pattern, where, re.MULTILINE):
            yield found[1].split()
    for found in re.finditer(r"launcher/(\w+)\.py([^`\n]*)", text):
        yield [found[1], *found[2].split()]


def problem(words: list[str]) -> str | None:
    """What is wrong with a command, if anything."""
    known = commands()
    groups = {name.partition(" ")[0] for name in known if " " in name}
    if words[0] in PLACEHOLDERS or words[0].startswith("-"):
        return None
    name = words[0]
    if name in groups:
        if len(words) == 1 or words[1] in PLACEHOLDERS:
            return None
        name = f"{name} {words[1]}"
    name = name.rstrip(".,;:)")
    if name not in known:
        return f"there is no `fmad {name}`"
    given = {match[0] for word in words if (match := re.match(r"--[a-z][a-z-]*", word.lstrip("[(")))}
    unknown = given - set(options(known[name])) - {"--help"}
    return f"`fmad {name}` does not take {', '.join(sorted(unknown))}" if unknown else None


def test_commands_that_are_printed_exist() -> None:
    found = {path: list(printed(path.read_text())) for path in TEXTS}
    assert sum(map(len, found.values())) > 150, "nothing is looked at"
    problems = [
        f"{path.relative_to(ROOT)}: {wrong} ({' '.join(words)})"
        for path, every in found.items()
        for words in every
        if (wrong := problem(words))
    ]
    assert problems == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`fmad evaluate --manifest x`", "`fmad evaluate` does not take --manifest"),
        ("fmad bench --config five.yaml", "there is no `fmad bench --config`"),
        ("accelerate launch launcher/train.py \\\n  --data x --dta y", "`fmad train` does not take --dta"),
        ("`fmad data lint DATA`", None),
    ],
)
def test_a_wrong_one_is_found(text: str, expected: str | None) -> None:
    (words,) = printed(text)
    assert problem(words) == expected
