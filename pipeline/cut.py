"""A model with fewer layers: what a small student starts from where only a large checkpoint is there.

    cut(model, 8)             # 8 of its layers, evenly spaced, the first and the last among them
    cut(model, [0, 1, 29])    # exactly these

An encoder-decoder's two stacks are cut alike: to so many each, or to the same numbers in both. What only the first layer of a stack
holds for all of them (T5's relative positions) stays, whichever layers are kept.

Limits: layers can be cut where they stand in one list for each stack and have like parts, which is so for the common decoders and for
T5, BART and their kin. A cut model must be trained: how well it starts depends on the model, and nothing here measures it.
"""

from typing import TYPE_CHECKING, NamedTuple

from pipeline.files import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

COUNTS = (
    ("num_layers", "num_decoder_layers"),  # T5
    ("encoder_layers", "decoder_layers"),  # BART, and most others
    ("num_encoder_layers", "num_decoder_layers"),  # ProphetNet
)
"""Under which names a configuration counts the layers of encoder and decoder."""


class Stack(NamedTuple):
    """The list of layers at ``path`` in a model; its configuration counts them as ``field``, there are ``total``."""

    path: str
    field: str
    total: int


def cut(model: "PreTrainedModel", layers: int | list[int], name: str = "model") -> "PreTrainedModel":
    """A model with some of ``model``'s layers: so many, evenly spaced with the first and the last among them, or those listed.

    Embeddings, head and final norm are kept. Raises InputError where the layers are not there or cannot be told from the rest.
    """
    from copy import deepcopy

    stacks = _stacks(model, name)
    config: PretrainedConfig = deepcopy(model.config)
    weights = {
        field: value
        for field, value in model.state_dict().items()
        if not any(field.startswith(f"{stack.path}.") for stack in stacks)
    }
    for stack in stacks:
        kept = _kept(layers, stacks, stack.total, name)
        if stack is stacks[0]:
            config.num_hidden_layers = len(kept)
        setattr(config, stack.field, len(kept))
        if len(stacks) == 1:
            for field, value in config.to_dict().items():
                if "layer" in field and isinstance(value, list) and len(value) == stack.total:  # such as layer_types
                    setattr(config, field, [value[layer] for layer in kept])
        for new, old in enumerate(kept):
            parts = model.get_submodule(f"{stack.path}.{old}").state_dict()
            if new == 0:  # all layers use what the first one alone has
                parts = {**model.get_submodule(f"{stack.path}.0").state_dict(), **parts}
            for field, value in parts.items():
                weights[f"{stack.path}.{new}.{field}"] = value
    try:
        smaller = type(model)(config)
        _untie(smaller, model)
        smaller.load_state_dict(weights)
    except (RuntimeError, ValueError, IndexError):
        problem = f"{name}: its layers differ from one another, so they cannot be cut; leave 'layers' out"
        raise InputError(f"train.student.layers: {problem}") from None
    smaller.generation_config = model.generation_config
    return smaller


def evenly_spaced(count: int, total: int) -> list[int]:
    """``count`` of the numbers 0 to ``total`` - 1, spread evenly, both ends among them (1 gives the first)."""
    return [round(index * (total - 1) / max(count - 1, 1)) for index in range(count)]


def _stacks(model: "PreTrainedModel", name: str) -> list[Stack]:
    """The model's one list of layers, or its encoder's and its decoder's."""
    from torch import nn

    config = model.config
    wholes = [("num_hidden_layers", model)]
    if config.is_encoder_decoder:
        named = next((pair for pair in COUNTS if all(hasattr(config, field) for field in pair)), COUNTS[0])
        wholes = list(zip(named, (model.get_encoder(), model.get_decoder()), strict=True))
    found = []
    for field, whole in wholes:
        total = getattr(config, field, None)
        place = next(path for path, part in model.named_modules() if part is whole)
        lists = {path: part for path, part in whole.named_modules() if isinstance(part, nn.ModuleList)}
        # A layer may be made of lists itself, by chance as long as the list of layers.
        outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
        paths = [path for path in outer if len(lists[path]) == total]
        if len(paths) != 1 or not total:
            raise InputError(
                f"train.student.layers: {name}: its layers do not stand in one list, so they cannot be cut; leave 'layers' out"
            )
        found.append(Stack(f"{place}.{paths[0]}".removeprefix("."), field, total))
    return found


def _kept(layers: int | list[int], stacks: list[Stack], total: int, name: str) -> list[int]:
    """The numbers of the layers to keep of a stack of ``total``. Raises InputError where any stack lacks one."""
    least = min(stack.total for stack in stacks)
    fits = layers <= least if isinstance(layers, int) else max(layers) < least and sorted(set(layers)) == layers
    if not fits:
        there = f"{stacks[0].total} layers"
        if len(stacks) == 2:
            there += f" in its encoder and {stacks[1].total} in its decoder"
        raise InputError(
            f"train.student.layers: {name} has {there}; give a number up to {least}, or rising numbers from 0 to {least - 1}"
        )
    return evenly_spaced(layers, total) if isinstance(layers, int) else layers


def _untie(smaller: "PreTrainedModel", model: "PreTrainedModel") -> None:
    """Part ``smaller``'s head from its embeddings where ``model``'s are apart: some checkpoints have them so whatever they are set to."""
    from torch import nn

    head, words = smaller.get_output_embeddings(), smaller.get_input_embeddings()
    if head is None or head.weight is not words.weight:
        return
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
