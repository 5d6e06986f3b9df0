"""`qgraph completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
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
