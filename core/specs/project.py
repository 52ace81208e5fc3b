"""The Project document: who owns instances, and how much they may take together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.specs.common import Labels, Name, Size, Spec


class Quota(Spec):
    """Upper bounds over all instances of a project; null = no bound."""

    instances: int | None = Field(default=None, ge=0, description="Number of instances")
    cpu: float | None = Field(default=None, ge=0, description="Cores over all members")
    memory: Size | None = Field(default=None, description="Memory over all members, bytes or 512Mi, 4Gi")
    disk: Size | None = Field(default=None, description="Disk over all members, bytes or 10Gi")


class ProjectSpec(Spec):
    """A project."""

    kind: Literal["Project"] = "Project"
    version: Literal[1] = 1
    name: Name = Field(description="Project name")
    labels: Labels = Field(default_factory=dict, description="Free labels")
    quota: Quota = Field(default_factory=Quota, description="Upper bounds")
    allowed_regions: tuple[str, ...] = Field(default=(), description="Regions members may live in; empty = any")
