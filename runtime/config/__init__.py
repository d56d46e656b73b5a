"""The settings file: schema, loader, errors, lint."""
