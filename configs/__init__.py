"""The experiments: a config file for each stage, with sizes nano to 2b3."""
