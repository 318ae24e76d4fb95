"""The command line: one file per family of verbs, each a parser and a few lines that call the library."""
