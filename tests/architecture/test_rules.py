"""The rules of the house that neither the linter nor the import contracts can say."""

from __future__ import annotations

import ast
import re

from tests.architecture.sources import Source, all_sources, package_sources, tracked_files

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
TEST_FILE_LINES_MAX = 800  # a list of promises reads more easily than code
MONEY_ROOMS = {"money.py", "ledger", "payments", "ecash", "pricing", "channels", "credits"}
WALL_CLOCK = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "date.today"}
WALL_CLOCK |= {"datetime.today", "time.localtime", "time.gmtime"}
NO_MONEY = {"isinstance", "difflib.get_close_matches"}
#: An id begins with the time so that ids sort; nobody reads a time out of one.
READS_THE_CLOCK = {"clock.py", "ids.py"}
SQL = re.compile(
    r"\b(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
    r"|CREATE\s+(TABLE|INDEX)|BEGIN\s+IMMEDIATE|PRAGMA\s+\w+)\b",
    re.DOTALL,
)
#: A duration is no money: a float may stand on a line that names one (`timeout_s`, `PAUSE_S`).
DURATION = re.compile(r"\w_s\b|\w_S\b")


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    if isinstance(node, ast.Attribute):  # datetime.datetime.now
        return f"{dotted(node.value).rpartition('.')[2]}.{node.attr}"
    return ""


def harmless_names(tree: ast.Module) -> set[ast.AST]:
    """What is no amount: a float is looked for in `isinstance`, a likeness is not money."""
    return {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in NO_MONEY
        for name in ast.walk(node)
    }


def floats(source: Source) -> list[str]:
    lines, tree = source.text.splitlines(), source.tree
    harmless = harmless_names(tree)
    return [
        source.at(node)
        for node in ast.walk(tree)
        if (
            (isinstance(node, ast.Constant) and isinstance(node.value, float))
            or (isinstance(node, ast.Name) and node.id == "float")
        )
        and node not in harmless
        and not DURATION.search(lines[node.lineno - 1])
    ]


def test_only_the_clock_reads_the_wall_clock() -> None:
    found = [
        source.at(node)
        for source in package_sources()
        if source.room not in READS_THE_CLOCK
        for node in ast.walk(source.tree)
        if (isinstance(node, ast.Attribute) and dotted(node) in WALL_CLOCK)
        or (isinstance(node, ast.ImportFrom) and node.module == "time")
    ]
    assert found == []


def test_there_is_no_float_near_money() -> None:
    found = [
        at for source in package_sources() if source.room in MONEY_ROOMS for at in floats(source)
    ]
    assert found == []


def test_only_stores_speak_sql() -> None:
    found = [
        source.at(node)
        for source in package_sources()
        if source.room != "stores"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and SQL.search(node.value)
    ]
    assert found == []


def test_a_function_fits_on_a_screen() -> None:
    found = [
        f"{source.at(node)} {node.name}: {length} lines"
        for source in all_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert found == []


def test_a_file_can_be_read_in_one_sitting() -> None:
    found = [
        f"{source.name}: {length} lines"
        for source in all_sources()
        if (length := source.text.count("\n"))
        > (TEST_FILE_LINES_MAX if source.name.startswith("tests/") else FILE_LINES_MAX)
    ]
    assert found == []


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    found = [source.name for source in all_sources() if words.search(source.text)]
    assert found == []


def test_the_repository_names_no_machine_and_no_package_registry() -> None:
    paths = r"(?<![\w.~*-])/(root|work|home/[a-z]\w*|Users/\w+|workspace)/"
    hosts = (
        r"pypi\.",
        r"files\.python" + "hosted",
        r"registry\.npm",
        r"proxy\.golang",
        "artifactory",
    )
    hints = re.compile(f"{paths}|{'|'.join(host + '(org|js|com)?' for host in hosts)}")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if path.name != "test_rules.py" and (hit := hints.search(text)):
            found.append(f"{path.name}: {hit.group()}")
    assert found == []
