"""Read labelled examples from files and folders in common formats; a damaged or ambiguous file is refused."""
