"""Holds the documents against the code: links, scripts, commands and their options, environment variables, exit codes.

Prints one line for each thing that does not agree and exits with 1 if there is one.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from backupfs import errors
from backupfs.cli.main import commands as program

ROOT = Path(__file__).resolve().parent.parent
# A decision tells of its day and the changelog of every day; both may name what is gone.
HISTORICAL = {"decisions", "changelog.md"}

FENCE = re.compile(r"^(`{3,}|~{3,})([^\n]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|\s)#.*$", re.MULTILINE)
TYPED = re.compile(r"^[$>] (.*\n)", re.MULTILINE)
INLINE_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
COMMAND = re.compile(r"(?:^|[\s/'\"])backupfs'?[ \t]+(?P<words>[^\n|;&#>]+)", re.MULTILINE)
SCRIPT = re.compile(r"(?:^|[\s'\"(`])(?:\./)?(scripts/[\w./-]*\w)")
# The three ways to give a password share one name: X, X_FILE, X_COMMAND.
VARIABLE = re.compile(r"\b(BACKUPFS_[A-Z_]*?[A-Z])(?:_FILE|_COMMAND)?\b")
EXIT_CODE_ROW = re.compile(r"^\|\s*`?(\d+)`?\s*\|", re.MULTILINE)


def documents() -> list[Path]:
    return [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]


def is_historical(path: Path) -> bool:
    return not HISTORICAL.isdisjoint(path.relative_to(ROOT).parts)


def code_of(text: str) -> Iterator[str]:
    """What stands in code blocks of commands (lines joined, comments left out) and in inline code; not their output."""
    for match in FENCE.finditer(text):
        if match[2].strip() in {"", "sh", "bash", "console", "crontab", "ini"}:
            code = match[3] if match[2].strip() != "console" else "".join(TYPED.findall(match[3]))
            yield COMMENT.sub("", code.replace("\\\n", " "))
    for match in INLINE_CODE.finditer(FENCE.sub("", text)):
        yield match[2]


def anchors(text: str) -> set[str]:
    """The anchors that a renderer of Markdown makes of the headings."""
    plain = (re.sub(r"[`*]", "", heading).lower() for heading in HEADING.findall(FENCE.sub("", text)))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def link_faults(path: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(INLINE_CODE.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        if not linked.exists():
            yield f"links to {target}, which does not exist"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked.read_text()):
            yield f"links to {target}, which has no such heading"


def verbs_of(group: click.Group) -> dict[str, click.Command]:
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that can be typed, by its words; hidden ones left out."""
    for name, command in verbs_of(group).items():
        if command.hidden:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name)


def option_names(command: click.Command) -> set[str]:
    named = (param for param in command.params if isinstance(param, click.Option))
    return {"--help", *(name for param in named for name in (*param.opts, *param.secondary_opts))}


def command_faults(words: str) -> Iterator[str]:
    """What is wrong with `backupfs WORDS`: an unknown verb, or an option that this verb does not have."""
    command: click.Command = program
    known = option_names(program)
    verbs = ["backupfs"]
    for word in re.findall(r"[^\s\[\]'\"`]+", words):
        if word.startswith("-") and word != "--":
            option = word.rstrip(".,:").partition("=")[0]
            if re.fullmatch(r"--?[a-z][a-z-]*", option) and option not in known:
                yield f"says `{' '.join(verbs)} {option}`, and there is no such option"
        elif isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z/-]*", word):
            alternatives = word.split("/")
            for name in alternatives:
                if name not in verbs_of(command):
                    yield f"says `{' '.join(verbs)} {name}`, and there is no such command"
            if alternatives[-1] not in verbs_of(command):
                return
            command = verbs_of(command)[alternatives[-1]]
            verbs.append(word)
            known |= option_names(command)
        elif isinstance(command, click.Group):
            return


def exit_codes(kind: type[errors.BackupfsError] = errors.BackupfsError) -> set[int]:
    return {kind.exit_code}.union(*(exit_codes(below) for below in kind.__subclasses__()))


def exit_code_faults(texts: list[str]) -> Iterator[str]:
    sections = [
        section for text in texts for section in re.split(r"^#{1,6}\s+", text, flags=re.MULTILINE) if section.lower().startswith("exit codes")
    ]
    documented = {int(code) for section in sections for code in EXIT_CODE_ROW.findall(section)}
    used = exit_codes() | {0, 2, 130}
    if documented != used:
        yield f"exit codes: the documents say {sorted(documented)}, the code uses {sorted(used)}"


def variables_of_code() -> set[str]:
    sources = [*(ROOT / "backupfs").rglob("*.py"), ROOT / "scripts/quickstart"]
    return {name for path in sources for name in VARIABLE.findall(path.read_text())}


def faults() -> Iterator[str]:
    current: list[str] = []
    said: set[tuple[str, ...]] = set()
    variables: set[str] = set()
    for path in documents():
        text = path.read_text()
        name = path.relative_to(ROOT)
        yield from (f"{name} {fault}" for fault in link_faults(path, text))
        if is_historical(path):
            continue
        current.append(text)
        variables.update(VARIABLE.findall(text))
        for script in sorted(set(SCRIPT.findall(text))):
            if not (ROOT / script).exists():
                yield f"{name} names {script}, which does not exist"
        for code in code_of(text):
            for match in COMMAND.finditer(code):
                yield from (f"{name} {fault}" for fault in command_faults(match["words"]))
                plain = re.findall(r"[a-z][a-z/-]*", match["words"])
                said.update((plain[0], sub) for sub in (plain[1].split("/") if len(plain) > 1 else ()))
                said.update((word,) for word in (plain[0].split("/") if plain else ()))
    for words in commands(program):
        if words not in said:
            yield f"`backupfs {' '.join(words)}` exists, and no document shows it"
    for variable in sorted(variables - variables_of_code()):
        yield f"the documents name {variable}, which the code does not know"
    for variable in sorted(variables_of_code() - variables):
        yield f"the code reads {variable}, which no document names"
    yield from exit_code_faults(current)


def main() -> None:
    found = list(faults())
    for fault in found:
        print(fault)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
