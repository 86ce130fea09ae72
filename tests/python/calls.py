"""Functions that engines import by name."""

import os
import sys
import time


def square(x):
    return x * x


def add(a, b=10, *, c=100):
    return a + b + c


class Custom(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


def fail(kind="value"):
    if kind == "custom":
        raise Custom(7, "seven")
    raise ValueError(f"no {kind}")


def nap(seconds, result=None):
    time.sleep(seconds)
    return result


def pid(_=None):
    return os.getpid()


def say(text):
    print(text)
    print(text.upper(), file=sys.stderr)
    return len(text)
