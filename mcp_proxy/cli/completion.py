"""``mcp-proxy completion``: scripts with which shells complete commands, options and backends.

Rules of this file: the scripts are click's, but for bash. There a colon ends a word, and every backend has
one, so the script splits the line by itself and gives back what follows the last colon.
"""

from __future__ import annotations

from typing import Final

import click

_NAME: Final = "mcp-proxy"
_VARIABLE: Final = "_MCP_PROXY_COMPLETE"

_EPILOG: Final = """\
\b
Examples:
  eval "$(mcp-proxy completion bash)"            in ~/.bashrc
  eval "$(mcp-proxy completion zsh)"             in ~/.zshrc, after compinit
  mcp-proxy completion fish > ~/.config/fish/completions/mcp-proxy.fish

Backends and pools are asked of the running proxy; without an answer within half a second there are none.
"""

_BASH: Final = """\
_mcp_proxy_completion() {
    local IFS=$' \\t\\n' line=${COMP_LINE:0:COMP_POINT} words current prefix response completion type value
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    prefix=
    [[ $COMP_WORDBREAKS == *:* && $current == *:* ]] && prefix=${current%"${current##*:}"}
    response=$(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]}-1)) \\
        _MCP_PROXY_COMPLETE=bash_complete "$1" 2>/dev/null)
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
        esac
    done <<< "$response"
}

complete -o nosort -F _mcp_proxy_completion mcp-proxy
"""


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    if shell == "bash":
        click.echo(_BASH, nl=False)
        return
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None  # click has these two
    click.echo(script(context.find_root().command, {}, _NAME, _VARIABLE).source())
