"""Scripts, verbs, options and recipes that a manifest names exist, and are what it takes them for."""

import functools
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml
from pydantic import ValidationError

from grun.config import Recipe, read_recipe_file
from grun.errors import ConfigError
from k8s.check.bundle import Bundle
from k8s.check.commands import Script, applications, recipes, scripts
from k8s.check.mounted import exists_at, mount_of, text_at
from k8s.check.pod import Container, Pod
from k8s.check.pods import title
from k8s.check.rule import Wrong, table

__all__ = ["RULES", "recipe_at"]


def recipe_at(bundle: Bundle, pod: Pod, container: Container, path: str) -> Recipe | None:
    """The recipe of a file or of a name of ours; None where there is none.

    Raises:
        ConfigError: it is none.
    """
    root = bundle.repository.root / "pipelines/recipes"
    named = [found for found in (root / path, root / f"{path}.yaml") if "/" not in path and found.is_file()]
    if named:
        return Recipe.parse(read_recipe_file(named[0]), where=path)
    text = text_at(bundle, pod, container, path)
    return None if text is None else _recipe(text, path)


@functools.lru_cache(maxsize=256)
def _recipe(text: str, path: str) -> Recipe:
    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"a recipe must be YAML, got {' '.join(str(error).split())}") from None
    return Recipe.parse(values or {}, where=path)


def scripts_exist(bundle: Bundle) -> Wrong:
    """A path that leads nowhere is found when the pod starts, at night."""
    for script in scripts(bundle):
        if not script.path.startswith("/"):
            yield script.where, f"a script must be named by its whole path, got {script.path!r}; begin with /"
        elif not exists_at(bundle, script.pod, script.container, script.path):
            yield script.where, f"a script must be in the image or in a ConfigMap, got {script.path!r}; correct the path"


def _verb(bundle: Bundle, script: Script) -> Any:
    found = bundle.repository.file(script.path) if mount_of(script.container, script.path) is None else None
    return found if found and bundle.repository.is_verb(found) else None


def options_exist(bundle: Bundle) -> Wrong:
    """A subcommand or an option that a verb does not have ends it with status 2."""
    for script in scripts(bundle):
        verb = _verb(bundle, script)
        if not verb:
            continue
        subcommands = bundle.repository.subcommands(verb)
        if subcommands and (not script.arguments or script.arguments[0] not in subcommands):
            yield (
                script.where,
                f"{verb.name} must be told one of {', '.join(sorted(subcommands))}, got {script.arguments[:1]}; name one",
            )
        known = bundle.repository.options(verb)
        for word in script.arguments:
            option = word.removeprefix("--").partition("=")[0]
            if word.startswith("--") and option not in known:
                yield (
                    script.where,
                    f"{verb.name} must have the option, got {word!r}; `python pipelines/{verb.name} --help` lists them",
                )


def recipes_exist(bundle: Bundle) -> Wrong:
    """A recipe is a file of the image, one of ours by name, or a key of a ConfigMap, and it is read before anything is computed."""
    for where, path, pod, container in recipes(bundle):
        try:
            if recipe_at(bundle, pod, container, path) is None and not exists_at(bundle, pod, container, path):
                yield where, f"a recipe must be there for {pod.name}, got {path!r}; mount it, or correct the name"
        except ConfigError as error:
            yield where, f"a recipe must be valid, got one that is not: {error}; correct it"


def results_are_kept(bundle: Bundle) -> Wrong:
    """What a run writes has to outlive its pod, and to be seen by every node: output and vault lie on a claim that may be written."""
    for where, path, pod, container in recipes(bundle):
        try:
            recipe = recipe_at(bundle, pod, container, path)
        except ConfigError:
            continue  # another rule says so
        claims = {volume["name"] for volume in pod.spec.get("volumes") or [] if "persistentVolumeClaim" in volume}
        mounts = [mount for mount in container.get("volumeMounts") or [] if mount["name"] in claims and not mount.get("readOnly")]
        writable = [PurePosixPath(mount["mountPath"]) for mount in mounts]
        serves = pod.owner.startswith("RayService/")  # a server keeps a part of the output folder, and no vault
        for name, folder in (("output", recipe.output), *([] if serves else [("ledger.vault", recipe.vault)])) if recipe else ():
            wanted = PurePosixPath(folder)
            if not any(wanted.is_relative_to(mount) or (serves and mount.is_relative_to(wanted)) for mount in writable):
                yield (
                    where,
                    f"{name} of a recipe must lie on a claim that {pod.name} may write, got {str(folder)!r}; mount one there",
                )


def weights_are_mounted(bundle: Bundle) -> Wrong:
    """A base or records that a recipe names by an absolute path lie on a volume of every pod that reads them."""
    for where, path, pod, container in recipes(bundle, everybody=False):
        try:
            recipe = recipe_at(bundle, pod, container, path)
        except ConfigError:
            continue
        found = [] if recipe is None else [("model.path", recipe.model.path), ("data.path", getattr(recipe.data, "path", None))]
        for name, folder in found:
            if folder is not None and str(folder).startswith("/") and mount_of(container, str(folder)) is None:
                yield where, f"{name} of a recipe must lie on a volume of {pod.name}, got {str(folder)!r}; mount it"


def scripts_of_config_maps_parse(bundle: Bundle) -> Wrong:
    """Scripts in ConfigMaps are linted by nobody else once they are rendered."""
    for config in bundle.of("ConfigMap"):
        for key, text in (config.get("data") or {}).items():
            try:
                if key.endswith(".py"):
                    compile(text, key, "exec")
                elif key.endswith((".yaml", ".yml")):
                    yaml.safe_load(text)
            except (SyntaxError, yaml.YAMLError) as error:
                yield f"{title(config)} {key}", f"a script must parse, got {' '.join(str(error).split())}; mend it"


def _applications(bundle: Bundle) -> Iterator[tuple[str, str, Any]]:
    """Place, import path and arguments of every application that Serve is given."""
    for service in bundle.of("RayService"):
        for application in applications(service):
            yield title(service), str(application.get("import_path")), application.get("args")


def serve_imports_exist(bundle: Bundle) -> Wrong:
    """Serve imports the application when the cluster stands; a name that is not there is found only then."""
    for where, path, _ in _applications(bundle):
        if not bundle.repository.defines(path):
            yield where, f"import_path must be module:name of this repository, got {path!r}; correct it"


def serve_arguments_are_taken(bundle: Bundle) -> Wrong:
    """The application refuses arguments that it does not have, and only once the cluster stands."""
    for where, path, arguments in _applications(bundle):
        model = bundle.repository.arguments(path)
        try:
            if model:
                model.model_validate(arguments or {})
        except ValidationError as error:
            for wrong in error.errors(include_url=False):
                name, known = ".".join(map(str, wrong["loc"])) or "args", ", ".join(model.model_fields if model else ())
                yield (
                    where,
                    f"args of {path} must be what it takes ({known}), got `{name}`: {wrong['input']!r}, {wrong['msg']}; correct it",
                )


def recipe_is_said_once(bundle: Bundle) -> Wrong:
    """A job's cluster runs the entrypoint; where a submitter has a command of its own, both say the same."""
    for job in bundle.of("RayJob"):
        entrypoint = re.split(r"\s+", str(job["spec"].get("entrypoint", "")).strip())
        template = job["spec"].get("submitterPodTemplate") or {}
        for container in (template.get("spec") or {}).get("containers") or []:
            words = [*(container.get("command") or []), *(container.get("args") or [])]
            if container.get("command") and words[-len(entrypoint) :] != entrypoint:
                yield title(job), f"a submitter's command must end in the entrypoint, got {words} and {entrypoint}; make them one"


RULES = table(
    scripts_exist, options_exist, recipes_exist, results_are_kept, weights_are_mounted, scripts_of_config_maps_parse, serve_imports_exist,
    serve_arguments_are_taken, recipe_is_said_once,
)  # fmt: skip
