"""A plain-text summary of what a model is trained on, in the sections of the European Commission's template.

    2.5 Synthetic data
        Was synthetic data made to train the model, by distillation in particular?   yes
        Models that made it:
        - embedded (SmolLM2-135M-Instruct): text; ..

Source: Template for the Public Summary of Training Content for general-purpose AI models (Article 53(1)(d) of Regulation (EU) 2024/1689),
European Commission, 24 July 2025: the numbers and names of its sections. What no manifest knows is left open for the provider, in brackets.

Limits: the template is for providers of general-purpose models; a student of one task need not be one, and this is no legal advice. The
summary covers the training of the student alone: its base model and the teacher have summaries of their own. Whether a source is public,
licensed or one's own is told from its address only: data sets of the Hub are public, all other sources are shown under 2.2.
"""

from typing import Final

from pipeline import terms
from pipeline.cards import fact
from pipeline.exports import (
    View,
    detail,
    inputs,
    made_by,
    models,
    named,
    part,
    rows_by_split,
    setting,
    shards,
    title,
)
from pipeline.files import plain
from pipeline.sources import HUB

OPEN: Final = "[to be filled in by the provider]"


def render(shown: View) -> str:
    """The summary, lines of at most a source's length."""
    return "\n".join([*_general(shown), *_sources(shown), *_processing(shown), ""])


def _general(shown: View) -> list[str]:
    student = part(shown.results["train"].manifest.identities, "student") if "train" in shown.results else None
    tokens = detail(shown, "train", "target_tokens")
    size = sum(file.bytes for file in shards(shown.shard))
    counted = " and ".join(f"{number:,} {split}" for split, number in rows_by_split(shown).items())
    rows = f"{counted} rows, {size:,} bytes of JSON lines{_tokens(tokens)}" if counted else "no rows"
    return [
        "SUMMARY OF TRAINING CONTENT",
        "after the template of the European Commission of 24 July 2025 (Article 53(1)(d) of Regulation (EU) 2024/1689)",
        "",
        "Generated from manifests alone.",
        f"Root of the data set: {shown.shard.root or 'none'}",
        f"Manifest of its shards: sha256:{shown.manifest_digest('shard')}",
        "",
        "1 GENERAL INFORMATION",
        "",
        "1.1 Provider identification",
        f"    Provider's name and contact details: {OPEN}",
        f"    Authorised representative: {OPEN}",
        "",
        "1.2 Model identification",
        f"    Versioned model name: {_line(title(shown))}, student of training {_key(shown, 'train')}",
        f"    Model dependencies: {_line(fact(student)) if student else 'no student was trained'}",
        f"    Date of placement on the Union market: {OPEN}",
        "",
        "1.3 Modalities, overall training data size and other characteristics",
        "    Modality: text",
        f"    Training data size: less than 1 billion tokens ({rows})"
        if size < 10**9
        else f"    Training data size: {rows}; range of tokens: {OPEN}",
        f"    Types of content: inputs of one task and a model's answers to them ({_line(fact(setting(shown, 'shard', 'targets')))})",
        f"    Latest date of data acquisition: {OPEN}",
        "    Is the model trained on new data after its release? no",
        f"    Linguistic characteristics: {OPEN}",
        "",
    ]


def _sources(shown: View) -> list[str]:
    public = [source for source in inputs(shown) if source.uri.startswith(HUB)]
    private = [source for source in inputs(shown) if not source.uri.startswith(HUB)]
    allowed = terms.of_manifest(shown.shard.settings)
    lines = ["2 LIST OF DATA SOURCES", "", "2.1 Publicly available datasets"]
    lines += [
        f"    - {_line(source.uri)}, revision {_line(source.revision or 'unknown')}, licence {_line(source.license or 'unknown')}"
        for source in public
    ] or ["    None."]
    lines += ["", "2.2 Private non-publicly available datasets obtained from third parties"]
    lines += [
        f"    - {_line(source.uri)}: {fact(source.rows) or 'an unknown number of'} rows, licence {_line(source.license or 'unknown')}, "
        f"sha256:{source.sha256}"
        for source in private
    ] or ["    None."]
    if private:
        lines += [f"    From whom, and whether licensed by rightsholders or one's own (then section 2.6): {OPEN}"]
    lines += [
        "",
        "2.3 Data crawled and scraped from online sources",
        f"    None by this pipeline. How the sources named above were gathered: {OPEN}",
        "",
        "2.4 User data",
        f"    None by this pipeline. Whether the sources named above hold any: {OPEN}",
        "",
        "2.5 Synthetic data",
        "    Was synthetic data made to train the model, by distillation in particular? yes",
        "    Modality: text",
        "    Models that made it:",
    ]
    for stage in made_by(shown):
        for model in models(shown, stage):
            lines += [f"    - {_line(named(model))} ({stage}): {_line(fact(dict(model.identity)))}"]
    for name, one in allowed.items():
        lines += [
            f"    Terms of {_line(name)}: {_line(one.license or 'unknown')}; training on its outputs: {one.training}"
            + "".join(f"; {_line(told)}" for told in one.obligations)
        ]
    return [*lines, "", "2.6 Other sources of data", "    None.", ""]


def _processing(shown: View) -> list[str]:
    eval_sets = detail(shown, "decontaminate", "eval_sets")
    against = ", ".join(_line(str(name)) for name in eval_sets) if isinstance(eval_sets, dict) else ""
    lines = [
        "3 RELEVANT DATA PROCESSING ASPECTS",
        "",
        "3.1 Respect of reservation of rights from the text and data mining exception or limitation",
        "    This pipeline gathers nothing from the web itself and reads no opt-outs.",
        f"    Measures taken when the sources were gathered: {OPEN}",
        "",
        "3.2 Removal of illegal content",
        "    Steps that dropped rows, with their reasons (none of them looks for illegal content unless it is named so):",
    ]
    for stage in made_by(shown):
        counts = shown.results[stage].manifest.counts
        lines += [
            f"    - {stage}: {counts.rows_in:,} {_line(counts.unit)} in, {counts.dropped:,} dropped"
            + (f" ({_line(fact(dict(counts.reasons)))})" if counts.reasons else "")
        ]
    return [
        *lines,
        f"    Further measures: {OPEN}",
        "",
        "3.3 Other information",
        f"    Overlap with eval sets was {f'searched for in: {against}' if against else 'not searched for'}.",
    ]


def _tokens(tokens: object) -> str:
    return f", target tokens: {_line(fact(tokens))}" if tokens else ""


def _key(shown: View, stage: str) -> str:
    return _line(shown.results[stage].manifest.key) if stage in shown.results else "(none)"


def _line(text: str) -> str:
    return plain(text, 1000)
