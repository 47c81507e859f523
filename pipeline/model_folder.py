"""A saved student's folder, made ready to be handed over: transformers and vLLM load it as it is and answer as it was trained to.

    finish(folder, tokenizer=tokenizer, asked=Format(), card={"title": "topics", "tasks": ["label", "rationale"], ..})

``save_pretrained`` leaves what the base model had: its sampling settings, its end of text, perhaps no padding. After ``finish``::

    generation_config.json     greedy, ends with the token that the student was trained to end with, pads
    config.json                the same two tokens
    format.json                how it is asked
    tokenizer files            the same two tokens; batches are padded on the left, as whoever generates needs it
    README.md                  what it is asked and how, what it came of, under which terms; five lines each to run it

The weights are left alone; a folder with weights in any other form than safetensors is refused, since those run code when they are read.

Limits: vLLM takes no greedy search out of a folder, so who asks it says ``temperature=0``. A chat template that the base model brought
along stays, and a server's chat interface would use it: the student knows its own prompts alone. The card says what it is told; nothing
here can check that the weights came of it.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import terms
from pipeline.cards import front_matter, table
from pipeline.files import RunError, atomic, plain, strict_json, write_json
from pipeline.formats import Format
from pipeline.records import Target
from pipeline.shard import CARD, PREFIXES, escaped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CARD", "finish", "render"]

GENERATION: Final = "generation_config.json"
CONFIG: Final = "config.json"
UNSAFE: Final = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npy", ".npz"}
EXAMPLE: Final = "Late goal sinks the league leaders"


def finish(folder: Path, *, tokenizer: "PreTrainedTokenizerBase", asked: Format, card: Mapping[str, Any]) -> None:
    """Write the files above into the folder of a saved checkpoint. The same arguments give the same bytes.

    ``asked`` is how the student was trained to be asked and to end its answers; ``card`` what ``render`` takes. ``tokenizer`` is left as it
    is. Raises RunError where the folder holds no safetensors, or weights in another form.
    """
    _check_weights(folder)
    end_token_id = asked.end_token_id(tokenizer)
    token = tokenizer.convert_ids_to_tokens(end_token_id)
    own = copy.deepcopy(tokenizer)
    if own.eos_token_id != end_token_id:
        own.eos_token = token
    if own.pad_token_id is None:
        own.pad_token = token  # padding is masked; it only has to be there
    own.padding_side = own.init_kwargs["padding_side"] = (
        "right" if asked.encoder_decoder else "left"
    )  # the second is saved
    own.save_pretrained(folder)
    ends: dict[str, Any] = {"eos_token_id": end_token_id, "pad_token_id": int(own.pad_token_id)}
    config = _object(folder / CONFIG)
    write_json(folder / CONFIG, {**config, **ends})
    generation = {
        "decoder_start_token_id": config.get("decoder_start_token_id") if asked.encoder_decoder else None,
        "bos_token_id": own.bos_token_id,
        "do_sample": False,
        "num_beams": 1,
        "transformers_version": config.get("transformers_version"),
        **ends,
    }
    write_json(folder / GENERATION, {name: value for name, value in generation.items() if value is not None})
    with atomic(folder / CARD) as file:
        file.write(render(card, own, asked).encode())
    asked.write(folder)


def _check_weights(folder: Path) -> None:
    """Raises RunError where there are none that can be read without running code, or others beside them."""
    names = sorted(path.name for path in folder.iterdir())
    unsafe = [name for name in names if Path(name).suffix.lower() in UNSAFE]
    if unsafe or not any(name.endswith(".safetensors") for name in names):
        told = f"holds {plain(', '.join(unsafe))}" if unsafe else "holds no safetensors file"
        raise RunError(f"{folder}: {told}; a student is handed over as safetensors alone")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = strict_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({plain(str(error))}); the checkpoint was not saved whole") from None
    if not isinstance(found, dict):
        raise RunError(f"{path}: no object; the checkpoint was not saved whole")
    return found


def render(card: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase", asked: Format) -> str:
    """The README.md of a student's folder. Every entry of ``card`` may be left out.

    ``title``: the task's name. ``name``: what the model is, "student" or "baseline". ``tasks``: what it learned, in order. ``base``: the
    identity of what it started from; ``start``: further facts about that (licence, revision, files, layers). ``settings``: those of the
    training. ``examples`` and ``target_tokens``: how many, by split and by task. ``trained_on``: what provenance.json holds. ``terms``:
    of the outputs that it was trained on, by teacher. ``accept_terms``: why it was trained though these forbid it or are unknown. Texts
    may be hostile: none can leave its place in the card.
    """
    tasks: list[Target] = [task for task in PREFIXES if task in card.get("tasks", ())]
    title = f"{_text(card.get('title')) or 'Student'}: {_text(card.get('name')) or 'student'}"
    base = _mapping(card.get("base"))
    head = {
        "library_name": "transformers",
        "pipeline_tag": "text2text-generation" if asked.encoder_decoder else "text-generation",
        "base_model": base.get("from") if base.get("revision") else None,
        "tags": ["distillation", "synthetic", "stepdistill"],
    }
    lines = [
        *front_matter(head),
        "",
        f"# {escaped(title)}",
        "",
        "A small model that was trained by stepdistill on what a larger one answered. It does what stands below, and nothing else.",
        "",
        *_asked(tasks, tokenizer, asked),
        *_training(card, base),
        *_provenance(_mapping(card.get("trained_on"))),
        *_terms(card),
        "## Limits",
        "",
        "- It knows the one task that it was trained on, in the words of its training rows.",
        "- It repeats the teacher's errors and biases, and adds its own; a rationale that it writes need not be the reason for its label.",
        "- How well it does was measured elsewhere: in the run that it came of, by `stepdistill evaluate`.",
    ]
    return "\n".join([*lines, ""])


def _asked(tasks: Sequence[Target], tokenizer: "PreTrainedTokenizerBase", asked: Format) -> list[str]:
    """How it is asked: in words, by this project, by transformers, by vLLM."""
    rows = [(task, f"{PREFIXES[task]}<input>") for task in tasks]
    kind = "AutoModelForSeq2SeqLM" if asked.encoder_decoder else "AutoModelForCausalLM"
    answer = "[0]" if asked.encoder_decoder else "[0, prompt.input_ids.shape[1] :]"
    words = {
        "text": "followed by a line break" if not asked.encoder_decoder else "as the encoder's input",
        "chat": "as the user's message in the model's chat template",
    }[asked.template]
    words += "; the prefix is a token of its own" if asked.prefixes == "tokens" else ""
    prompt = json.dumps(PREFIXES[tasks[0] if tasks else "label"] + EXAMPLE)
    special = _adds_start(tokenizer, asked)
    if special is None:
        encode = [
            "from pipeline.formats import Format  # stepdistill's: it knows how this student is asked",
            f'ids = Format.of("path/to/this/folder").prompt_ids(tokenizer, {prompt})',
        ]
    else:
        text = json.dumps(json.loads(prompt) + ("" if asked.encoder_decoder else asked.separator))
        encode = [f"ids = tokenizer({text}, add_special_tokens={special}, split_special_tokens=True).input_ids"]
    lines = [
        "## How it is asked",
        "",
        *(table(("task", "prompt"), rows) if rows else ["It was not recorded which tasks it learned."]),
        "",
        f"The prompt is given {words}. It answers greedily and ends its answer itself. Text that looks like one of its special",
        "tokens is ordinary text, which is what `split_special_tokens` is for. `path/to/this/folder` is where this file lies.",
        "",
        "For a whole file, with labels read and every row accounted for:",
        "",
        "    stepdistill predict --model path/to/this/folder --data rows.jsonl --out answers.jsonl",
        "",
        "With transformers:",
        "",
        "```python",
        "import torch",
        f"from transformers import {kind}, AutoTokenizer",
        f'model, tokenizer = (kind.from_pretrained("path/to/this/folder") for kind in ({kind}, AutoTokenizer))',
        *encode,
        f"answer = model.generate(torch.tensor([ids]), max_new_tokens=32){answer.replace('prompt.input_ids.shape[1]', 'len(ids)')}",
        "print(tokenizer.decode(answer, skip_special_tokens=True))",
        "```",
        "",
    ]
    if asked.encoder_decoder:
        return lines
    return [
        *lines,
        "With vLLM:",
        "",
        "```python",
        "from vllm import LLM, SamplingParams",
        'if __name__ == "__main__":  # its engine starts this file again',
        '    llm = LLM("path/to/this/folder"); tokenizer = llm.get_tokenizer()',
        *(f"    {line}" for line in encode),
        '    print(llm.generate({"prompt_token_ids": ids}, SamplingParams(temperature=0, max_tokens=32))[0].outputs[0].text)',
        "```",
        "",
    ]


def _adds_start(tokenizer: "PreTrainedTokenizerBase", asked: Format) -> bool | None:
    """Whether the tokenizer's special tokens belong to a prompt; None where the tokenizer alone does not give it as trained."""
    text = EXAMPLE if asked.encoder_decoder else EXAMPLE + asked.separator
    wanted = asked.prompt_ids(tokenizer, EXAMPLE)
    if asked.template == "chat" or asked.prefixes == "tokens":
        return None
    for special in (False, True):
        if list(tokenizer(text, add_special_tokens=special, split_special_tokens=True)["input_ids"]) == wanted:
            return special
    return None


def _training(card: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    start = _mapping(card.get("start"))
    reason = card.get("accept_terms")
    rows: list[tuple[str, Any]] = [
        ("base model", dict(base) or "not recorded"),
        ("licence of the base model", start.get("license") or "unknown"),
        *(
            (what, found)
            for name, what in (("revision", "commit of the base model"), ("files", "its files, SHA-256"))
            if (found := start.get(name)) and found != base.get(name)
        ),
        ("layers kept", start.get("layers") or "all"),
        *((name, value) for name, value in _mapping(card.get("settings")).items() if value is not None),
        *((name, card[entry]) for entry, name in _COUNTED.items() if card.get(entry)),
        *([("trained on such outputs because", reason)] if reason else []),
    ]
    return ["## How it was trained", "", *table(("setting", "value"), rows), ""]


_COUNTED: Final = {"examples": "examples", "target_tokens": "target tokens"}


def _provenance(trained_on: Mapping[str, Any]) -> list[str]:
    """What provenance.json beside the card says, for people."""
    words = {
        "stage": "stage that made the rows",
        "key": "its key",
        "manifest": "SHA-256 of its manifest",
        "root": "root of the rows (RFC 6962 tree over the shards)",
        "files": "files of the rows, SHA-256",
    }
    rows = [(words.get(name, name), value) for name, value in trained_on.items() if value is not None]
    return [
        "## What it was trained on",
        "",
        *(table(("what", "value"), rows) if rows else ["It was not recorded."]),
        "",
        "`provenance.json` beside this file says the same. Who has the run folder checks it, and all that led to it, with",
        "`stepdistill audit`.",
        "",
    ]


def _terms(card: Mapping[str, Any]) -> list[str]:
    known = terms.of_manifest(
        {"output_terms": {name: _plain(one) for name, one in _mapping(card.get("terms")).items()}}
    )
    header = ("teacher", "licence or terms", "training on its outputs", "obligations", "where they stand", "as of")
    return [
        "## Terms and licences",
        "",
        *table(
            header,
            [
                (name, one.license or "unknown", one.training, "; ".join(one.obligations), one.source, one.as_of)
                for name, one in known.items()
            ],
        ),
        "",
        "What may be done with this model follows from the licence of its base model, those of the inputs and the terms of the teachers'",
        "outputs together. Where one of them is unknown, so is that.",
        "",
    ]


def _plain(found: Any) -> Any:
    """Terms as JSON, whether they come as a record or from a manifest."""
    return terms.recorded(found) if isinstance(found, terms.OutputTerms) else found


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _text(found: Any) -> str:
    return plain(found.strip(), 200) if isinstance(found, str) else ""
