"""Training a few small matrices beside a student's frozen weights, through peft: for students that are too large to be trained whole.

    adapter: lora
    adapter: {kind: qlora, rank: 32, scale: 64, modules: [q_proj, v_proj]}

| kind | what is trained | what is kept in memory |
|---|---|---|
| lora | two thin matrices of ``rank`` for each linear layer | the student in its own type |
| dora | those, and the length of each row | the same |
| qlora | two thin matrices | the student's linear layers in 4 bits (nf4), about a seventh of their size in float32 |

The student is wrapped before training and merged after it: what is exported is a checkpoint like any other, without adapters. Tokens that
were added for prefixes are trained with it, row by row. A qlora's merged weights are the 4-bit ones, unpacked, with what was learned.

Limits: the student is loaded whole before it is packed to 4 bits. Embeddings and head stay as they are, but for added tokens; so do
layers that a model wants in float32 (T5's ``wo``). On a CPU qlora works and saves memory, not time.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.binding import suggestion
from pipeline.files import InputError, plain
from pipeline.student import quiet

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ALL: Final = "all-linear"


class Adapter(BaseModel):
    """What is trained beside a frozen student; a bare word is its kind. ``scale`` / ``rank`` is what the matrices' product counts (alpha).

    ``modules`` are the names that linear layers end with, or all of them but the head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lora", "dora", "qlora"] = "lora"
    rank: Annotated[int, Field(gt=0)] = 16
    scale: Annotated[float, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    modules: Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = ALL

    @model_validator(mode="before")
    @classmethod
    def _in_one_word(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value


def wrap(
    model: "PreTrainedModel",
    adapter: Adapter,
    *,
    tokens: Sequence[int] = (),
    seed: int = 0,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> "PeftModel":
    """``model`` with only the adapter to be trained, and the embeddings of ``tokens``. It changes ``model`` and says the same as it did.

    With qlora it says nearly the same, and multiplies in the type ``compute``. ``seed`` draws where the adapter begins. Raises InputError
    where the model has no such modules, or where a library is missing.
    """
    import torch

    modules = adapter.modules if isinstance(adapter.modules, str) else _found(model, adapter.modules)
    _leave_apart(model)
    if adapter.kind == "qlora":
        _pack(model, getattr(torch, compute))
    with quiet(), torch.random.fork_rng():
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        config = LoraConfig(
            task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
            r=adapter.rank,
            lora_alpha=adapter.scale,
            lora_dropout=adapter.dropout,
            target_modules=modules,
            use_dora=adapter.kind == "dora",
            trainable_token_indices=[*tokens] or None,
        )
        # Said only while it is wrapped: what it changes elsewhere concerns models that were loaded in 4 bits.
        model.is_loaded_in_4bit = adapter.kind == "qlora"
        try:
            wrapped: PeftModel = get_peft_model(model, config)
        finally:
            del model.is_loaded_in_4bit
    return wrapped


def merge(wrapped: "PeftModel") -> "PreTrainedModel":
    """The model that says what ``wrapped`` says, without adapters and without packed weights. It takes ``wrapped`` apart.

    In float32 the two agree to rounding.
    """
    tied = wrapped.config.tie_word_embeddings
    with quiet():
        _unpack(wrapped)
        merged: PreTrainedModel = wrapped.merge_and_unload()
    # peft corrects it where the head stands apart, and then the encoder's embeddings are no longer found in the checkpoint.
    merged.config.tie_word_embeddings = tied
    return merged


def _leave_apart(model: "PreTrainedModel") -> None:
    """Keep peft from tying added tokens of a head that stands apart from the embeddings though the configuration says otherwise."""
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    if model._tied_weights_keys and head is not None and head.weight is not words.weight:
        place = next(path for path, part in model.named_modules() if part is head)
        model._tied_weights_keys = {
            name: source for name, source in model._tied_weights_keys.items() if name != f"{place}.weight"
        }


def _found(model: "PreTrainedModel", names: Sequence[str]) -> list[str]:
    """``names``, each of which ends the name of a linear layer. Raises InputError."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    there = [path for path, part in model.named_modules() if isinstance(part, nn.Linear | Conv1D) and part is not head]
    for name in names:
        if not any(path == name or path.endswith(f".{name}") for path in there):
            known = sorted({path.rpartition(".")[2] for path in there})
            problem = f"no linear layer of the student is called {plain(name)!r}{suggestion(name, known)}"
            raise InputError(f"train.adapter.modules: {problem}")
    return [*names]


def _pack(model: "PreTrainedModel", compute: Any) -> None:
    """Put 4-bit layers in the place of linear ones. Raises InputError where that cannot be done here."""
    from torch import nn

    try:
        with quiet():
            import bitsandbytes
    except ImportError:
        raise InputError(
            "train.adapter.kind: qlora needs bitsandbytes; install stepdistill[qlora], or use lora"
        ) from None
    head, whole = model.get_output_embeddings(), {*(model._keep_in_fp32_modules or ())}
    chosen = {
        path: part
        for path, part in model.named_modules()
        if type(part) is nn.Linear and part is not head and whole.isdisjoint(path.split("."))
    }
    if not chosen:
        raise InputError("train.adapter.kind: the student has no linear layers that qlora could pack; use lora")
    for path, part in chosen.items():
        packed = bitsandbytes.nn.Linear4bit(
            part.in_features,
            part.out_features,
            bias=part.bias is not None,
            compute_dtype=compute,
            quant_type="nf4",
            device="meta",
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            part.weight.data, requires_grad=False, quant_type="nf4", module=packed
        )
        packed.bias = part.bias
        packed.support_avx512bf16_for_cpu = False  # it would repack the weights at the first validation
        try:
            model.set_submodule(path, packed.to(part.weight.device))  # which packs them
        except (RuntimeError, NotImplementedError, ValueError) as error:
            problem = f"bitsandbytes cannot pack weights on this machine ({plain(str(error), 160)})"
            raise InputError(f"train.adapter.kind: {problem}; use lora") from None


def _unpack(wrapped: "PeftModel") -> None:
    """Put linear layers in the place of 4-bit ones, with what was learned for them."""
    from peft.tuners.lora import LoraLayer

    model = wrapped.get_base_model()
    inside: tuple[str, ...] = ()
    for path, part in list(model.named_modules()):
        if path.startswith(inside) and inside:
            continue
        base = part.get_base_layer() if isinstance(part, LoraLayer) else part
        if type(base).__name__ != "Linear4bit":
            continue
        dense = _dense(base)
        if base is not part:
            for name in part.active_adapters:
                dense.weight.data += part.get_delta_weight(name).to(dense.weight.dtype)
        model.set_submodule(path, dense)
        inside = (*inside, f"{path}.")


def _dense(packed: Any) -> "nn.Linear":
    """A 4-bit layer as a linear one in float32."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    weight: Tensor = dequantize_4bit(packed.weight.data, packed.weight.quant_state).float()
    dense = torch.nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None, device="meta")
    dense.weight = torch.nn.Parameter(weight)
    if packed.bias is not None:
        dense.bias = torch.nn.Parameter(packed.bias.data)
    return dense
