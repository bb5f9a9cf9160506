"""Put the tables of a finished demo into README.md: `bochner demo --out docs/demo`, then this.

What README shows between its markers is docs/demo/tables.md, word for word; a test compares them.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- demo:begin (written by tools/readme_from_demo.py) -->"
END = "<!-- demo:end -->"


def block_of(text: str) -> str:
    """What stands between the markers."""
    return text.split(BEGIN, 1)[1].split(END, 1)[0].strip()


def measured_tables() -> str:
    """The demo's own tables."""
    return (ROOT / "docs/demo/tables.md").read_text(encoding="utf-8").strip()


def main() -> None:
    """Replace the block."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, tail = text.split(BEGIN, 1)[0], text.split(END, 1)[1]
    readme.write_text(f"{head}{BEGIN}\n{measured_tables()}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
