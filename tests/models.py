"""Tiny random models for tests: 32 wide, one token for each byte, written like any checkpoint."""

from pathlib import Path
from typing import Any

LAYERS = 2
CHAT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(special: list[str], around: str | None = None, pairs: tuple[str, ...] = (), **named: Any) -> Any:
    """One token for each byte, then one for each of ``pairs`` of signs, then ``special``.

    ``around`` is what it puts around a text, as in "$A <end>".
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, *pairs])}
    words = Tokenizer(models.BPE(vocabulary, [(pair[0], pair[1]) for pair in pairs]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(special)
    if around is not None:
        ids = [(token, words.token_to_id(token)) for token in special]
        words.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=words, **named)


def make_model(folder: Path, layers: int = LAYERS, **config: Any) -> Path:
    """A Llama without a pad token and without a chat template."""
    return _llama(folder, make_tokenizer(["<end>"], eos_token="<end>"), layers, config)


def make_chat(folder: Path, layers: int = LAYERS, **config: Any) -> Path:
    """A Llama with ChatML's template, in which a turn ends otherwise than a text does."""
    special = ["<end>", "<|im_start|>", "<|im_end|>"]
    tokenizer = make_tokenizer(special, eos_token="<end>", pad_token="<end>", extra_special_tokens=special[1:])
    tokenizer.chat_template = CHAT
    return _llama(folder, tokenizer, layers, config)


def make_t5(folder: Path, layers: int = LAYERS, decoder_layers: int | None = None, **config: Any) -> Path:
    """A T5; with ``tie_word_embeddings=False`` its head stands apart from its embeddings, as FLAN-T5's does."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    special = ["<end>", "<pad>", "<unknown>"]
    tokenizer = make_tokenizer(special, "$A <end>", eos_token="<end>", pad_token="<pad>", unk_token="<unknown>")
    settings = {
        "vocab_size": 260,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_heads": 2,
        "num_layers": layers,
        "num_decoder_layers": decoder_layers or layers,
        "eos_token_id": 256,
        "pad_token_id": 257,
        "decoder_start_token_id": 257,
        **config,
    }
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**settings))
    if config.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(settings["vocab_size"], 32) * 0.1)
    return _save(folder, model, tokenizer)


def make_bart(folder: Path, layers: int = LAYERS, decoder_layers: int | None = None, **config: Any) -> Path:
    """A BART, whose tokenizer puts a start token before a text and an end token behind it; its head can stand apart as a T5's can."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    special = ["<end>", "<pad>", "<start>"]
    named = {"bos_token": "<start>", "eos_token": "<end>", "pad_token": "<pad>"}
    settings = {
        "vocab_size": 260,
        "d_model": 32,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_layers": layers,
        "decoder_layers": decoder_layers or layers,
        "max_position_embeddings": 256,
        "eos_token_id": 256,
        "pad_token_id": 257,
        "bos_token_id": 258,
        "decoder_start_token_id": 256,
        "forced_eos_token_id": 256,
        **config,
    }
    apart = settings.pop("tie_word_embeddings", True) is False  # for BART it would part its two stacks' embeddings too
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**settings))
    if apart:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(settings["vocab_size"], 32) * 0.1)
    return _save(folder, model, make_tokenizer(special, "<start> $A <end>", **named))


def _llama(folder: Path, tokenizer: Any, layers: int, config: dict[str, Any]) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": layers,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
        "eos_token_id": 256,
        "bos_token_id": None,
        **config,
    }
    torch.manual_seed(0)
    return _save(folder, LlamaForCausalLM(LlamaConfig(**settings)), tokenizer)


def _save(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
