"""The command `lsp`: the language server over standard input and output."""

import click


@click.command("lsp", short_help="Serve faults, completion and names to an editor.")
@click.option("--hub", is_flag=True, help="Ask the Hub for models that are missing from its cache.")
def lsp_command(hub: bool) -> None:
    """Serve an editor over standard input and output, by the Language Server Protocol.

    The server reports faults, completes words and renames names. An editor starts it.
    docs/editors.md describes the setup. The server reads models in folders, and in the cache of the
    Hub.
    """
    import os

    from gptailor.plan.optional_packages import require

    require("lsp", "a language server")
    if not hub:
        os.environ["HF_HUB_OFFLINE"] = "1"  # its library reads it when it is imported
    from gptailor.plugins.lsp.server import serve

    serve(hub=hub)
