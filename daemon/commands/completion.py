"""Print what makes a shell complete mdd's commands, options, configuration keys and files with the Tab key.

bash:        mdd completion bash >> ~/.bashrc
zsh:         mdd completion zsh >> ~/.zshrc
fish:        mdd completion fish > ~/.config/fish/completions/mdd.fish
PowerShell:  mdd completion powershell >> $PROFILE

Then open a new terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microdiffusion.daemon.cli import say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh", "fish", "powershell")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", choices=SHELLS)


def run(args: Namespace) -> int:
    """Print."""
    from argcomplete.shell_integration import shellcode

    # zsh and bash share a script, which finds out where it is.
    shell = "bash" if args.shell == "zsh" else args.shell
    say(shellcode(["mdd"], shell=shell).strip())
    return 0
