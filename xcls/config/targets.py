"""Checks the nodes attention, position and dataset.source against the signature of their `_target_`.

Signatures are read with `ast`, without importing the target, so that `run.py` refuses a misspelt key in milliseconds,
without torch.
"""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

from xcls.config.schema import UserError, nearest
from xcls.runs.code_hash import module_file

FILES = "xcls.data.files.Files"  # the source whose options describe the format of a table
PLAIN: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list, "dict": dict}


class Parameter(NamedTuple):
    """One keyword of a constructor: its annotation as written, and whether it must be given."""

    annotation: ast.expr | None
    required: bool


def _definition(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef | None:
    found = [n for n in tree.body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name]
    return found[-1] if found else None


def _where_imported(tree: ast.Module, name: str) -> tuple[str, str] | None:
    """(module, original name) of a name that the module imports with `from … import …`."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return node.module, alias.name
    return None


def parameters(target: str) -> dict[str, Parameter] | None:
    """The keywords that `target` (`package.module.Class`) takes; None if it does not exist. Raises UserError.

    With `**shape` or without its own constructor, a class also takes those of its base.
    """
    module, _, name = target.rpartition(".")
    path = module_file(module) if module else None
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{path}: line {error.lineno}: not valid Python: {error.msg}.") from error
    node = _definition(tree, name)
    if node is None:
        origin = _where_imported(tree, name)
        return parameters(".".join(origin)) if origin else None
    found: dict[str, Parameter] = {}
    if isinstance(node, ast.ClassDef):
        bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if bases and (not inits or inits[0].args.kwarg):
            found = parameters(f"{module}.{bases[0]}") or {}
        if not inits:
            return found
        node = inits[0]
        for name in _given_to_base(node):
            found.pop(name, None)
    spec = node.args
    positional = spec.posonlyargs + spec.args
    defaults = [*[None] * (len(positional) - len(spec.defaults)), *spec.defaults, *spec.kw_defaults]
    own = {
        argument.arg: Parameter(argument.annotation, required=default is None)
        for argument, default in zip(positional + spec.kwonlyargs, defaults)
        if argument.arg != "self"
    }
    return {**own, **found}


def _given_to_base(init: ast.FunctionDef) -> set[str]:
    """The keywords that a constructor passes to the constructor of its base: a configuration cannot set them."""
    calls = [
        n
        for n in ast.walk(init)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr == "__init__"
    ]
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


def fits(value: Any, annotation: ast.expr | None) -> bool:
    """Whether `value` has the annotated type; an annotation outside PLAIN accepts every value."""
    if annotation is None:
        return True
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return value is None
    if isinstance(annotation, ast.BinOp):  # X | Y
        return fits(value, annotation.left) or fits(value, annotation.right)
    if isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name):
        name = annotation.value.id
        if name == "Literal":
            choices = ast.literal_eval(annotation.slice)
            return value in (choices if isinstance(choices, tuple) else (choices,))
        if name == "Optional":
            return value is None or fits(value, annotation.slice)
        if name == "list":
            return isinstance(value, list) and all(fits(item, annotation.slice) for item in value)
        annotation = annotation.value
    if isinstance(annotation, ast.Name) and annotation.id in PLAIN:
        if isinstance(value, bool) and annotation.id != "bool":
            return False
        return isinstance(value, PLAIN[annotation.id])
    return True


def check_node(key: str, node: Any, given: tuple[str, ...] = ("name",), *, home: str = "") -> None:
    """Refuses a node whose keys are not the keywords of its `_target_`, or whose values have the wrong type.

    `given`: names that are not for the constructor, or that xcls.build passes itself. `home`: the package that the
    target must be in, since a configuration file from an unknown source must not call arbitrary functions.
    Raises UserError with the key, what is wrong and the nearest valid key.
    """
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        raise UserError(
            f"{key}: a node with a `_target_` is needed (a file of conf/{key.split('.')[0]}/), not {node!r}."
        )
    if not node["_target_"].startswith(home):
        raise UserError(f"{key}._target_={node['_target_']}: a class of the package {home.rstrip('.')} is needed.")
    known = parameters(node["_target_"])
    if known is None:
        raise UserError(f"{key}._target_={node['_target_']}: there is no such class or function.")
    wrong = []
    for name, value in node.items():
        if name == "_target_" or name in given:
            continue
        if name not in known:
            free = [n for n in known if n not in given]
            wrong.append(
                f"{key}.{name}: unknown key.{nearest(name, free)} {node['_target_']} takes: {', '.join(free)}."
            )
        elif isinstance(value, dict) or not fits(value, known[name].annotation):
            annotation = known[name].annotation
            wrong.append(f"{key}.{name}={value}: {ast.unparse(annotation) if annotation else 'a value'} is needed.")
    missing = [n for n, p in known.items() if p.required and n not in node and n not in given]
    if missing:
        wrong.append(f"{key}: {', '.join(missing)} must be set ({node['_target_']} has no default for it).")
    if wrong:
        raise UserError("\n".join(wrong))
