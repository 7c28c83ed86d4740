"""Licences: what counts of several notes, and lines that only look like one."""

from pathlib import Path

import pytest

from data_tools.readers.mvtec import MPDD
from data_tools.readers.notes import licence_in, provenance_of

APACHE = "                                 Apache License\n                           Version 2.0, January 2004\n"
MIT = "Copyright (c) 2020 someone\n\nPermission is hereby granted, free of\ncharge, to any person obtaining a copy\n"
NC = "The images are licensed under CC BY-NC-SA 4.0.\n"


def tree(root: Path, **notes: str) -> tuple[Path, list[Path]]:
    """A root with the classes bolt and nut; notes by path, `__` for a slash."""
    for name in ("bolt", "nut"):
        (root / name).mkdir()
    for name, text in notes.items():
        (root / name.replace("__", "/").replace("_DASH_", "-")).write_text(text)
    return root, [root / "bolt", root / "nut"]


def test_the_licence_of_the_data_outranks_that_of_the_code(tmp_path: Path) -> None:
    found = provenance_of(*tree(tmp_path, LICENSE=APACHE, LICENSE_DASH_DATASET=NC))
    assert found.licence == NC.strip()
    assert len(found.disagreements) == 1
    assert "Apache License" in found.disagreements[0]


@pytest.mark.parametrize("name", ["LICENSE-DATASET.txt", "DATA_LICENSE", "dataset-licence.md", "LICENSE_IMAGES"])
def test_names_of_files_about_the_data(tmp_path: Path, name: str) -> None:
    root, classes = tree(tmp_path, LICENSE=MIT)
    (root / name).write_text(NC)
    assert provenance_of(root, classes).licence == NC.strip()


def test_notes_of_classes_outrank_a_licence_of_code(tmp_path: Path) -> None:
    root, classes = tree(tmp_path, LICENSE=MIT, **{"bolt__license.txt": NC})
    assert provenance_of(root, classes).licence == f"bolt: {NC.strip()}; nut: MIT License"
    (root / "nut/license.txt").write_text(NC)
    found = provenance_of(root, classes)
    assert found.licence == NC.strip()
    assert "MIT License" in found.disagreements[0]


def test_what_the_owner_published_outranks_a_licence_of_code(tmp_path: Path) -> None:
    root, classes = tree(tmp_path, LICENSE=MIT)
    found = provenance_of(root, classes, MPDD)
    assert found.licence == "CC BY-NC-SA 4.0 (as published for MPDD)"
    assert "MIT License" in found.disagreements[0]
    assert provenance_of(root, classes).licence == "MIT License"


def test_ways_of_writing_one_licence_agree(tmp_path: Path) -> None:
    text = "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International\n"
    found = provenance_of(*tree(tmp_path, LICENSE=text), MPDD)
    assert found.licence == text.strip()
    assert found.disagreements == ()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"# License\n\n{NC}", NC.strip()),
        (f"License\n=======\n\n{NC}", NC.strip()),
        (f"[![License: MIT](https://img.shields.io/badge/License-MIT-yellow.svg)](x)\n## Licence\n{NC}", NC.strip()),
        (
            "├── LICENSE\n|-- license.txt\n+-- licence\n\nimages: [CC BY 4.0](http://x) license\n",
            "images: CC BY 4.0 license",
        ),
        ("## License: CC BY 4.0\n", "License: CC BY 4.0"),
        ("# Products\nno word about it\n└── LICENSE\n## License\n", ""),
    ],
)
def test_no_heading_badge_or_drawing_is_a_licence(text: str, line: str) -> None:
    assert licence_in(text, sentence=True) == line
    assert "shields" not in licence_in(text)
