"""The NanoGPT speedrun: manifest, importer, data and what its scripts need to run."""
