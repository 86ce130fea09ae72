"""The documents whose programs run here, as they were published (tests/python/seeds), and what is cut from them."""

import ast
import glob
import os
import re
import textwrap

HERE = os.path.join(os.path.dirname(__file__), "seeds")


def text(number):
    """The document of a number, as in "000"."""
    (path,) = glob.glob(os.path.join(HERE, f"{number}_*.txt"))
    with open(path, encoding="utf-8") as file:
        return file.read()


def between(text, begin, end):
    """What stands after one phrase, up to another."""
    at = text.index(begin) + len(begin)
    return text[at : text.index(end, at)]


def session(text):
    """IPython's prompts: pairs of what is typed, and what is shown for it."""
    pieces = []
    for typed, shown in re.findall(r"^In \[\d+\]: (.*(?:\n   \.+:.*)*)((?:\n(?!\n*In \[).*)*)", text, re.M):
        lines = re.sub(r"\n   \.+: ?", "\n", typed)
        shown = re.match(r"\n(?:Out\[\d+\]: ?\n?)?((?:[^\n]+\n?)*)", shown)
        pieces.append((lines, shown.group(1).strip("\n") if shown else ""))
    return pieces


def run(source, names):
    """Runs what is typed at a prompt; the value, if it is an expression."""
    tree = ast.parse(source)
    if isinstance(tree.body[-1], ast.Expr):
        return eval(compile(ast.Expression(tree.body[-1].value), "<document>", "eval"), names)
    exec(compile(tree, "<document>", "exec"), names)


VARIES = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}",
    r"\d:\d\d:\d\d\.\d{6}": r"\d:\d\d:\d\d(\.\d{6})?",
    r"\w{8}-\w{4}-\w{4}-\w{4}-\w{12}": r"[\w:-]+",
    r"mezcal\d\d\.cl\.ecei\.tohoku\.ac\.jp": r"[\w.-]+",
    r"(?<=engine_id': )\d+": r"\d+",
    r"\bu(?=')": "",  # Python 2 wrote u'…'
    r"\s+": r"\s+",
}
"""What differs from run to run: how the documents have it, and what it may be here."""


def like(shown):
    """A regular expression for what a document shows: the same, but for times, ids, hosts and line breaks."""
    pattern, at = "", 0
    for found in re.finditer("|".join(f"({known})" for known in VARIES), shown):
        pattern += re.escape(shown[at : found.start()]) + list(VARIES.values())[found.lastindex - 1]
        at = found.end()
    return re.compile(pattern + re.escape(shown[at:]))


def cut(document, begin, end):
    """From the line that begins with `begin` up to (not with) the one that begins with `end`."""
    lines = document.splitlines()
    first = next(at for at, line in enumerate(lines) if line.strip().startswith(begin))
    last = next(at for at, line in enumerate(lines) if at > first and line.strip().startswith(end))
    return textwrap.dedent("\n".join(lines[first:last])) + "\n"


def replaced(program, old, new):
    """The program with one thing replaced, which must be there."""
    assert old in program, f"{old!r} is not in the document"
    return program.replace(old, new)
