"""Measure the source itself: sizes, names, docstrings, comments and imports of the packages.

    python benchmarks/names.py [--json] [FOLDER ...]

A name counts where it is assigned or is an argument and has more than one letter. Pronouns, adverbs
and participles (WORDS) say how something came about, not what it is; model codebases of the field
have .1 to .7% of them. tests/test_architecture.py keeps these figures from getting worse.
"""

import argparse
import ast
import json
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("alexprep", "pipelines", "alexnet")
POOR = """
found place places one ones part parts at about there here made seen each mine said told coming
waiting aside others other rest following ahead asked given taken kept left right now then after
before inside whole same both more most it this that these those
"""
WORDS = frozenset(POOR.split())
# Names that every package may have.
SHARED = frozenset({"__init__", "__main__", "errors", "config"})

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True, slots=True)
class Module:
    """A file: its dotted name, text and syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @classmethod
    def load(cls, path: Path, root: Path) -> "Module":
        text = path.read_text()
        words = path.relative_to(root).with_suffix("").parts
        dotted = ".".join(words[:-1] if words[-1] == "__init__" else words)
        return cls(name=dotted, path=path, text=text, tree=ast.parse(text))

    @property
    def lines(self) -> int:
        return self.text.count("\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What one package measures.

    file_lines, function_lines: median, 95th percentile and most
    poor_names: share of assigned names in WORDS, 0..1; worst: the commonest of them
    documented: share of functions and methods without a leading _ that have a docstring
    comments: comments per 100 lines that are not blank
    annotated: share of functions with every argument annotated
    """

    files: int
    lines: int
    file_lines: tuple[int, int, int]
    function_lines: tuple[int, int, int]
    poor_names: float
    worst: dict[str, int]
    documented: float
    comments: float
    annotated: float


def load(packages: Iterable[str] = PACKAGES, root: Path = ROOT) -> dict[str, list[Module]]:
    """The modules of each package, in order of their path."""
    return {
        package: [Module.load(path, root) for path in sorted((root / package).rglob("*.py"))]
        for package in packages
    }


def measure(modules: Sequence[Module]) -> Figures:
    """All figures of some modules; for a package or for several together."""
    names = list(chain.from_iterable(assigned_names(module.tree) for module in modules))
    poor = Counter(name for name in names if name in WORDS)
    functions = [node for module in modules for node in functions_of(module.tree)]
    public = [node for node in functions if not node.name.startswith("_")]
    code = sum(sum(map(bool, map(str.strip, module.text.splitlines()))) for module in modules)
    lengths = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
    return Figures(
        files=len(modules),
        lines=sum(module.lines for module in modules),
        file_lines=spread([module.lines for module in modules]),
        function_lines=spread(lengths),
        poor_names=poor.total() / max(len(names), 1),
        worst=dict(poor.most_common(12)),
        documented=share(ast.get_docstring(node) is not None for node in public),
        comments=100 * sum(map(comments, modules)) / max(code, 1),
        annotated=share(is_annotated(node) for node in functions),
    )


def assigned_names(tree: ast.AST) -> Iterable[str]:
    """Variables and arguments of more than one letter, once for each assignment, without _."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id.strip("_")
        elif isinstance(node, ast.arg):
            name = node.arg.strip("_")
        else:
            continue
        if len(name) > 1:
            yield name


def functions_of(tree: ast.AST) -> list[Function]:
    """Every function and method, nested ones included."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def is_annotated(function: Function) -> bool:
    """Whether every argument has a type, self and cls aside."""
    spec = function.args
    arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    named = [one for one in arguments if one is not None and one.arg not in ("self", "cls")]
    return all(argument.annotation is not None for argument in named)


def comments(module: Module) -> int:
    """Comments of a file; a comment of three lines counts three times."""
    with module.path.open("rb") as file:
        return sum(token.type == tokenize.COMMENT for token in tokenize.tokenize(file.readline))


def spread(values: Sequence[int]) -> tuple[int, int, int]:
    """Median, 95th percentile and the largest of some values."""
    ordered = sorted(values) or [0]
    high = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return round(statistics.median(ordered)), high, ordered[-1]


def share(answers: Iterable[bool]) -> float:
    """The share of True, 0..1; 1 where there is nothing to ask about."""
    votes = list(answers)
    return sum(votes) / len(votes) if votes else 1.0


def duplicates(packages: Mapping[str, Sequence[Module]]) -> dict[str, list[str]]:
    """File names that several modules share, each with its paths; SHARED ones are left out."""
    paths: dict[str, list[str]] = {}
    for module in chain.from_iterable(packages.values()):
        if module.path.stem not in SHARED:
            paths.setdefault(module.path.stem, []).append(module.name)
    return {stem: names for stem, names in sorted(paths.items()) if len(names) > 1}


def arrows(packages: Mapping[str, Sequence[Module]]) -> dict[tuple[str, str], int]:
    """(importing package, imported package) -> pairs of modules, one of which imports the other.

    Imports inside functions count as well.
    """
    known = {module.name for module in chain.from_iterable(packages.values())}
    pairs = {
        (module.name, target)
        for module in chain.from_iterable(packages.values())
        for target in imports(module.tree, known)
        if target != module.name
    }
    return Counter((source.split(".")[0], target.split(".")[0]) for source, target in pairs)


def imports(tree: ast.AST, known: set[str]) -> Iterable[str]:
    """The modules of `known` that a file imports, by either form of import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                # "from package import module" names a module, or something that a module defines.
                dotted = f"{node.module}.{alias.name}"
                yield from [name for name in (dotted, node.module) if name in known][:1]


def table(figures: Mapping[str, Figures]) -> str:
    """The figures of each package as a Markdown table."""
    lines = [
        "| package | files | lines | lines/file med, p95, max | lines/function med, p95, max "
        "| poor names | public docstrings | comments per 100 | annotated |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        of_files, of_functions = (
            ", ".join(map(str, values)) for values in (row.file_lines, row.function_lines)
        )
        lines.append(
            f"| {name} | {row.files} | {row.lines:,} | {of_files} | {of_functions} "
            f"| {row.poor_names:.1%} | {row.documented:.0%} | {row.comments:.1f} "
            f"| {row.annotated:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table, or everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="*", default=PACKAGES, metavar="FOLDER")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to measure")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    packages = load(options.folders, options.root.resolve())
    figures = {name: measure(modules) for name, modules in packages.items()}
    figures["together"] = measure(list(chain.from_iterable(packages.values())))
    clashes, edges = duplicates(packages), arrows(packages)
    if options.as_json:
        report = {
            "packages": {name: asdict(row) for name, row in figures.items()},
            "duplicates": clashes,
            "imports": {f"{source} -> {target}": n for (source, target), n in edges.items()},
        }
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
        return
    worst = ", ".join(f"{name} {count}" for name, count in figures["together"].worst.items())
    lines = [
        table(figures),
        "",
        f"Commonest poor names: {worst or 'none'}",
        "",
        "File names twice:",
    ]
    lines += [f"  {stem}: {', '.join(names)}" for stem, names in clashes.items()] or ["  none"]
    lines += ["", "Imports between modules:"]
    lines += [f"  {source} -> {target}: {n}" for (source, target), n in sorted(edges.items())]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
