"""The MCP face of the verbs: schemas, wording, size limits."""
