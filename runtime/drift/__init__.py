"""Notice when a stream no longer looks as it did: conformal tests of readings and tokens against a reference."""
