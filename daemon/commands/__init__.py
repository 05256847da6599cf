"""The subcommands of `mdd`, one module each: its docstring is the help; `add_arguments`, `run(args)`."""
