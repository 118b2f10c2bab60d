"""The JSON schema of a plan, as editors and validators take it: `docs/plan.schema.json`."""

from typing import Any

from gptailor.plan.plan import Plan

SCHEMA_ID = f"urn:gptailor:plan:{Plan.model_fields['version'].default}"
"""What the schema is called wherever it lies; the number is that of the Tailor language."""


def plan_schema(release: str) -> dict[str, Any]:
    """The schema that a release of gptailor has."""
    schema = Plan.model_json_schema()
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "$comment": f"gptailor {release}",
        "title": schema.pop("title"),
        "description": "A plan of gptailor's as JSON, which `gptailor json` prints.",
    }
    return head | {key: value for key, value in schema.items() if key not in head}
