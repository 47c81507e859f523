"""Rows for tests: every field has a value, and a test names only those that it is about."""

from typing import Any

from pipeline.records import Code, Environment, Example, Judgement, Response, Vote

MADE_BY: dict[str, Any] = {
    "asked": {},
    "sources": [],
    "models": {},
    "root": None,
    "code": Code(package="stepdistill", version="0.1.0", commit=None, dirty=None, modules="c" * 64),
    "environment": Environment(
        python="3.11.0", platform="Linux x86_64", processor="any", accelerators=[], driver=None, packages={}
    ),
}
"""What a manifest says of its making, where a test is about something else."""


def example(id: str = "r1", **fields: Any) -> Example:
    given: dict[str, Any] = {
        "id": id,
        "input": "Late goal sinks the league leaders in front of a silent home crowd",
        "label": "sports",
        "rationale": "The text reports how a goal decided a match.",
        "response": f"{id}#0",
        "text": "The text reports how a goal decided a match. So the answer is sports.",
        "finish_reason": "stop",
        "votes": [],
        "gold": None,
        "choices": None,
    }
    return Example(**(given | fields))


def votes(*labels: str) -> list[Vote]:
    return [
        Vote(response=f"r1#{n}", request=f"request-{n}", teacher="a teacher", label=label)
        for n, label in enumerate(labels)
    ]


def judgement(score: int = 4, reason: str = "It names what decides.") -> Judgement:
    return Judgement(score=score, reason=reason, judge="a judge", request="request-j")


def response(text: str, prompt: str = "r1", sample: int = 0, **fields: Any) -> Response:
    given: dict[str, Any] = {
        "id": f"{prompt}#{sample}",
        "prompt": prompt,
        "sample": sample,
        "request": f"request-{prompt}-{sample}",
        "teacher": "a teacher",
        "text": text,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "input": f"the input of {prompt}",
        "gold": None,
        "choices": None,
    }
    return Response(**(given | fields))
