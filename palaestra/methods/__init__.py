"""Papers' methods, one file a paper, in a folder a family; listed as in `palaestra.algorithms`."""

METHODS: dict[str, str] = {}
