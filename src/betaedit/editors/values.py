"""The value of a fact: the hidden state at its lookup token that makes the model say the new target.

Only what the value can change is computed: layers above the last edited one, positions from the lookup token on,
logits at target positions. Everything else comes from the recorded prompts (editors/pose.py) once; the result is the
same. Facts of a batch share each pass; those that are done leave it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from betaedit.editors.config import EditConfig
from betaedit.editors.keys import bare_outputs
from betaedit.editors.pose import Pose
from betaedit.editors.search import make_search
from betaedit.models.lean import lean_layers, run_lean_layers
from betaedit.models.load import LanguageModel
from betaedit.models.narrow import narrow_linears
from betaedit.models.pack import Pack, PriorState, keep_state
from betaedit.models.partial import LayerCall, take_rows

_ENTRIES_PER_PASS = {"cpu": 512, "cuda": 4096}
_TOO_LONG = 2.0


@dataclass(frozen=True)
class Value:
    """What the optimization found.

    Args:
        target: (d_out,) hidden state ``z = h0 + delta`` wanted after the last edited layer.
        initial: (d_out,) the state ``h0`` at the bare prompt before.
        loss: Loss at ``target``, before a margin or an anchor scaled it; of facts that share their change, the mean.
        target_probability: Mean probability per target token over all contexts, likewise.
        n_evaluations: Evaluations of the loss.
        n_keys: Keys at which the change is to be written.
    """

    target: Tensor
    initial: Tensor
    loss: float
    target_probability: float
    n_evaluations: int
    n_keys: int = 1

    @property
    def relative_length(self) -> float:
        """Length of the change in norms of the initial state; at the clamp the search ran into its bound."""
        return float((self.target - self.initial).norm() / self.initial.norm())


def optimize_values(model: LanguageModel, pose: Pose, config: EditConfig) -> list[Value]:
    """The values that make the posed facts true under the current weights (methods.md A.5, MEMIT form).

    Loss of a fact: mean negative log-likelihood of its target over contexts, plus ``kl_weight * KL(edited || initial)``
    at the subject of the KL prompt, plus ``value_decay * |delta| / |h0|^2``; ``|delta| <= value_clamp * |h0|``.
    A fact is done when its loss is below ``value_stop_loss``, or every target token has ``value_stop_probability`` in
    every context, or at the ``value_stop_most_probable``-th evaluation at which every target token is the most probable
    one in every context but the bare one (ENCORE, methods.md B.10). The evaluation that ends a search takes no step: at
    most ``value_steps - 1`` steps.
    Facts of one group share ``delta`` (MEMIT-Merge, methods.md B.10): it lowers their mean loss, stays within the clamp
    of the first one's ``h0``, and is done when it is for each of them. With ``shared_subjects=together`` a group of
    ``n`` facts has ``n`` times the evaluations. Groups do not influence one another: the batch changes the cost only.
    A change that was found is lengthened by the share ``value_margin``, within the clamp; loss and probability are
    those before. With ``value_norm_anchor`` each value is scaled when its search is over (NAS, methods.md B.10).
    """
    found: dict[int, Value] = {}
    for facts in _passes(model, pose):
        lengths = [max(len(w.target_ids) for w in pose.wordings[fact]) for fact in facts]
        values = _optimize(
            _Problem.of(model, pose, facts, config), [pose.groups[fact] for fact in facts], config, lengths
        )
        if config.value_norm_anchor is not None:
            outputs = bare_outputs(model, pose, facts, config)
            values = [_anchored(*pair, config.value_norm_anchor) for pair in zip(values, outputs, strict=True)]
        found |= dict(zip(facts, values, strict=True))
    return [replace(found[fact], n_keys=pose.n_keys(fact)) for fact in range(len(pose))]


def _passes(model: LanguageModel, pose: Pose) -> list[list[int]]:
    """Facts of similar size together, a bounded number of entries in each pass; a group is never divided."""
    limit = _ENTRIES_PER_PASS.get(model.device.type, min(_ENTRIES_PER_PASS.values()))
    rows = pose.prompts(range(len(pose)))
    sizes = torch.where(rows >= 0, (pose.lengths - pose.lookup)[rows], 0).sum(dim=1).tolist()
    groups: dict[int, list[int]] = {}
    for fact, group in enumerate(pose.groups):
        groups.setdefault(group, []).append(fact)
    longest = {group: max(sizes[fact] for fact in facts) for group, facts in groups.items()}
    passes: list[list[int]] = []
    width = 0
    for group in sorted(groups, key=lambda group: longest[group], reverse=True):
        if passes and width * (len(passes[-1]) + len(groups[group])) <= limit:
            passes[-1] += groups[group]
        else:
            passes.append(list(groups[group]))
            width = longest[group]
    return passes


def _anchored(value: Value, output: Tensor, anchor: float) -> Value:
    """``value`` with ``output`` ``(d_out,)`` of the MLP plus its change brought to the length ``anchor`` (NAS).

    A fact that would need more than twice that length is left out: its value is the state as it is.
    """
    change = value.target - value.initial
    output = output.to(change)
    wanted = output + change
    length = float(wanted.norm())
    kept = torch.zeros_like(change) if length > _TOO_LONG * anchor else wanted * (anchor / length) - output
    return replace(value, target=value.initial + kept)


@dataclass(frozen=True)
class _Evaluation:
    """What each fact's point does.

    Args:
        loss: ``(b,)``.
        least: ``(b,)`` smallest target probability.
        mean: ``(b,)`` mean target probability.
        most_probable: ``(b,)`` whether every target token is the most probable one in every context but the bare one.
    """

    loss: Tensor
    least: Tensor
    mean: Tensor
    most_probable: Tensor


@dataclass(frozen=True)
class _Targets:
    """Every target token in every context, as one flat list of length ``e``.

    Args:
        fact: ``(e,)`` row of the fact.
        entry: ``(e,)`` entry of the pack that predicts the token.
        token: ``(e,)`` its id.
        weight: ``(e,)`` one over the number of tokens of its fact, all contexts counted.
        sampled: ``(e,)`` whether its context is another than the bare one; true of the bare one where it is alone.
    """

    fact: Tensor
    entry: Tensor
    token: Tensor
    weight: Tensor
    sampled: Tensor

    def take(self, rows: Tensor, n_rows: int) -> _Targets:
        """The tokens of the facts ``rows``, renumbered."""
        place = rows.new_full((n_rows,), -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        kept = place[self.fact] >= 0
        return _Targets(
            place[self.fact[kept]], self.entry[kept], self.token[kept], self.weight[kept], self.sampled[kept]
        )


@dataclass(frozen=True)
class _Problem:
    """The losses of some facts as functions of the changes at their lookup tokens.

    Args:
        model: The model, its weights fixed.
        config: Weights of the terms.
        layers: The layers above the edited ones, to the one whose output is read as logits.
        start: ``(b, width, d_out)`` hidden states entering them, per fact: all contexts from the lookup token on, then
            the KL prompt's lookup token.
        calls: Their other arguments.
        state: Attention state of what precedes the lookup tokens.
        lookups: ``(b, width)`` one at the lookup tokens, zero elsewhere.
        initial: ``(b, d_out)`` ``h0``, float32.
        targets: The target tokens.
        kl_entry: ``(b,)`` the KL prompt's entry.
        kl_before: ``(b, vocabulary)`` log-probabilities there without a change.
    """

    model: LanguageModel
    config: EditConfig
    layers: range
    start: Tensor
    calls: dict[int, LayerCall]
    state: PriorState
    lookups: Tensor
    initial: Tensor
    targets: _Targets
    kl_entry: Tensor
    kl_before: Tensor | None = None

    @classmethod
    def of(cls, model: LanguageModel, pose: Pose, facts: Sequence[int], config: EditConfig) -> _Problem:
        above = config.layers[-1] + 1
        loss_layer = model.anatomy.n_layers - 1 if config.value_loss_layer is None else config.value_loss_layer
        layers = range(above, max(loss_layer, above - 1) + 1)
        chosen, lookup, lengths = pose.prompts(facts), pose.lookup, pose.lengths
        entering = pose.recording.inputs[above]
        prefix = Pack.of(chosen, torch.zeros_like(lookup), lookup)
        suffix = Pack.of(chosen, lookup, lengths)
        state = keep_state(model.anatomy, pose.recording, prefix, layers, run_lean_layers)
        start = suffix.gather(entering)
        rows = torch.arange(len(facts), device=start.device)
        starts = suffix.starts.to(start.device)  # prompts are encoded where the embedding is, maybe on another device
        lookups = torch.zeros(start.shape[:2], device=start.device)
        lookups[rows[:, None], starts] = 1.0
        return cls(
            model=model,
            config=config,
            layers=layers,
            start=start,
            calls=suffix.calls(pose.recording, layers, state, prefix),
            state=state,
            lookups=lookups,
            initial=start[rows, starts[:, 0]].float(),
            targets=_targets(pose, facts, suffix, start.device),
            kl_entry=starts[:, -1],
        )

    @cached_property
    def _run(self) -> Callable[[Tensor], Tensor]:
        """From the hidden states entering ``layers`` to those after them."""
        return lean_layers(self.model.anatomy, self.calls, self.start, self.layers)

    def evaluate(self, delta: Tensor) -> tuple[_Evaluation, Tensor]:
        """The losses at ``delta`` ``(b, d_out)``, and the KL prompts' log-probabilities there."""
        target_logs, highest_logs, kl_logs = self._log_probabilities(delta)
        b, targets = len(delta), self.targets
        nll = -delta.new_zeros(b).index_add(0, targets.fact, targets.weight * target_logs)
        probability = target_logs.detach().exp()
        least = delta.new_ones(b).scatter_reduce(0, targets.fact, probability, "amin")
        mean = delta.new_zeros(b).index_add(0, targets.fact, targets.weight * probability)
        beaten = ~(target_logs.detach() >= highest_logs) & targets.sampled
        n_beaten = delta.new_zeros(b).index_add(0, targets.fact, beaten.to(delta))
        before = kl_logs.detach() if self.kl_before is None else self.kl_before
        divergence = (kl_logs.exp() * (kl_logs - before)).sum(dim=1)
        decay = torch.linalg.vector_norm(delta, dim=1) / self.initial.norm(dim=1) ** 2
        loss = nll + self.config.kl_weight * divergence + self.config.value_decay * decay
        return _Evaluation(loss, least, mean, n_beaten == 0), before

    def take(self, rows: Tensor) -> _Problem:
        """The same for some of the facts."""
        n = len(self.start)
        if len(rows) == n:
            return self
        state = self.state.take(rows)
        calls = take_rows(self.calls, rows, n)
        calls = {layer: call.map(lambda v: state if isinstance(v, PriorState) else v) for layer, call in calls.items()}
        return replace(
            self,
            start=self.start[rows],
            calls=calls,
            state=state,
            lookups=self.lookups[rows],
            initial=self.initial[rows],
            targets=self.targets.take(rows, n),
            kl_entry=self.kl_entry[rows],
            kl_before=None if self.kl_before is None else self.kl_before[rows],
        )

    def _log_probabilities(self, delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities.

        Of the target tokens ``(e,)``, of the most probable tokens in their places ``(e,)``, and of all tokens at the KL
        prompts ``(b, vocabulary)``.
        """
        anatomy, targets = self.model.anatomy, self.targets
        changed = self.start + (self.lookups[:, :, None] * delta[:, None]).to(self.start.dtype)
        hidden = self._run(changed)
        with narrow_linears([anatomy.head]):
            rows = torch.arange(len(hidden), device=hidden.device)
            fact, entry, kl_entry = (index.to(hidden.device) for index in (targets.fact, targets.entry, self.kl_entry))
            read = torch.cat([hidden[fact, entry], hidden[rows, kl_entry]])
            logs = anatomy.logits(read).float().log_softmax(dim=-1).to(delta.device)
        e = len(targets.token)
        return logs[:e].gather(1, targets.token[:, None])[:, 0], logs[:e].detach().amax(dim=1), logs[e:]


def _targets(pose: Pose, facts: Sequence[int], suffix: Pack, device: torch.device) -> _Targets:
    prompts = pose.prompts(facts)
    ends = suffix.starts + torch.where(prompts >= 0, (pose.lengths - pose.lookup)[prompts], 0)
    places: list[tuple[int, int, int, bool]] = []
    weights: list[float] = []
    for row, fact in enumerate(facts):
        own = pose.wordings[fact]
        for context, (wording, end) in enumerate(zip(own, ends[row].tolist(), strict=False)):
            ids = wording.target_ids
            sampled = context > 0 or len(own) == 1
            places += [(row, end - len(ids) + at, token, sampled) for at, token in enumerate(ids)]
            weights += [1 / (len(ids) * len(own))] * len(ids)
    fact_of, entry, token, sampled_of = torch.tensor(places, device=device).unbind(dim=1)
    return _Targets(fact_of, entry, token, torch.tensor(weights, device=device), sampled_of.bool())


def _optimize(problem: _Problem, group_of: Sequence[int], config: EditConfig, lengths: Sequence[int]) -> list[Value]:
    """The values of the problem's facts, whose groups ``group_of`` tells."""
    initial = problem.initial
    firsts = {group: group_of.index(group) for group in dict.fromkeys(group_of)}
    number = {group: at for at, group in enumerate(firsts)}
    member = torch.tensor([number[group] for group in group_of], device=initial.device)
    groups = torch.arange(len(firsts), device=initial.device)
    search = make_search(initial[list(firsts.values())], config)
    stop = _Stop(config, len(groups), initial.device)
    values: dict[int, Value] = {}
    rows = torch.arange(len(initial), device=initial.device)
    # One vector for the answers to several questions takes longer to find; MEMIT-Merge does not wait for it.
    share = torch.bincount(member) if config.shared_subjects == "together" else torch.ones_like(groups)
    tokens = torch.tensor(lengths, device=initial.device, dtype=torch.float32)
    longest = tokens.new_zeros(len(groups)).scatter_reduce(0, member, tokens, "amax")
    most = (config.value_steps + config.value_steps_per_token * (longest - 1)).round() * share
    for evaluation in itertools.count(1):
        place = torch.searchsorted(groups, member[rows])
        points = search.points(groups).requires_grad_()
        found, before = problem.evaluate(points[place])
        if problem.kl_before is None:
            problem = replace(problem, kl_before=before)
        loss = _group_means(found.loss, place, len(groups))
        done = stop.done(found, place, groups)
        targets = initial[rows] + points.detach()[place]
        figures = zip(
            rows.tolist(), loss.detach()[place].tolist(), found.mean.tolist(), done[place].tolist(), strict=True
        )
        for at, (row, height, probability, finished) in enumerate(figures):
            if row in values and search.keeps_best and not finished and height >= values[row].loss:
                values[row] = replace(values[row], n_evaluations=evaluation)
            else:
                values[row] = Value(targets[at], initial[row], height, probability, evaluation)
        goes_on = ~done & (evaluation < most[groups])
        going = goes_on.nonzero()[:, 0]
        if len(going) == 0:
            break
        (gradient,) = torch.autograd.grad(loss.sum(), points)
        search.step(groups[going], loss.detach()[going], gradient[going])
        staying = goes_on[place].nonzero()[:, 0]
        problem, rows, groups = problem.take(staying), rows[staying], groups[going]
    radius = [config.value_clamp * initial[firsts[group]].norm() for group in group_of]
    return [_lengthened(values[row], radius[row], config.value_margin) for row in range(len(initial))]


def _lengthened(value: Value, radius: Tensor, margin: float) -> Value:
    """``value`` with its change longer by the share ``margin``, though no longer than ``radius``."""
    change = value.target - value.initial
    longer = (radius / change.norm()).clamp(min=1.0, max=1.0 + margin)
    return replace(value, target=value.initial + longer * change) if margin else value


def _group_means(figures: Tensor, place: Tensor, n_groups: int) -> Tensor:
    """``(n_groups,)`` means of ``figures`` ``(a,)``, whose groups ``place`` tells."""
    sums = figures.new_zeros(n_groups).index_add(0, place, figures)
    return sums / torch.bincount(place, minlength=n_groups)


class _Stop:
    """When the groups of a search are done; counts at how many evaluations each had its tokens most probable."""

    def __init__(self, config: EditConfig, n_groups: int, device: torch.device) -> None:
        self._config = config
        self._n_most_probable = torch.zeros(n_groups, dtype=torch.long, device=device)

    def done(self, found: _Evaluation, place: Tensor, groups: Tensor) -> Tensor:
        """Which of ``groups`` ``(g,)`` are, after an evaluation of their facts; ``place`` tells the group of each.

        Every fact of a group must be, and all of them by the same test.
        """
        done = -_least(-found.loss.detach(), place, len(groups)) < self._config.value_stop_loss
        if self._config.value_stop_probability is not None:
            done |= _least(found.least, place, len(groups)) >= self._config.value_stop_probability
        if self._config.value_stop_most_probable is not None:
            self._n_most_probable[groups] += _least(found.most_probable.long(), place, len(groups))
            done |= self._n_most_probable[groups] >= self._config.value_stop_most_probable
        return done


def _least(figures: Tensor, place: Tensor, n_groups: int) -> Tensor:
    """``(n_groups,)`` smallest of ``figures`` ``(a,)`` in each group."""
    return figures.new_zeros(n_groups).scatter_reduce(0, place, figures, "amin", include_self=False)
