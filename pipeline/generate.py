"""Greedy answers of a model of transformers, in batches of like length; the same for training's validation, evaluate and predict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A generated text, or None where the prompt left no room for one; ``finished`` says whether the model ended it itself."""

    text: str | None
    finished: bool


def greedy(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    end: int,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Answer]:
    """One answer for each prompt's tokens, in order; it ends at the token ``end`` or after ``max_new_tokens``.

    Prompts are padded on the left, for an encoder-decoder on the right. A prompt that leaves less than ``max_new_tokens`` of the context
    of a decoder gets no answer. ``advance`` is told how many are done. What the checkpoint says of sampling is not heeded.
    """
    import torch
    from transformers import GenerationConfig

    encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    context = None if encoder_decoder else getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = None if context is None else context - max_new_tokens
    found = [Answer(None, False)] * len(prompts)
    fits = [place for place, ids in enumerate(prompts) if ids and (room is None or len(ids) <= room)]
    advance(len(prompts) - len(fits))
    order = sorted(fits, key=lambda place: (-len(prompts[place]), place))  # longest first: lack of memory shows at once
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding,
        eos_token_id=end,
        decoder_start_token_id=start if start is not None else getattr(model.config, "decoder_start_token_id", None),
    )
    with torch.inference_mode():
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            width = max(len(prompts[place]) for place in chosen)
            ids = torch.full((len(chosen), width), padding)
            mask = torch.zeros_like(ids)
            for row, place in enumerate(chosen):
                prompt = torch.tensor(prompts[place])
                where = slice(0, len(prompt)) if encoder_decoder else slice(width - len(prompt), width)
                ids[row, where], mask[row, where] = prompt, 1
            written = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=settings,
                use_cache=True,
            )
            said = written[:, 1:] if encoder_decoder else written[:, width:]
            for place, tokens in zip(chosen, said.tolist(), strict=True):
                finished = end in tokens
                kept = tokens[: tokens.index(end)] if finished else tokens
                found[place] = Answer(tokenizer.decode(kept, skip_special_tokens=True), finished)
            advance(len(chosen))
    return found
