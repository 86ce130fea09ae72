"""The programs of the documents about SCOOP, dispy and Parallel Python, for the tests and for compat_bench.py."""

import re

import documents

SCOOP = documents.text("001")
PP = documents.text("003")
DISPY = documents.text("002")

INDENTATION = [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 2, 2, 2, 1, 1, 2, 2, 1]
"""Of the lines of the program for dispy, which the document has lost."""

# The counting itself is not in the document, which refers to it: the word count of "multiprocessing で MapReduce を実装する".
COUNTING = '''
def file_to_words(filename):
    """Read a file and return a sequence of (word, occurances) values."""
{imports}
    output = []
    with open(filename, 'rt') as f:
        for line in f:
            line = line.translate(str.maketrans(string.punctuation, ' ' * len(string.punctuation)))
            for word in line.split():
                word = word.lower()
                if word.isalpha():
                    output.append((word, 1))
    return output


def count_words(item):
    """Convert the partitioned data for a word to a tuple containing the word and the number of occurances."""
    word, occurances = item
    return (word, sum(occurances))
'''


def scoop_test(line="from ipbroker.compat import scoop\n"):
    """The program of the article about SCOOP: its import is replaced."""
    return documents.replaced(documents.cut(SCOOP, "import random", "scoop.futures.map という"), "import scoop\n", line)


def dispy(name="ipbroker.compat.dispy as dispy"):
    """The program of the article about dispy: its import is replaced, and Python 2's print."""
    cut = "def compute" + documents.between(DISPY, "def compute", "Перед тем")
    lines = documents.replaced(cut, "import dispy,", f"import {name},").splitlines()
    assert len(lines) == len(INDENTATION)
    return "".join("    " * depth + re.sub(r"^print (.*)$", r"print(\1)", line) + "\n" for line, depth in zip(lines, INDENTATION))


def mapreduce(line="from ipbroker.compat import pp\n"):
    """The module of the article about Parallel Python: its import is replaced, and the one line that is Python 2's alone
    (items() were a list there)."""
    program = documents.cut(PP, "import itertools", "コードをややこしくしているのは")
    program = documents.replaced(program, "import pp\n", line)
    return documents.replaced(program, "return partitioned_data.items()", "return list(partitioned_data.items())")


def wordcount(files, servers="()"):
    """The program that uses it: imports of modules within the function, its last lines with other hosts."""
    use = documents.cut(PP, "from pp_mapreduce import", "~")
    imports = documents.cut(PP, "import multiprocessing", "~")
    run = documents.cut(PP, "ppservers=(", "これで実行すると")
    run = documents.replaced(run, '("192.168.1.1:60000","192.168.1.2:60000","192.168.1.3:60000")', servers)
    counting = COUNTING.format(imports="".join(f"    {line}\n" for line in imports.splitlines()))
    lines = "".join(f"    {line}\n" for line in run.splitlines())
    return f"{use}{counting}\nif __name__ == '__main__':\n    input_files = {files!r}\n{lines}    print(sorted(word_counts))\n"
