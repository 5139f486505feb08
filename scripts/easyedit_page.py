"""Write docs/easyedit.md from the tables by which EasyEdit files are read: python scripts/easyedit_page.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from betaedit.editors.easyedit import EVERYWHERE, EasyEditTable, Key
from betaedit.editors.easyedit_file import tables

PAGE = Path(__file__).parents[1] / "docs" / "easyedit.md"
HEAD = """\
# Files of EasyEdit

`--config` also takes a hyper-parameter file of [EasyEdit](https://github.com/zjunlp/EasyEdit)
(`hparams/<METHOD>/<model>.yaml`), in `betaedit edit`, `compare`, `init`, `align` and `train-editor`:

```sh
betaedit edit "The capital of [France] is" "Rome" --model gpt2-xl --config hparams/ROME/gpt2-xl.yaml
```

- A file is recognised by its keys (`alg_name`, `alg`, `model_name`, `rewrite_module_tmp` or `inner_params`), not by its
  folder. `alg_name` names the method: `--method` may be left out, and another one is refused. Without `alg_name`, as in
  the JSON files of MEMIT's and AlphaEdit's authors, `--method` is needed.
- `compare` gives the file to those of its methods that it is for; the others keep their settings.
- Each key becomes a setting, or has no effect here. One line on stderr names all keys without effect, and one more each
  value that is not carried over exactly.
- Unknown keys are refused with file and line, and so are values for which there is nothing like it here.
- Modules must be MLP output projections (`down_proj`, `c_proj`, `fc_out`, `dense_4h_to_h`, `fc2`, `w2`): no others are
  edited here. EasyEdit's MEND files for training name further matrices; delete those names first.
- Numbers of layers are taken as they are, and must exist in the model.
- The file overrides the preset; `--seed` and `--set` override the file. What EasyEdit's code does without a key is set,
  too ("fixed" below): a preset does not change it.

This page is written by `python scripts/easyedit_page.py`; a test fails when it differs from the code.

## Keys of all methods
"""


def page() -> str:
    """The whole page."""
    sections = [HEAD, *_rows(EVERYWHERE), ""]
    for table in tables():
        sections += _section(table)
    return "\n".join(sections)


def _section(table: EasyEditTable) -> list[str]:
    """One table as a section."""
    when = "".join(f", `{key}: {value}`" for key, value in table.when.items())
    methods = " or ".join(f"`{name}`" for name in table.methods)
    lines = [f"## {table.alg_name}{when.replace('`', '')}", "", f"Method {methods}.", ""]
    lines += [*_rows(table.keys), ""]
    if table.training:
        lines += [
            "In a training (`betaedit train-editor`); an edit does not use these:",
            "",
            *_rows(table.training),
            "",
        ]
    if table.fixed:
        fixed = ", ".join(f"`{name}={_text(value)}`" for name, value in table.fixed.items())
        lines += [f"Fixed: {fixed}.", ""]
    return lines


def _rows(keys: Mapping[str, Key]) -> list[str]:
    """Keys with one meaning in one row."""
    by_meaning: dict[str, list[str]] = {}
    for key, kind in keys.items():
        by_meaning.setdefault(kind.meaning, []).append(f"`{key}`")
    rows = [f"| {', '.join(names)} | {meaning} |" for meaning, names in by_meaning.items()]
    return ["| key | here |", "| --- | --- |", *rows]


def _text(value: object) -> str:
    return "none" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
