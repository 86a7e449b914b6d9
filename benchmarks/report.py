"""Tables of the benchmarks: printed row by row, and written as Markdown and JSON side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskguided.bench import machine

Row = dict[str, str | int | float]


@dataclass
class Table:
    """Rows under one line that says what, where and how."""

    name: str
    what: str
    threads: int
    device: str = "cpu"
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.header = f"{self.what}; {machine(self.threads, self.device)}, {time.strftime('%Y-%m-%d')}"
        print(f"\n## {self.name}\n\n{self.header}\n", flush=True)

    def add(self, rows: Iterable[Row]) -> None:
        """Print the rows as they come, and keep them."""
        for row in rows:
            lines = _markdown([row])
            print("\n".join(lines if not self.rows else lines[2:]), flush=True)
            self.rows.append(row)

    def write(self, folder: Path) -> None:
        """NAME.md and NAME.json in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(_markdown(self.rows))
        (folder / f"{self.name}.md").write_text(f"{self.header}\n\n{lines}\n")
        content = {"header": self.header, "rows": self.rows}
        (folder / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _markdown(rows: Sequence[Row]) -> list[str]:
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([_shown(v) for v in row.values()] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _shown(value: str | float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
