"""The configuration of a run: schema, files and command line, composed into one typed object."""
