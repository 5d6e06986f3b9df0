"""`qgraph completion`."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, add_completion_class, get_completion_class

from qgraph.cli.help import Command


@add_completion_class
class _Bash(BashComplete):
    """Completion for bash, which splits `--clip=m` into three words."""

    def get_completion_args(self) -> tuple[list[str], str]:
        words, incomplete = super().get_completion_args()
        if incomplete == "=":
            return words, ""
        return (words[:-1], incomplete) if words[-1:] == ["="] else (words, incomplete)


@click.command(cls=Command, short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example (bash; zsh and fish are similar):
      qgraph completion bash > ~/.local/share/bash-completion/completions/qgraph
    """
    from qgraph.cli import cli

    generator = get_completion_class(shell)
    if generator is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(generator(cli, {}, "qgraph", "_QGRAPH_COMPLETE").source())
