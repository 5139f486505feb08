"""The benchmarks: each does the same work with this engine and with the published procedure, and compares results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch
from torch import Tensor

from betaedit.benchmarks.published import DenseSolver, PublishedEditor, forward_to, null_directions, published_moments
from betaedit.benchmarks.rows import Row, arithmetic, bandwidth, relative_error, seconds
from betaedit.benchmarks.turns import Contestant, take_turns
from betaedit.editors.closed_form.config import EditConfig
from betaedit.editors.closed_form.editor import closed_form
from betaedit.editors.closed_form.encode import EncodedBatch, encode_batch
from betaedit.editors.closed_form.engine import Engine
from betaedit.editors.closed_form.recipes import find_recipe
from betaedit.editors.closed_form.values import Value, optimize_values
from betaedit.editors.contexts import context_templates
from betaedit.editors.editor import Editor
from betaedit.evaluation.drift import held_out_prose
from betaedit.facts.fact import Fact
from betaedit.memory.associative import AssociativeMemory
from betaedit.memory.rule import MemoryRule
from betaedit.memory.update import Update
from betaedit.models.load import LanguageModel
from betaedit.models.lookup import pad_rows, pad_token_id, tokenize
from betaedit.statistics.collect import Sums, add_rows, batches

_Found = TypeVar("_Found")
_KEPT = 0.82  # null spaces of real models keep 80 to 85% of the directions
_D_OUT_SHARE = 3
_HISTORY = 100
_EDITS = 5
_ROW = 256
_PUBLISHED = {
    "context_openings": EditConfig.of({}).context_openings,
    "value_steps": 25,
    "value_optimizer": "adam",
    "value_stop_loss": 0.05,
    "value_stop_probability": None,
    "value_margin": 0.0,
    "value_look_ahead": 1,
    "conflicts": "naive",
    "shared_subjects": "apart",
}


def solve(width: int, *, config: EditConfig | None = None, device: torch.device | str = "cpu") -> list[Row]:
    """One layer's edit at ``d_in = width`` with 100 keys written before: float64 and float32 roots.

    Timed are the solve, adding its update to a float32 weight, and remembering the key. Each row's ``relative_error``
    is against the float32 reference, ``float64_error`` against the same in float64.
    """
    config = config or EditConfig.of({})
    moment = synthetic_moment(width, config.nullspace_threshold, device)
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(width, _HISTORY + _EDITS, generator=generator).to(device)
    residuals = torch.randn(width // _D_OUT_SHARE, _EDITS, generator=generator).to(device)
    dense, expected, exact = _dense_updates(moment, config, keys, residuals)
    weight = torch.zeros(len(residuals), width, device=device)
    speed = bandwidth(device)
    rows: list[Row] = []
    for dtype in (torch.float64, torch.float32):
        memory = AssociativeMemory(moment, _rule(config), basis_dtype=dtype)
        memory.remember(keys[:, :_HISTORY])

        def ours(key: Tensor, residual: Tensor, memory: AssociativeMemory = memory) -> Update:
            found = memory.solve(key, residual)
            weight.addmm_(found.left.to(weight), found.right.to(weight).T)
            memory.remember(key)
            return found

        taken, update = _timed_updates(ours, keys, residuals, device)
        found = update.dense()
        kept = memory.rank
        readings = 1 if dtype == torch.float64 else 2
        read = readings * width * kept * dtype.itemsize
        rows.append(
            Row(
                name=f"solve d={width} {str(dtype).removeprefix('torch.')}",
                ours_seconds=taken,
                reference_seconds=dense,
                relative_error=relative_error(found, expected),
                floor_seconds=(read + 2 * weight.nbytes) / speed,
                details={
                    "float64_error": relative_error(found, exact),
                    "kept": kept / width,
                    "history": _HISTORY,
                    "bytes": memory.nbytes,
                },
            )
        )
    return rows


def _dense_updates(moment: Tensor, config: EditConfig, keys: Tensor, residuals: Tensor) -> tuple[float, Tensor, Tensor]:
    """Median seconds of the timed updates by the dense formula in float32; the last of them, and that in float64."""
    directions = null_directions(moment, config.nullspace_threshold)
    exact = DenseSolver(moment.double(), config, directions)
    earlier = keys[:, :-1].double()
    exact.history += earlier @ earlier.T
    update = exact.update(keys[:, -1:].double(), residuals[:, -1:].double())
    del exact, earlier  # at d = 14336 every matrix counts
    solver = DenseSolver(moment, config, directions)
    solver.history += keys[:, :_HISTORY] @ keys[:, :_HISTORY].T
    weight = torch.zeros(len(residuals), len(keys), device=keys.device)

    def published(key: Tensor, residual: Tensor) -> Tensor:
        found = solver.update(key, residual)
        weight.add_(found)
        return found

    return *_timed_updates(published, keys, residuals, keys.device), update


def value(editor: Editor, facts: Sequence[Fact]) -> list[Row]:
    """Values by the published settings, then by the editor's own, against whole passes with the published settings.

    Fact by fact, as the published code and edits at batch size 1 seek them, and all facts sharing passes.
    """
    editing = closed_form(editor)
    model, preset = editing.model, editing.config
    plain = preset.replace(**_PUBLISHED)
    contexts = {plain: context_templates(model, plain), preset: editing.engine.contexts}
    published = PublishedEditor(model, contexts[plain], plain, editing.statistics.matrices)
    expected: list[tuple[Tensor, int]] = []

    def ours(config: EditConfig, found: list[Value], group: Sequence[Fact]) -> None:
        found += optimize_values(model, encode_batch(model, group, contexts[config], config), config)

    reference = Contestant("published", lambda group: expected.extend(published.value(fact) for fact in group))
    ways = [
        (name, config, together, list[Value]())
        for name, config in (("published settings", plain), ("preset", preset))
        for together in (False, True)
    ]
    others = [
        Contestant(
            f"value, {name}" + (f", {len(facts)} facts together" if together else ""),
            partial(ours, config, found),
            len(facts) if together else 1,
        )
        for name, config, together, found in ways
    ]
    for group in (facts[:1], facts):  # what is made once is made before, for few positions and for many
        ours(plain, [], group)
    take_turns([reference, *others], facts, model.device)
    rows: list[Row] = []
    for (_, config, together, found), contestant in zip(ways, others, strict=True):
        pairs = zip(found, expected, strict=True)
        error = max(relative_error(sought.target, z) for sought, (z, _) in pairs) if config is plain else None
        evaluations = [value.n_evaluations for value in found]
        lower_bounds: dict[str, float] = {}
        if not together:
            lower_bounds = _least_seconds(
                editor, [encode_batch(model, [f], contexts[config], config) for f in facts], evaluations
            )
        details = {
            "facts": len(facts),
            "evaluations": sum(evaluations) / len(facts),
            "reference_evaluations": sum(steps for _, steps in expected) / len(facts),
            **lower_bounds,
        }
        floor = max(lower_bounds.values(), default=None)
        taken, dense = contestant.taken / len(facts), reference.taken / len(facts)
        rows.append(Row(contestant.name, taken, dense, error, floor, details))
    return rows


def edit(editor: Editor, facts: Sequence[Fact]) -> list[Row]:
    """Whole edits in sequence: published settings, the editor's own, batches of ten, and looking ten facts ahead."""
    editing = closed_form(editor)
    model, preset, moments, own = editing.model, editing.config, editing.statistics, editing.engine.contexts
    editor.reset()
    plain = preset.replace(**_PUBLISHED)
    contexts = context_templates(model, plain)
    published = PublishedEditor(model, contexts, plain, moments.matrices)
    weights = [model.anatomy.projection(layer).get_parameter("weight").detach() for layer in plain.layers]

    def reference(group: Sequence[Fact]) -> None:
        for fact in group:
            published.edit(fact)

    def ours(engine: Engine, batch: int, group: Sequence[Fact]) -> None:
        list(engine.write(group, batch_size=batch))

    contestants = [Contestant("published", reference, 1, weights)]
    for name, config, batch in (
        ("edit, published settings", plain, 1),
        ("edit, preset", preset, 1),
        ("edit, preset, batches of 10", preset, 10),
        ("edit, preset, look-ahead 10", preset.replace(value_look_ahead=10), 1),
    ):
        engine = Engine(model, editing.recipe, config, moments, contexts if config is plain else own)
        step = batch * config.value_look_ahead
        contestants.append(Contestant(name, partial(ours, engine, batch), step, weights, engine.check_weights))
    optimize_values(model, encode_batch(model, facts[:1], contexts, plain), plain)  # what is made once is made before
    before = [weight.clone() for weight in weights]
    take_turns(contestants, facts, model.device)
    for weight, original in zip(weights, before, strict=True):
        weight.copy_(original)
    dense, same, *_ = contestants
    errors = [relative_error(a - w, b - w) for a, b, w in zip(same.left, dense.left, before, strict=True)]
    return [
        Row(
            contestant.name,
            contestant.taken / len(facts),
            dense.taken / len(facts),
            max(errors) if contestant is same else None,
            details={"facts": len(facts)},
        )
        for contestant in contestants[1:]
    ]


def statistics(editor: Editor, *, n_tokens: int = 8192) -> list[Row]:
    """Second moments of all edited layers over the same tokens: one pass for all, against passes of each layer's own.

    The floor is a bare forward pass through the same layers, without a product of keys.
    """
    editing = closed_form(editor)
    model, layers = editing.model, editing.config.layers
    rows, count = _prose_rows(model, n_tokens)
    padded = [pad_rows(batch, pad_token_id(model.tokenizer)) for batch in batches(rows)]
    blocks = [(ids.to(model.device), mask.to(model.device)) for ids, mask in padded]
    widths = {layer: len(matrix) for layer, matrix in editing.statistics.matrices.items()}

    def ours() -> Sums:
        with TemporaryDirectory() as folder:
            sums = Sums(Path(folder) / "sums", widths)
            add_rows(model, sums, rows, count)
        return sums

    def bare() -> None:
        for ids, mask in blocks:
            forward_to(model, ids, mask, layers[-1])

    found = ours()
    taken, floor = seconds(ours, repeat=2, device=model.device), seconds(bare, repeat=2, device=model.device)
    details = {"tokens": count, "layers": list(layers), "share_of_bare_speed": floor / taken}
    result: list[Row] = []
    for name, whole in (("statistics, whole passes", True), ("statistics, passes stopped at the layer", False)):
        expected: dict[int, Tensor] = {}

        def published(expected: dict[int, Tensor] = expected, whole: bool = whole) -> None:
            expected |= published_moments(model, layers, blocks, whole=whole)

        reference = seconds(published, device=model.device)
        error = max(relative_error(found.mean(layer), expected[layer].cpu()) for layer in layers)
        result.append(Row(name, taken, reference, error, floor, details))
    return result


def growth(
    width: int, *, counts: Sequence[int] = (1, 100, 1000, 10_000), device: torch.device | str = "cpu"
) -> list[Row]:
    """One layer's update after many synthetic keys, compared with that after 100: the mean over one fold.

    Each has one fold among its updates. Last, the share that this has in every one of them.
    """
    config = EditConfig.of({})
    memory = AssociativeMemory(synthetic_moment(width, config.nullspace_threshold, device), _rule(config))
    generator = torch.Generator().manual_seed(1)
    rows: list[Row] = []
    for count in counts:
        while memory.n_written < count:
            missing = min(count - memory.n_written, 256)
            memory.remember(torch.randn(width, missing, generator=generator).to(device))
        keys = torch.randn(width, memory.fold_after, generator=generator).to(device)
        residuals = torch.randn(width // _D_OUT_SHARE, memory.fold_after, generator=generator).to(device)

        def work(keys: Tensor = keys, residuals: Tensor = residuals) -> None:
            for at in range(keys.shape[1]):
                memory.solve(keys[:, at : at + 1], residuals[:, at : at + 1])
                memory.remember(keys[:, at : at + 1])

        before = memory.snapshot()
        taken = seconds(work, device=device) / keys.shape[1]
        memory.restore(before)
        details = {"bytes": memory.nbytes, "d_in": width}
        hundredth = next((row.ours_seconds for row in rows if row.details["keys"] == _HISTORY), None)
        rows.append(Row(f"update after {count} keys", taken, hundredth, details={"keys": count, **details}))
    memory.fold()
    memory.carry(torch.randn(width, memory.fold_after, generator=generator).to(device))
    share = seconds(memory.fold, device=device) / memory.fold_after
    details = {"keys": memory.n_written, "keys_per_fold": memory.fold_after, "d_in": width}
    return [*rows, Row("share of a fold in an update", share, details=details)]


def synthetic_moment(width: int, threshold: float, device: torch.device | str = "cpu") -> Tensor:
    """A second moment with the spectrum that SmolLM2's have: flat below the threshold, steep at the very top."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator).to(device)).Q
    n_large = width - round(_KEPT * width)
    small = torch.logspace(-1.5, 0, width - n_large, device=device) * threshold * 0.99
    large = threshold * 1.01 * 200 ** torch.linspace(0, 1, n_large, device=device) ** 4
    moment: Tensor = (basis * torch.cat([small, large])) @ basis.T
    return (moment + moment.T) / 2


def _prose_rows(model: LanguageModel, n_tokens: int) -> tuple[list[list[int]], int]:
    """The package's prose over and over, in rows of 256 tokens."""
    text = [token for passage in held_out_prose() for token in tokenize(model.tokenizer, passage)]
    repeated = text * (n_tokens // len(text) + 1)
    return [repeated[at : at + _ROW] for at in range(0, n_tokens - _ROW + 1, _ROW)], n_tokens // _ROW * _ROW


def _rule(config: EditConfig) -> MemoryRule:
    return find_recipe("betaedit").rule(config)


def _timed_updates(
    edit: Callable[[Tensor, Tensor], _Found], keys: Tensor, residuals: Tensor, device: torch.device | str
) -> tuple[float, _Found]:
    """Median seconds of the edits after the history, and the last update."""
    taken: list[float] = []
    results: list[_Found] = []
    for at in range(_EDITS):
        key, residual = keys[:, _HISTORY + at, None], residuals[:, at, None]
        taken.append(seconds(partial(_into, results, edit, key, residual), device=device))
    return sorted(taken)[_EDITS // 2], results[-1]


def _into(results: list[_Found], edit: Callable[[Tensor, Tensor], _Found], key: Tensor, residual: Tensor) -> None:
    results.append(edit(key, residual))


def _least_seconds(editor: Editor, encoded: Sequence[EncodedBatch], evaluations: Sequence[int]) -> dict[str, float]:
    """Lower bounds on the time of a value: products with the weights of the layers above the edited ones and the head.

    ``bandwidth_seconds`` for reading them, forward and backward; ``arithmetic_seconds`` for multiplying. Means over the
    facts, ``encoded`` one by one.
    """
    model = editor.language_model
    anatomy = model.anatomy
    above = [
        weight for layer in anatomy.layers[closed_form(editor).config.layers[-1] + 1 :] for weight in layer.parameters()
    ]
    head = list(anatomy.head.parameters())
    operations = 0.0
    for fact, count in zip(encoded, evaluations, strict=True):
        n_positions = int((fact.lengths - fact.lookup).sum())
        n_read = sum(len(wording.target_ids) for wording in fact.wordings[0]) + 1
        operations += 4 * count * sum(n * w.numel() for part, n in ((above, n_positions), (head, n_read)) for w in part)
    read = 2 * sum(evaluations) * sum(weight.nbytes for weight in [*above, *head])
    return {
        "bandwidth_seconds": read / bandwidth(model.device) / len(encoded),
        "arithmetic_seconds": operations / arithmetic(model.device) / len(encoded),
    }
