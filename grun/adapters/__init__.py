"""Adapters on disk, and the way to and from pyreft and the official GRUN format."""

from grun.adapters.folder import AdapterCard, check_adapter, copy_adapter, digest_adapter, load_adapter, read_card, save_adapter

__all__ = ["AdapterCard", "check_adapter", "copy_adapter", "digest_adapter", "load_adapter", "read_card", "save_adapter"]
