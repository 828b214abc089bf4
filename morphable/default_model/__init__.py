"""The head model shipped with facefit (`head.npz`), and the builder that makes it from CC0 assets."""
