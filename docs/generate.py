"""What the site takes from elsewhere, so that nothing is written twice: the programs' own --help, and the repository's documents."""
import os, pathlib, re, subprocess

from mkdocs.structure.files import File

TOP = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(os.environ.get("IPBROKER_BIN_DIR", TOP / "target/debug"))
SUMMARIES = {
    "ipctl": "The controller: it binds every socket, and engines and clients connect to it.",
    "ipengine": "Engines: one process may hold several.",
    "ipclient": "The client's command line.",
}


def help_of(*words):
    environment = dict(os.environ, COLUMNS="110", NO_COLOR="1")
    return subprocess.run([BIN / words[0], *words[1:], "--help"], capture_output=True, text=True, check=True, env=environment).stdout


def reference(*words):
    """All that a program and its subcommands, and theirs, say of themselves."""
    text = help_of(*words)
    title = [f"{'#' * len(words)} {' '.join(words)}", ""]
    lines = [*title, *([SUMMARIES[words[0]], ""] if len(words) == 1 else []), "```text", text.rstrip(), "```", ""]
    commands = re.search(r"^Commands:\n((?:  .*\n|\n)+)", text, re.M)
    for name in re.findall(r"^  (\w[\w-]*)", commands.group(1) if commands else "", re.M):
        if name != "help":
            lines.append(reference(*words, name))
    return "\n".join(lines)


def document(name, links):
    """A document of the repository; its links are turned to where the site has their targets."""
    text = (TOP / name).read_text()
    for old, new in links.items():
        text = text.replace(f"]({old}", f"]({new}")
    return text


def on_files(files, config):
    pages = {f"reference/{program}.md": reference(program) for program in SUMMARIES}
    pages["reference/protocol.md"] = document("protocol/PROTOCOL.md", {})
    pages["reference/changes.md"] = document("CHANGELOG.md", {"docs/": "../"})
    pages["how/architecture.md"] = document("ARCHITECTURE.md", {"docs/": "../", "protocol/PROTOCOL.md": "../reference/protocol.md", "README.md": "../index.md", "CONTRIBUTING.md": "contributing.md"})
    pages["how/contributing.md"] = document("CONTRIBUTING.md", {"docs/how/": "", "docs/": "../", "ARCHITECTURE.md": "architecture.md"})
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files
