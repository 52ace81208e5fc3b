"""Names and numbers that travel through every part, as distinct types.

A name that reaches an etcd key, a file path or a certificate has passed `check_name` first, so no later code needs to
quote or escape it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

NodeId = NewType("NodeId", str)
MemberName = NewType("MemberName", str)
Term = NewType("Term", int)  # grows by one with each new leader of an instance; 0 = never had one
Generation = NewType("Generation", int)  # grows by one with each change of an instance's spec
LeaseId = NewType("LeaseId", int)  # etcd lease id; 0 = none

MAX_NAME = 40  # project + instance + member must fit a PostgreSQL identifier (63 bytes) as a slot name beside a prefix
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")


def check_name(name: str, what: str) -> str:
    """The name itself; ValueError tells what a valid name looks like. `what` is the noun for the message."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r} is not valid: use 1 to {MAX_NAME} of a-z, 0-9 and '-', starting with a letter, "
            "not ending with '-'"
        )
    return name


@dataclass(frozen=True, slots=True, order=True)
class InstanceRef:
    """An instance within its project. `demo/orders` for people, `demo.orders` in keys and file names."""

    project: str
    instance: str

    def __str__(self) -> str:
        return f"{self.project}/{self.instance}"

    @property
    def key(self) -> str:
        return f"{self.project}.{self.instance}"

    @staticmethod
    def parse(text: str) -> InstanceRef:
        """From `project/instance`; ValueError names the faulty half."""
        project, slash, instance = text.partition("/")
        if not slash:
            raise ValueError(f"instance {text!r} is not valid: write PROJECT/INSTANCE, such as demo/orders")
        return InstanceRef(check_name(project, "project"), check_name(instance, "instance"))

    @staticmethod
    def from_key(key: str) -> InstanceRef:
        project, _, instance = key.partition(".")
        return InstanceRef(check_name(project, "project"), check_name(instance, "instance"))


@dataclass(frozen=True, slots=True, order=True)
class MemberRef:
    """One member of an instance, such as `demo.orders.m1`."""

    instance: InstanceRef
    member: MemberName

    def __str__(self) -> str:
        return f"{self.instance}/{self.member}"

    @property
    def key(self) -> str:
        return f"{self.instance.key}.{self.member}"

    @staticmethod
    def from_key(key: str) -> MemberRef:
        head, _, member = key.rpartition(".")
        return MemberRef(InstanceRef.from_key(head), MemberName(check_name(member, "member")))
