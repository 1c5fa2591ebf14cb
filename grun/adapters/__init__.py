"""Adapters and stacks of them on disk, and the way to and from pyreft and the official GRUN format."""

from grun.adapters.folder import AdapterCard, check_adapter, copy_adapter, digest_adapter, load_adapter, read_card, save_adapter
from grun.adapters.served import load_served, serving_card
from grun.adapters.stack_folder import (
    StackCard,
    StackedAdapter,
    check_stack,
    digest_stack,
    load_stack,
    member_folders,
    read_stack_card,
    save_stack,
)

__all__ = [
    "AdapterCard",
    "StackCard",
    "StackedAdapter",
    "check_adapter",
    "check_stack",
    "copy_adapter",
    "digest_adapter",
    "digest_stack",
    "load_adapter",
    "load_served",
    "load_stack",
    "member_folders",
    "read_card",
    "read_stack_card",
    "save_adapter",
    "save_stack",
    "serving_card",
]
