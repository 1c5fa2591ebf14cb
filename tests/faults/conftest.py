"""The request and the recipe of the tests of pipelines."""

from tests.pipelines.conftest import data_folder, make_recipe, recipe_file

__all__ = ["data_folder", "make_recipe", "recipe_file"]
