"""Find the files of the library that a chapter rests on: the closure of what its code imports.

Sources are parsed, never run. Where that does not tell (a computed import, code in a string, a
file that the chapter opens itself, a name that a package makes up when asked), a chapter rests on
everything.
"""

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

TOP = "companion"
# What these reach, no reader of the source can tell. (`eval` is a function here, `.eval()` is not.)
COMPUTED = {"__import__", "eval", "exec", "import_module", "run_module", "run_path"}
OPENING = {"open", "Path", "__file__", "read_text", "read_bytes"}
METHODS = {"eval", "open"}


class UnseenError(Exception):
    """Raised where the source does not tell what code rests on."""


def parse(source: str | bytes) -> ast.Module:
    """Parse code; what is no Python, such as a notebook's magic, is not seen through."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UnseenError(f"no Python: {error}") from error


def mentions(tree: ast.AST) -> Iterator[str]:
    """Yield every name and attribute that code mentions outside of its import statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr not in METHODS:
            yield node.attr


def strings(tree: ast.AST) -> set[str]:
    """Collect the string constants of a piece of code."""
    nodes = ast.walk(tree)
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def outermost(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that importing a module runs: none in functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for block in ("body", "orelse", "finalbody", "handlers"):
                for inner in getattr(node, block, []):
                    yield from outermost([inner] if isinstance(inner, ast.stmt) else inner.body)


def for_types(node: ast.stmt) -> bool:
    """Tell whether a statement is ``if TYPE_CHECKING:``, whose body never runs."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


class Library:
    """The files below ``root/companion``, and what its modules import."""

    def __init__(self, root: Path) -> None:
        self.root = root
        below = (root / TOP).rglob("*")
        self.files = [f for f in sorted(below) if f.is_file() and "__pycache__" not in f.parts]
        self.modules = {self.name(file): file for file in self.files if file.suffix == ".py"}
        self._trees: dict[str, ast.Module] = {}
        self._direct: dict[str, set[str]] = {}
        self._asked: set[str] = set()  # the modules that make up names when asked for them

    def name(self, file: Path) -> str:
        """Return the dotted name of a module's file."""
        parts = file.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def tree(self, module: str) -> ast.Module:
        """Return what importing a module can run.

        That is not a package's ``__getattr__``: the answer is looked up where a name is asked for.
        """
        if module not in self._trees:
            tree = parse(self.modules[module].read_bytes())
            if any(getattr(node, "name", "") == "__getattr__" for node in tree.body):
                self._asked.add(module)
            tree.body = [
                node
                for node in tree.body
                if getattr(node, "name", "") != "__getattr__" and not for_types(node)
            ]
            self._trees[module] = tree
        return self._trees[module]

    def defines(self, module: str, name: str) -> bool:
        """Tell whether importing a module binds a name."""
        for node in outermost(self.tree(module).body):
            if isinstance(node, ast.Import | ast.ImportFrom):
                bound = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound = {node.name}
            else:
                names = (n for n in ast.walk(node) if isinstance(n, ast.Name))
                bound = {n.id for n in names if isinstance(n.ctx, ast.Store)}
            if name in bound:
                return True
        return name.startswith("__") and name.endswith("__")

    def lazy(self, module: str, name: str) -> str:
        """Return the module from which a package takes a name when it is asked for it.

        A table in the package tells: ``{"name": "module"}`` or ``{"module": ("name", ...)}``.
        """
        for node in ast.walk(self.tree(module)):
            if not isinstance(node, ast.Dict):
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                left, right = strings(key) if key else set(), strings(value)
                origins = (right if name in left else set()) | (left if name in right else set())
                full = {f"{module}.{origin.lstrip('.')}" for origin in origins} | origins
                if len(found := full & set(self.modules)) == 1:
                    return found.pop()
        raise UnseenError(f"{module} does not say where {name} comes from")

    def member(self, module: str, name: str) -> str:
        """Return the module that ``module.name`` is, or is defined in."""
        if f"{module}.{name}" in self.modules:
            return f"{module}.{name}"
        if self.defines(module, name) or module not in self._asked:
            return module
        return self.lazy(module, name)

    def imports(self, tree: ast.Module, package: str = "") -> set[str]:
        """Return the modules of the library that code imports, at its head or inside functions."""
        found: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == TOP:
                        found.add(alias.name)
                        if alias.name == TOP or not alias.asname:
                            found |= self.by_attributes(tree, alias.asname or TOP)
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")
                stem = above[: len(above) - node.level + 1] if node.level else []
                base = ".".join([*stem, *([node.module] if node.module else [])])
                if base.split(".")[0] == TOP:
                    found.add(base)
                    if base in self.modules:
                        for alias in node.names:
                            found |= self.named(base, alias.name)
        if absent := found - set(self.modules):
            raise UnseenError(f"there is no module {', '.join(sorted(absent))}")
        return found

    def named(self, module: str, name: str) -> set[str]:
        """Return where ``from module import name`` leads; a star, to all that the module names."""
        if name != "*":
            return {self.member(module, name)}
        listed = {f"{module}.{text}" for text in strings(self.tree(module))}
        if module in self._asked:
            raise UnseenError(f"all of {module} may be more than it says")
        return listed & set(self.modules)

    def by_attributes(self, tree: ast.Module, root: str) -> set[str]:
        """Return the modules that code reaches as ``root.part.chapter``."""
        found: set[str] = set()
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in ast.walk(tree):
            names, base = [], node
            while isinstance(base, ast.Attribute):
                names.insert(0, base.attr)
                base = base.value
            if not (isinstance(base, ast.Name) and base.id == root) or id(node) in inner:
                continue
            if not names:
                raise UnseenError(f"{root} is used as a whole")
            module = TOP
            for name in names:
                last, module = module, self.member(module, name)
                found.add(module)
                if module != f"{last}.{name}":
                    break
        return found

    def direct(self, module: str) -> set[str]:
        """Return what a module imports."""
        if module not in self._direct:
            tree = self.tree(module)
            if hidden := COMPUTED & set(mentions(tree)):
                raise UnseenError(f"{module} uses {', '.join(sorted(hidden))}")
            is_package = self.modules[module].name == "__init__.py"
            package = module if is_package else module.rpartition(".")[0]
            self._direct[module] = self.imports(tree, package)
        return self._direct[module]

    @cached_property
    def owners(self) -> dict[Path, str]:
        """Map each file that is no Python to the innermost package around it, which may read it."""
        packages = {file.parent: name for name, file in self.modules.items()}
        others = [file for file in self.files if file.suffix != ".py"]
        return {f: next((packages[p] for p in f.parents if p in packages), TOP) for f in others}

    def runs(self, trees: list[ast.Module]) -> set[str] | None:
        """Return the names of the stored runs that code reads, None where it does not say."""
        found: set[str] = set()
        for tree in trees:
            said = 0
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and len(node.args) == 1:
                    function = getattr(node.func, "attr", getattr(node.func, "id", ""))
                    if function == "stored_run" and isinstance(node.args[0], ast.Constant):
                        found.add(str(node.args[0].value))
                        said += 1
                elif isinstance(node, ast.alias) and node.asname and "stored_run" in node.name:
                    return None
            if said < sum(name in ("stored_run", "stored_runs") for name in mentions(tree)):
                return None
        return found

    def closure(self, code: str) -> list[Path]:
        """Return the files of the library that a chapter's code rests on.

        Importing a module runs the packages around it, and they import their own modules.

        Args:
            code: The chapter's cells.

        Raises:
            UnseenError: Where the source does not tell.
        """
        tree = parse(code)
        if hidden := (COMPUTED | OPENING) & set(mentions(tree)):
            raise UnseenError(f"the chapter uses {', '.join(sorted(hidden))}")
        reached: set[str] = set()
        waiting = self.imports(tree)
        while waiting:
            parts = waiting.pop().split(".")
            for end in range(1, len(parts) + 1):
                module = ".".join(parts[:end])
                if module not in reached:
                    reached.add(module)
                    waiting |= self.direct(module) - reached
        files = {self.modules[module] for module in reached}
        runs = self.runs([tree, *(self.tree(module) for module in reached)])
        for file, owner in self.owners.items():
            stored = file.parent.name == "runs" and file.suffix == ".json"
            if owner in reached and (runs is None or not stored or file.stem in runs):
                files.add(file)
        return sorted(files)
