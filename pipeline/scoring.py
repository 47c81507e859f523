"""How likely a student finds each label of a closed set: the log-probability of the label's tokens behind the prompt.

    scores = label_log_probabilities(model, tokenizer, [[61, 72, .., 9]], [[[83, 2], [91, 14, 2]]], batch_size=32)
    -> [[-0.03, -4.1]]                    # the sum over a label's tokens, its end token among them
    probabilities(scores[0])  -> [0.98, 0.02]

The tokens of a label are those that it has in training, so ``label_tokens`` makes them with the student's `formats.Format`: the text of the
label and the token that ends it, behind the prompt's tokens. With the end token labels of any length compare: "car" is not a part of
"carpet". The sum is the probability that the model, drawing tokens freely, writes exactly this label and ends; over a closed set they add
up to less than 1, and ``probabilities`` scales them to 1.

A prompt is computed once, and what the model remembers of it (keys and values, or an encoder's outputs) serves all its labels. Models whose
memory is no list of keys and values (state spaces, convolutions) or that are not told positions get each prompt with each label in full.

Limits: float32 differs in the sixth digit between batches. The most likely label of the set need not be what a greedy search writes: its
first token can lose to that of another label. A student of a chain of thought writes its label behind its reasoning; this does not fit it.
"""

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.formats import Format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
Tokens = Sequence[int]
Pair = tuple[int, int]  # a row, and a label of it
Scores = dict[Pair, float]


def label_tokens(
    asked: Format,
    tokenizer: "PreTrainedTokenizerBase",
    labels: Sequence[str],
    known: dict[str, list[int]] | None = None,
) -> list[list[int]]:
    """What a student of this format learns to write for each label, its end token last. ``known`` spares encoding a label twice."""
    known = {} if known is None else known
    for label in labels:
        if label not in known:
            known[label] = asked.completion_ids(tokenizer, label)
    return [known[label] for label in labels]


def label_log_probabilities(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Tokens],
    labels: Sequence[Sequence[Tokens]],
    *,
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[float] | None]:
    """For each prompt the log-probability of each of its labels, in their order: at most 0.

    ``labels[row]`` are the tokens of the candidates behind ``prompts[row]``; rows may have different numbers of them. None where the prompt
    is empty, or leaves a decoder's context no room for the longest label, as in `generate.greedy`. ``batch_size`` is the most
    sequences that are computed at once; ``advance`` is told how many more rows are done. Raises ValueError for a label without tokens.
    """
    import torch

    if any(not tokens for candidates in labels for tokens in candidates):
        raise ValueError("a label without tokens has no probability")
    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    context = None if encoder_decoder else getattr(model.config.get_text_config(), "max_position_embeddings", None)
    found: list[list[float] | None] = [None] * len(prompts)
    fits = []
    for row, (prompt, candidates) in enumerate(zip(prompts, labels, strict=True)):
        longest = max(map(len, candidates), default=0)
        if prompt and (context is None or len(prompt) + longest <= context):
            found[row] = [0.0] * len(candidates)
            fits.append(row)
    advance(len(prompts) - len(fits))
    order = sorted(fits, key=lambda row: (-len(prompts[row]), row))  # longest first: lack of memory shows at once
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked everywhere
    score = _by_encoder if encoder_decoder else _by_memory if _told_positions(model) else _in_full
    with torch.inference_mode():
        for chosen in _batches(order, batch_size):
            given = [prompts[row] for row in chosen]
            wanted = [labels[row] for row in chosen]
            scores = score(model, given, wanted, padding, batch_size)
            if scores is None:
                scores = _in_full(model, given, wanted, padding, batch_size)
            for (row, label), value in scores.items():
                here = found[chosen[row]]
                assert here is not None
                here[label] = value
            advance(len(chosen))
    return found


def probabilities(log_probabilities: Sequence[float]) -> list[float]:
    """Probabilities over the closed set, which add up to 1: the softmax. Raises ValueError where there is no label."""
    highest = max(log_probabilities)
    if highest == -math.inf:
        return [1 / len(log_probabilities)] * len(log_probabilities)
    shares = [math.exp(value - highest) for value in log_probabilities]
    total = sum(shares)
    return [share / total for share in shares]


def _by_memory(
    model: Any, prompts: list[Tokens], labels: list[Sequence[Tokens]], padding: int, batch_size: int
) -> Scores | None:
    """A decoder: its keys and values of each prompt are used for all labels. None where it keeps another kind of memory."""
    import torch

    ids, mask = _padded(prompts, padding, left=True)
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    only = {"logits_to_keep": 1} if "logits_to_keep" in _arguments(model) else {}
    told = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **only)
    memory = getattr(told, "past_key_values", None)
    if not _repeats(memory):
        return None
    first = told.logits[:, -1].float().log_softmax(-1)  # of each row: its labels' first tokens
    found: Scores = {}
    for pairs in _batches(_pairs(labels), batch_size):
        rows = torch.tensor([row for row, _ in pairs], device=model.device)
        written = [labels[row][label] for row, label in pairs]
        begun = first[rows, torch.tensor([tokens[0] for tokens in written], device=model.device)]
        rest = [tokens[1:] for tokens in written]
        sums = begun.double()
        if any(rest):
            said, there = _padded([tokens[:-1] for tokens in written], padding, left=False)
            said, there = said.to(model.device), there.to(model.device)
            steps = torch.arange(said.shape[1], device=model.device)
            logits = model(
                input_ids=said,
                attention_mask=torch.cat([mask[rows], there], 1),
                position_ids=mask[rows].sum(1, keepdim=True) + steps,
                past_key_values=_selected(memory, rows),
                use_cache=True,
            ).logits
            sums = sums + _sums(logits, rest, padding)
        found.update(zip(pairs, sums.tolist(), strict=True))
    return found


def _by_encoder(
    model: Any, prompts: list[Tokens], labels: list[Sequence[Tokens]], padding: int, batch_size: int
) -> Scores:
    """An encoder-decoder: each prompt is read once, and its outputs are used for all labels."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    ids, mask = _padded(prompts, padding, left=False)
    ids, mask = ids.to(model.device), mask.to(model.device)
    read = model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    start = start if start is not None else model.config.decoder_start_token_id
    found: Scores = {}
    for pairs in _batches(_pairs(labels), batch_size):
        rows = torch.tensor([row for row, _ in pairs], device=model.device)
        written = [labels[row][label] for row, label in pairs]
        said, _ = _padded([[start, *tokens[:-1]] for tokens in written], padding, left=False)
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=read[rows]),
            attention_mask=mask[rows],
            decoder_input_ids=said.to(model.device),
            use_cache=False,
        ).logits
        found.update(zip(pairs, _sums(logits, written, padding).tolist(), strict=True))
    return found


def _in_full(
    model: Any, prompts: list[Tokens], labels: list[Sequence[Tokens]], padding: int, batch_size: int
) -> Scores:
    """Any decoder: each prompt with each of its labels. Padding stands on the right, where nothing that counts looks at it."""
    import torch

    found: Scores = {}
    for pairs in _batches(_pairs(labels), batch_size):
        written = [labels[row][label] for row, label in pairs]
        ids, mask = _padded(
            [[*prompts[row], *tokens[:-1]] for (row, _), tokens in zip(pairs, written, strict=True)],
            padding,
            left=False,
        )
        begins = [len(prompts[row]) - 1 for row, _ in pairs]
        first = min(begins)
        kept = torch.arange(first, ids.shape[1], device=model.device)
        only = {"logits_to_keep": kept} if "logits_to_keep" in _arguments(model) else {}
        told = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, **only)
        logits = told.logits if only else told.logits[:, first:]
        aligned = torch.stack(  # each label's from its own place on; what is taken from behind the end counts for nothing
            [logits[place].roll(first - begin, 0)[: max(map(len, written))] for place, begin in enumerate(begins)]
        )
        found.update(zip(pairs, _sums(aligned, written, padding).tolist(), strict=True))
    return found


def _sums(logits: Any, targets: Sequence[Tokens], padding: int) -> Any:
    """For each row the sum of its targets' log-probabilities; ``logits`` begin where the targets do."""
    wanted, there = _padded(targets, padding, left=False)
    wanted, there = wanted.to(logits.device), there.to(logits.device)
    logits = logits[:, : wanted.shape[1]].float()
    values = logits.gather(2, wanted.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
    return (values.double() * there).sum(1)


def _padded(sequences: Sequence[Tokens], padding: int, *, left: bool) -> tuple[Any, Any]:
    """Tokens and their mask, (sequences, longest of them)."""
    import torch

    width = max(1, *map(len, sequences))
    ids = torch.full((len(sequences), width), padding)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(sequences):
        where = slice(width - len(tokens), width) if left else slice(0, len(tokens))
        ids[row, where], mask[row, where] = torch.tensor(tokens, dtype=ids.dtype), 1
    return ids, mask


def _pairs(labels: Sequence[Sequence[Tokens]]) -> list[Pair]:
    """Every label of every row; of like length beside each other, so that little is padded."""
    pairs = [(row, label) for row, candidates in enumerate(labels) for label in range(len(candidates))]
    return sorted(pairs, key=lambda pair: (-len(labels[pair[0]][pair[1]]), pair))


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _arguments(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _told_positions(model: Any) -> bool:
    """Whether padding on the left can be told apart from a text's beginning: by positions."""
    return {"position_ids", "past_key_values"} <= _arguments(model)


def _repeats(memory: Any) -> bool:
    """Whether the memory is a list of keys and values, of all tokens or of a window of them, and nothing beside it."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if type(memory) is not DynamicCache:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in memory.layers)


def _selected(memory: Any, rows: Any) -> Any:
    """The memory of these rows, some of them several times; ``memory`` stays as it is."""
    found = copy.copy(memory)
    # Layers replace their tensors and never write into them, so that copies of the layers are enough.
    found.layers = [copy.copy(layer) for layer in memory.layers]
    found.batch_select_indices(rows)
    return found
