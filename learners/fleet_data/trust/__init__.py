"""Judge the rows of each agent of a group, and bound the share that one agent has of them."""
