"""Who may open the page: tokens, sessions and their file, the link that signs in, the form, and limits on wrong tries."""
