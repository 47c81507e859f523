"""How a row becomes a student's tokens, as a record that lies in the student's folder, so that it is always asked as it was trained.

    format.json    {"template": "chat", "prefixes": "tokens", "separator": "\\n", "tasks": ["label", "rationale"], "encoder_decoder": false}

    given = Format.read(folder)                                # the default where there is no format.json
    given.prompt_ids(tokenizer, "[label] Late goal sinks ..")  # [61, 72, .., 9]; what the student is given
    given.completion_ids(tokenizer, "sports")                  # [83, 2]; what it writes, its end token last

| template | a decoder is given |
|---|---|
| text | the tokenizer's own start token if it has one, the prompt, ``separator`` |
| chat | the tokenizer's chat template with the prompt as the one user message, up to where the assistant begins |

An encoder-decoder reads the prompt between the tokenizer's own start and end tokens, without a separator, and writes its completion so.
With ``prefixes: tokens`` the prefix of each of ``tasks`` ("[label]") is a token of its own, which `add_prefixes` makes; only the prefix
that a prompt begins with becomes this token.

Text is tokenised apart from all that stands around it: no token reaches over a boundary, the last one of a prompt never depends on what
comes after it, and nothing in a row's text becomes a control token. Control tokens are the special ones, and those that the chat template
writes. Where a tokenizer would read one in plain text in spite of that (T5's reads "</s>"), the text is cut inside it.

Limits: a tokenizer that puts a space before each text (SentencePiece) puts it before each part here, and so also inside a text that had
to be cut. A chat template that writes the date always gets the same one.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import control
from pipeline.control import SLOT, plain_ids, state, steering
from pipeline.files import InputError, plain, strict_json, write_json
from pipeline.prompts import FAILURES
from pipeline.shard import PREFIXES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "format.json"
SEPARATOR = "\n"


class Format(BaseModel):
    """How prompts and completions become tokens. ``tasks`` are those that the student has; only prefixes that are tokens depend on them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    template: Literal["text", "chat"] = "text"
    prefixes: Literal["text", "tokens"] = "text"
    separator: str = SEPARATOR
    tasks: tuple[str, ...] = ()
    encoder_decoder: bool = False

    def prompt_ids(self, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
        """The tokens that the student is given, or that its encoder reads.

        Raises InputError where the tokenizer's chat template cannot be used, or where prefixes should be tokens and are not.
        """
        frame = self._frame(tokenizer)
        begin: list[int] = []
        prefix = next((token for text, token in self.prefix_tokens().items() if prompt.startswith(text)), None)
        if prefix is not None:
            begin, prompt = [_token_id(tokenizer, prefix)], prompt.removeprefix(prefix)
        if frame.trims:
            prompt = prompt.rstrip() if begin else prompt.strip()
        if self.template == "text" and not self.encoder_decoder:
            prompt += self.separator
        return [*frame.before, *begin, *text_ids(tokenizer, prompt), *frame.after]

    def completion_ids(self, tokenizer: "PreTrainedTokenizerBase", completion: str) -> list[int]:
        """The tokens that the student learns to write, its end token last. An encoder-decoder also writes its tokenizer's start token."""
        begin = self._frame(tokenizer).before if self.encoder_decoder else ()
        return [*begin, *text_ids(tokenizer, completion), self.end_token_id(tokenizer)]

    def end_token_id(self, tokenizer: "PreTrainedTokenizerBase") -> int:
        """The token that ends what the student writes: in a chat that which ends a turn, otherwise the end-of-sequence token."""
        return self._frame(tokenizer).end

    def prefix_tokens(self) -> dict[str, str]:
        """The token ("[label]") for each prefix ("[label] ") that is one; none where prefixes are text."""
        if self.prefixes == "text":
            return {}
        known: dict[str, str] = {str(task): prefix for task, prefix in PREFIXES.items()}
        found = [known.get(task, f"[{task}] ") for task in self.tasks]
        return {prefix: prefix.strip() for prefix in found if prefix.strip()}

    def write(self, folder: Path) -> None:
        """Into ``format.json`` of the student's folder."""
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> "Format":
        """The format in a student's folder; where there is none, the default for its kind of model. Raises InputError."""
        path = folder / FILE
        try:
            if path.is_file():
                return cls.model_validate(strict_json(path.read_bytes()))
            config = folder / "config.json"
            kind = strict_json(config.read_bytes()) if config.is_file() else {}
            return cls(encoder_decoder=kind.get("is_encoder_decoder") is True)
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        except (ValueError, AttributeError) as error:
            problem = str(error)
        raise InputError(f"{path}: not a student's format ({plain(problem)}); train the student anew") from None

    @classmethod
    def of(cls, model: str) -> "Format":
        """The format of a model as commands name it: a folder, a Hub name or 'embedded'; the default for what is no folder."""
        folder = Path(model).expanduser()
        return cls.read(folder) if folder.is_dir() else cls()

    def _frame(self, tokenizer: "PreTrainedTokenizerBase") -> "_Frame":
        if self.template == "chat":
            if self.encoder_decoder:
                raise InputError("train.template: an encoder-decoder has no chat template; use 'text'")
            return _chat_frame(tokenizer, state(tokenizer))
        before, after = control.around(tokenizer)
        return _Frame(before, after if self.encoder_decoder else (), tokenizer.eos_token_id)


def add_prefixes(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", given: Format) -> list[int]:
    """Give ``model`` and ``tokenizer`` the prefix tokens of ``given`` that they lack. The ids of all of them; none where prefixes are text.

    A new token begins as the mean of the tokens that spell it. Raises InputError as `Format.prompt_ids` does.
    """
    import torch

    wanted = [*given.prefix_tokens().values()]
    given.end_token_id(tokenizer)  # tells what is wrong with a template before anything is changed
    known = tokenizer.get_vocab()
    spelt = {token: text_ids(tokenizer, token) for token in wanted if token not in known}
    if wanted:
        tokenizer.add_special_tokens({"extra_special_tokens": wanted}, replace_extra_special_tokens=False)
    ids = {token: _token_id(tokenizer, token) for token in wanted}
    if ids and max(ids.values()) >= model.get_input_embeddings().num_embeddings:
        _grow(model, max(ids.values()) + 1)
    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [words.weight] if head is None or head.weight is words.weight else [words.weight, head.weight]
    tables += [head.bias] if getattr(head, "bias", None) is not None else []
    with torch.no_grad():
        for token, parts in spelt.items():
            for table in tables:
                table[ids[token]] = table[parts].mean(0)
    return [*ids.values()]


def text_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of plain text, none of them a control token. Raises InputError where the tokenizer has no other for a character."""
    try:
        return control.text_ids(tokenizer, text)
    except control.NoPlainTokenError as error:
        raise InputError(
            f"train.student: its tokenizer has nothing but a control token for {plain(error.sign)!r}; use another student"
        ) from None


class _Frame(NamedTuple):
    """The tokens around a prompt's text, the one that ends a completion, and whether white space around the text is left out."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    end: int
    trims: bool = False


@lru_cache(maxsize=8)
def _chat_frame(tokenizer: "PreTrainedTokenizerBase", state: tuple[object, ...]) -> _Frame:
    user = {"role": "user", "content": SLOT}
    asked = _rendered(tokenizer, [user], begin=True)
    trims = asked == _rendered(tokenizer, [{**user, "content": f" {SLOT} "}], begin=True)
    answered = _rendered(tokenizer, [{**user, "content": "?"}, {"role": "assistant", "content": SLOT}], begin=False)
    before, after = (tuple(plain_ids(tokenizer, part, split=False)) for part in asked)
    ending = steering(tokenizer)
    ends = (number for number in plain_ids(tokenizer, answered[1], split=False) if number in ending)
    return _Frame(before, after, next(ends, tokenizer.eos_token_id), trims)


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, str]], *, begin: bool
) -> tuple[str, str]:
    """What the chat template writes before and after the slot in ``messages``. Raises InputError."""
    if not tokenizer.chat_template:
        raise InputError("train.template: the student's tokenizer has no chat template; use 'text'")
    try:
        said = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=begin,
            strftime_now=_one_day,
        )
    except FAILURES as error:
        problem = f"the student's chat template fails ({plain(str(error), 160)})"
        raise InputError(f"train.template: {problem}; use 'text'") from None
    before, *after = said.split(SLOT)
    if len(after) != 1:
        raise InputError(
            "train.template: the student's chat template does not write a message once as it is; use 'text'"
        )
    return before, after[0]


def _one_day(form: str) -> str:
    """The same day whenever it is asked for, so that equal rows give equal tokens; it is the one that Llama's templates fall back on."""
    from datetime import datetime

    return datetime(2024, 7, 26).strftime(form)


def _grow(model: "PreTrainedModel", size: int) -> None:
    """Room for ``size`` tokens. A head that stands apart from the embeddings stays apart, whatever the configuration says of it."""
    import torch

    words, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart = None if head is None or head.weight is words.weight else head.weight.detach().clone()
    model.resize_token_embeddings(size, mean_resizing=False)
    head = model.get_output_embeddings()
    if apart is not None and head.weight is model.get_input_embeddings().weight:
        more = apart.mean(0).expand(size - len(apart), -1)
        head.weight = torch.nn.Parameter(torch.cat([apart, more]))


def _token_id(tokenizer: "PreTrainedTokenizerBase", token: str) -> int:
    found: int | None = tokenizer.get_added_vocab().get(token)
    if found is None:
        raise InputError(f"train.prefixes: {token} is no token of this student; train it anew, or ask it with 'text'")
    return found
