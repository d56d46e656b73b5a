"""Read the pictures and sounds of examples into the arrays that models take."""
