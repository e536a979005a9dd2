"""`doit tabcompletion`: scripts that complete commands, options and their values, and names.

The scripts contain what the parsers declare, and call `doit tabcompletion --names` for names. A
generator such as shtab cannot be used: it does not handle the colon in names, at which bash ends a word.
"""

import argparse
import re
from argparse import ArgumentParser, Namespace
from shlex import quote

from rc_tasks.commands.cli.parser import option_strings, parser_of
from rc_tasks.commands.cli.table import COMMANDS

# What completes the value of an option, by its word in the help.
_COMPLETED_BY = {
    **dict.fromkeys(("FILE", "PATH", "DIRECTORY", "DIR"), "files"),
    "BASE": "names",
}
_ALTERNATIVES = re.compile(r"\[(\w+(?:\|\w+)+)\]")
# A `case` statement for bash and zsh: it sets the options of a command and what its arguments are.
_CASE = """\
    case $command:$before in
{values}
    *)
        case $command in
{commands}
        esac
        ;;
    esac
"""
_BASH = """\
# bash completion for doit, made by `doit tabcompletion`
_doit() {
    local line=${COMP_LINE:0:COMP_POINT} typed word before candidates=''
    local command=run options='' what=tasks also=''
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]} - 1]} before=${words[${#words[@]} - 2]}
    for typed in "${words[@]:1:${#words[@]} - 2}"; do
        case $typed in
        COMMANDS) command=$typed; break ;;
        esac
    done
    # `--format=svg` is read as `--format svg`.
    [[ $word == --*=* ]] && before=${word%%=*} word=${word#*=}
CASE
    if [[ $what == files && $word != -* ]]; then
        # shellcheck disable=SC2207
        COMPREPLY=($(compgen -f -- "$word"))
        return
    fi
    case $word in
    -*) candidates=$options ;;
    *)
        case $what in
        names | tasks) candidates=$(doit tabcompletion --names "$what" "$word" 2>/dev/null) ;;
        commands) ;;
        *) candidates=$what ;;
        esac
        [[ $what != commands && ${#words[@]} != 2 ]] || candidates+=" ALL"
        candidates+=" $also"
        ;;
    esac
    # shellcheck disable=SC2207
    COMPREPLY=($(compgen -W "$candidates" -- "$word"))
    # bash inserts only what follows the last colon, because a colon ends a word.
    if [[ $word == *:* && ${COMP_WORDBREAKS-:} == *:* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*:}"}"}")
    fi
}
complete -F _doit doit
"""
_ZSH = """\
#compdef doit
# zsh completion for doit, made by `doit tabcompletion --shell zsh`
_doit() {
    local typed word=$PREFIX before=$words[CURRENT-1] command=run options='' what=tasks also=''
    for typed in ${words[2,CURRENT-1]}; do
        case $typed in
        COMMANDS) command=$typed; break ;;
        esac
    done
    if [[ $word == --*=* ]]; then
        before=${word%%=*}
        compset -P '*='
        word=$PREFIX
    fi
CASE
    case $word in
    -*) compadd -- ${=options}; return ;;
    esac
    case $what in
    files) _files; return ;;
    names | tasks) compadd -- ${(f)"$(doit tabcompletion --names $what $word 2>/dev/null)"} ;;
    commands) ;;
    *) compadd -- ${=what} ;;
    esac
    [[ $what != commands && $CURRENT != 2 ]] || compadd -- ALL
    compadd -- ${=also}
}
if [[ $funcstack[1] == _doit ]]; then _doit; else compdef _doit doit; fi
"""
_FISH = """\
# fish completion for doit, made by `doit tabcompletion --shell fish`
function __doit_command
    for word in (commandline -opc)[2..-1]
        if contains -- $word ALL
            test "$word" = "$argv[1]"
            return
        end
    end
    test -z "$argv[1]" -o "$argv[1]" = run
end
complete -c doit -f
"""


def arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.description = (
        "For bash: `doit tabcompletion > ~/.bash_completion_doit`, and source that file in ~/.bashrc."
        " For zsh: the same with --shell zsh and ~/.zshrc, after compinit. For fish: write the output of"
        " --shell fish to ~/.config/fish/completions/doit.fish."
    )
    parser.add_argument("-s", "--shell", choices=("bash", "zsh", "fish"), default="bash")
    parser.add_argument("--hardcode-tasks", action="store_true", help=argparse.SUPPRESS)


def run(args: Namespace) -> int:
    """Print the script."""
    print(_fish() if args.shell == "fish" else _script(_ZSH if args.shell == "zsh" else _BASH), end="")
    return 0


def _script(template: str) -> str:
    values, commands = [], []
    for name in COMMANDS:
        parser = parser_of(name)
        for action in parser._actions:
            if action.option_strings and _takes_value(action):
                patterns = " | ".join(f"{name}:{option}" for option in action.option_strings)
                values.append(f"    {patterns}) what={quote(_value_words(action))} ;;")
        options = quote(" ".join(option_strings(parser)))
        what, also = _argument_kind(parser), quote(" ".join(_argument_words(parser)))
        commands.append(f"        {name}) options={options} what={what} also={also} ;;")
    case = _CASE.format(values="\n".join(values), commands="\n".join(commands)).rstrip()
    names = list(COMMANDS)
    return (
        template.replace("CASE", case)
        .replace("COMMANDS", " | ".join(names))
        .replace("ALL", " ".join(names))
    )


def _fish() -> str:
    lines = [_FISH.replace("ALL", " ".join(COMMANDS))]
    for entry in COMMANDS.values():
        lines.append(
            f"complete -c doit -n __doit_command -a {entry.name} -d {_fish_quoted(entry.purpose)}"
        )
    for name in COMMANDS:
        parser, here = parser_of(name), f"complete -c doit -n '__doit_command {name}'"
        what = _argument_kind(parser)
        if what in {"names", "tasks"}:
            lines.append(
                f"{here} -a '(doit tabcompletion --names {what} (commandline -ct) 2>/dev/null)'"
            )
        elif what == "files":
            lines.append(f"{here} -F")
        also = list(COMMANDS) if what == "commands" else _argument_words(parser)
        if also:
            lines.append(f"{here} -a '{' '.join(also)}'")
        for action in parser._actions:
            if not action.option_strings or action.help == argparse.SUPPRESS:
                continue
            flags = " ".join(
                f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                for option in action.option_strings
            )
            value = ""
            if _takes_value(action):
                words = _value_words(action)
                if words == "names":
                    words = "(doit tabcompletion --names names (commandline -ct) 2>/dev/null)"
                value = " -r -F" if words == "files" else f" -x -a {_fish_quoted(words)}"
            lines.append(f"{here} {flags}{value} -d {_fish_quoted(action.help or '')}")
    return "\n".join([*lines, ""])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _takes_value(action: argparse.Action) -> bool:
    return action.nargs != 0


def _value_words(action: argparse.Action) -> str:
    """Return what completes the value of an option: choices, `files`, `names`, or an empty string."""
    if action.choices:
        return " ".join(map(str, action.choices))
    return _COMPLETED_BY.get(str(action.metavar), "")


def _argument_kind(parser: ArgumentParser) -> str:
    """Return what the arguments of a command are: `names`, `tasks`, `files`, `commands`, or nothing.

    Nothing is a pair of quotes, as the shell needs a word.
    """
    positionals = [action.dest for action in parser._actions if not action.option_strings]
    return positionals[0] if positionals else "''"


def _argument_words(parser: ArgumentParser) -> list[str]:
    """Return the words that the usage of a command allows among its arguments, as in `[podman|env]`."""
    return [word for words in _ALTERNATIVES.findall(parser.usage or "") for word in words.split("|")]
