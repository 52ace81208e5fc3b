"""The Node document: what operators say about a node. What the node says of itself comes from its agent."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.specs.common import Labels, Name, Spec


class NodeSpec(Spec):
    """A node that has enrolled already."""

    kind: Literal["Node"] = "Node"
    version: Literal[1] = 1
    name: Name = Field(description="Node name, as in its certificate")
    labels: Labels = Field(default_factory=dict, description="Labels that instances can ask for")
    price_per_hour: float = Field(default=0.0, ge=0, description="Price of the whole node, for scoring")
    cordoned: bool = Field(default=False, description="True: no new members are placed here")
