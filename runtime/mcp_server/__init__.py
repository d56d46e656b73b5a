"""The MCP server of `reflexd mcp`: tools for language models that read a daemon, stop it, and, for an operator, command it."""
