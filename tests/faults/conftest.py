"""Fixtures that several files of these tests use."""

from tests.faults.outage_site import healthy, server, site, whole_site
from tests.pipelines.conftest import data_folder, make_recipe, recipe_file

__all__ = ["data_folder", "healthy", "make_recipe", "recipe_file", "server", "site", "whole_site"]
