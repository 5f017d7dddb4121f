"""The files of a repository: manifest, fetching, verification, output folders. Nothing here imports torch."""
