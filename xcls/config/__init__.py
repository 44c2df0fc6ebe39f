"""What a run is told: the schema, the files and the command line, composed into one typed object."""
